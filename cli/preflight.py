"""`litert-lm-cli preflight`: can float16, in which Core ML computes, carry a model?"""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import TYPE_CHECKING, Any

from cli.convert import MODEL_HELP, add_fetch_options
from cli.request import Request, of_arguments
from converter.errors import UnsupportedError

if TYPE_CHECKING:
    from converter.preflight import PreflightReport

# Tokens that are meant to be in use: scaled rotary embeddings depend on it, their peaks hardly.
_CONTEXT = 512


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "preflight",
        help="say whether float16, and so Core ML, can carry a model's numbers",
        description="Send a text through a model in float32, and hold the largest numbers that it "
        "meets against what float16 can hold. Every weight is read once, in little memory. "
        "Exits with 1 where it cannot carry them as they are, and says which --fp16-scale of "
        "convert --target coreml helps, or that none does.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--lora",
        metavar="ADAPTER",
        action="append",
        help="with a LoRA adapter merged, as in convert; may be given several times",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    add_fetch_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.obtain import source_network
    from cli.progress import byte_progress
    from converter.preflight import preflight

    with source_network(of_arguments(Request, args)) as network:
        halves = 2 * sum(math.prod(shape) for shape in network.shapes.values())
        with byte_progress(halves, args.quiet, what="Reading") as advance:
            report = preflight(
                network,
                network.spec(_CONTEXT),
                os.cpu_count() or 1,
                lambda count: advance(2 * count),
            )
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print("\n".join(_lines(report)))
    _require_fit(report)


def _require_fit(report: PreflightReport) -> None:
    """Raise UnsupportedError where float16 cannot carry a model as it is."""
    from converter.preflight import FLOAT16_MAX, Verdict, fp16_scale_for

    if report.verdict is Verdict.FITS:
        return
    fix = "no scale helps there: convert it without --target coreml"
    if report.verdict is Verdict.FITS_SCALED:
        fix = f"convert it with --fp16-scale auto, which is {fp16_scale_for(report)}"
    raise UnsupportedError(
        report.model, f"{report.reason}, and float16 ends at {FLOAT16_MAX:,.0f}", fix
    )


def _lines(report: PreflightReport) -> list[str]:
    from cli.inspect import printable
    from converter.preflight import PLACES, SAFE_PEAK, Verdict, fp16_scale_for

    said = {
        Verdict.FITS: "float16 carries it",
        Verdict.FITS_SCALED: f"float16 carries it with --fp16-scale {fp16_scale_for(report)}",
        Verdict.TOO_LARGE: "float16 cannot carry it",
    }[report.verdict]
    how = "in its chat template" if report.is_chat else "without a chat template"
    peaks = report.peaks
    lines = [
        f"{report.model}: {said}",
        f"  text: {report.tokens} tokens {how}",
        f"  room: {SAFE_PEAK:,.0f}, some below float16's end, as other texts may go further",
        "",
        f"  {'Largest number of':42}{'':>12}   layer",
    ]
    for place, name in PLACES.items():
        if hasattr(peaks, place):
            lines.append(f"  {name:42}{getattr(peaks, place):>12,.1f}")
            continue
        of_layers = [getattr(layer, place) for layer in peaks.layers]
        peak = max(of_layers)
        lines.append(f"  {name:42}{peak:>12,.1f}{of_layers.index(peak):>8}")
    lines.append(f"  {'weights (' + peaks.weight_path + ')':42}{peaks.weight:>12,.1f}")
    lines += [f"Note: {note}" for note in report.notes]
    return [printable(line) for line in lines]
