"""`litert-lm-cli check`: what would become of a model, before anything is downloaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from converter.errors import LiteRTLMError, UnsupportedError

if TYPE_CHECKING:
    from converter.check import CheckReport


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    from cli.convert import MODEL_HELP, add_conversion_options

    parser: argparse.ArgumentParser = subparsers.add_parser(
        "check",
        help="say what would become of a model: support, sizes, memory",
        description="Say whether a model can be converted, as what, how large it is in each scheme "
        "and how much memory it needs on the device. Of a model on the hub, its config and the "
        "headers of its weights are fetched, and nothing else. Exits with 1 where a conversion "
        "would be refused, and says why.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=MODEL_HELP,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_conversion_options(parser, has_coreml=True)
    return parser


def main(args: argparse.Namespace) -> None:
    from cli.coreml import CoreMLRequest, check_lines, examine_packages, request_of
    from cli.obtain import examine

    try:
        request = request_of(args)
        if isinstance(request, CoreMLRequest):
            of_packages = examine_packages(request)
            found, lines = of_packages.as_json(), check_lines(of_packages)
        else:
            report = examine(request)
            found, lines = report.as_json(), _lines(report)
    except LiteRTLMError as refusal:
        if args.json:
            said = {"what": refusal.what, "why": refusal.why, "fix": refusal.fix}
            # Whether it is supported is not known where it could not be read.
            supported = False if isinstance(refusal, UnsupportedError) else None
            _print_json({"model": args.model, "supported": supported, "refusal": said})
        raise
    if args.json:
        _print_json(found)
    else:
        print("\n".join(lines))


def _print_json(value: dict[str, Any]) -> None:
    import json

    # In ASCII: names may hold what a terminal obeys, or its encoding lacks.
    print(json.dumps(value, indent=2))


def _lines(report: CheckReport) -> list[str]:
    from cli.inspect import fit_line, printable, size

    lines = [
        f"{report.model}: can be converted",
        f"  family: {report.family}",
        f"  parameters: {report.parameters / 1e9:.2f} billion",
        f"  made for: {report.context_length} tokens",
        f"  draft: {report.draft}",
        "",
        "Size of the file, without the tokenizer",
    ]
    for scheme in report.sizes:
        nbytes = f"refused: {scheme.refusal}" if scheme.bytes is None else size(scheme.bytes)
        lines.append(f"  {scheme.scheme:24}{nbytes:>10}")
    what = f"{report.scheme} for {report.target} with a cache in {report.kv_cache}"
    lines += ["", f"Memory to run in {what}, beside the engine"]
    lines.append(
        f"  {'tokens of context':24}{'weights':>10}{'KV cache':>10}{'scratch':>10}{'all':>10}"
    )
    for context in report.memory:
        needs = context.run_memory
        sizes = (
            needs.weights_bytes, needs.kv_cache_bytes, needs.scratch_bytes, needs.total_bytes,
        )  # fmt: skip
        lines.append(f"  {context.kv_cache_length:<24}{''.join(f'{size(n):>10}' for n in sizes)}")
    if report.memory_fit is not None:
        lines += ["", fit_line(report.memory_fit)]
    notes = [f"Note: {note}" for note in report.notes]
    if not report.text_proved:
        notes.insert(
            0, "Tokenizer and chat template were not fetched; they are proved at conversion."
        )
    lines += ["", *notes] if notes else []
    return [printable(line) for line in lines]
