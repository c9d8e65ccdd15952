"""`litert-lm-cli eval`: what did conversion cost?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.convert import add_fetch_options
from cli.limits import LIMITS
from cli.outputs import FILE_HELP, output_of
from cli.request import Request
from converter.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from runner.evaluation import Divergence, Perplexity, Sample

    # Of some tokens: as many as its context holds, and the logits after each.
    Reference = Callable[[list[int]], tuple[list[int], Iterable[np.ndarray]]]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="measure what conversion cost: perplexity, and the distance from the source",
        description="Measure a .litertlm file in the engine, or Core ML packages in numpy: "
        "perplexity on a text, a greedy sample, speed; and with --against how far each next "
        "token's distribution is from the source's in float.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help=f"{FILE_HELP}, or one .mlpackage; packages are for small models",
    )
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="compare with this model in float: whatever convert takes, or a .litertlm file",
    )
    parser.add_argument(
        "--engine",
        choices=("direct", "torch"),
        default="direct",
        help="what runs SOURCE: our fp32 graph (direct, default), or transformers (torch; needs "
        "./setup --reference)",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="a text in UTF-8 (default: the beginning of William Morris, News from Nowhere)",
    )
    parser.add_argument(
        "--threads", type=LIMITS["threads"], metavar="N", help="default: the engine's choice"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--revision", metavar="REV", help="of SOURCE: branch, tag or commit")
    add_fetch_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    from runner.evaluation import TEXT

    if args.engine == "torch" and not args.against:
        raise OptionError("--engine torch", "has no effect without --against", "name the source")
    if args.revision is not None and not args.against:
        raise OptionError("--revision", "has no effect without --against", "name the source")
    text = _read(args.text or TEXT)
    file = output_of(args.file)
    is_coreml = file.is_dir()
    if is_coreml and args.threads is not None:
        raise OptionError("--threads", "is for the engine, which runs no packages", "leave it out")
    against = None
    if args.against:
        against = Request(
            args.against, revision=args.revision, offline=args.offline, quiet=args.quiet, asks=True
        )
    if is_coreml:
        found = measure_packages(file, text, against, args.engine, args.quiet)
    else:
        found = measure(file, text, against, args.engine, args.threads, args.quiet)
    if args.json:
        import json

        print(json.dumps(_as_json(*found)))
    else:
        print("\n".join(_lines(args, *found)))


def measure(
    file: Path,
    text: str,
    against: Request | None,
    engine: str = "direct",
    threads: int | None = None,
    quiet: bool = False,
) -> tuple[Perplexity, Sample, Divergence | None]:
    """What a `.litertlm` file makes of a text, and how far it is from another model in float.

    Args:
        against: the other model; None compares with nothing.
        engine: what runs that.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from runner.engine import Model
    from runner.evaluation import compared_tokens, measure_divergence, measure_perplexity, sample

    with ExitStack() as stack:
        # First of all, as this is what may be refused.
        reference = _reference(against, engine, stack) if against else None
        with Model(file, threads=threads, benchmark=True) as model:
            perplexity = measure_perplexity(model, text, _progress("scoring", quiet))
            said = sample(model, text)
            tokens = compared_tokens(model, text)
        divergence = None
        if reference is not None:
            tokens, logits = reference(tokens)
            progress = _progress("comparing", quiet)
            divergence = measure_divergence(file, logits, tokens, progress)
    return perplexity, said, divergence


def measure_packages(
    path: Path, text: str, against: Request | None, engine: str = "direct", quiet: bool = False
) -> tuple[Perplexity, Sample, Divergence | None]:
    """The same for a folder of Core ML packages, or one of them; see `measure`."""
    from runner.coreml_evaluation import measure_divergence, measure_perplexity, sample
    from runner.coreml_model import CoreMLModel
    from runner.evaluation import compared_tokens

    with ExitStack() as stack:
        model = CoreMLModel(path)
        reference = _reference(against, engine, stack) if against else None
        said = sample(model, text)
        perplexity = measure_perplexity(model, text, _progress("scoring", quiet))
        divergence = None
        if reference is not None:
            tokens, logits = reference(compared_tokens(model, text))
            progress = _progress("comparing", quiet)
            divergence = measure_divergence(model, logits, tokens, progress)
    return perplexity, said, divergence


def _reference(request: Request, engine: str, stack: ExitStack) -> Reference:
    """What says the source's logits; its files are gone when `stack` is left."""
    from cli.obtain import in_float, require_reference, source_checkpoint
    from converter.output.scratch import scratch_folder

    folder = stack.enter_context(scratch_folder("litert-lm-eval-"))
    if engine == "torch":
        from cli.progress import stage_progress
        from converter.torch.reference import check_can_run, next_token_logits

        require_reference(request)
        checkpoint = stack.enter_context(source_checkpoint(request))
        check_can_run(checkpoint, request.model)

        def by_transformers(tokens: list[int]) -> tuple[list[int], Iterable[np.ndarray]]:
            with stage_progress(request.quiet) as tell:
                return tokens, next_token_logits(checkpoint, request.model, tokens, folder, tell)

        return by_transformers

    from converter.litertlm.inspection import read_bundle
    from runner.evaluation import graph_logits

    bundle = in_float(request, folder)
    limit = read_bundle(bundle).metadata.max_num_tokens or None
    return lambda tokens: (tokens[:limit], graph_logits(bundle, tokens[:limit]))


def _as_json(
    perplexity: Perplexity, said: Sample, divergence: Divergence | None
) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {
        "perplexity": perplexity.perplexity,
        "tokens": perplexity.tokens,
        "repetition": said.repetition,
        "prefill_tokens_per_second": said.prefill_rate,
        "decode_tokens_per_second": said.decode_rate,
    }
    if divergence is not None:
        found |= {
            "kl_mean": divergence.kl_mean,
            "kl_max": divergence.kl_max,
            "top1_agreement": divergence.top1_agreement,
            "positions": divergence.positions,
        }
    return found


def _lines(
    args: argparse.Namespace,
    perplexity: Perplexity,
    said: Sample,
    divergence: Divergence | None,
) -> list[str]:
    from cli.inspect import printable

    lines = [
        f"perplexity  {perplexity.perplexity:.3f} over {perplexity.tokens} tokens",
        _speed(said),
        f"repetition  {said.repetition:.0%} of what it says greedily:",
        f"  {printable(' '.join(said.text.split()))}",
    ]
    if divergence is not None:
        lines += [
            f"against {printable(args.against)} in float, {divergence.positions} positions",
            f"  KL divergence  {divergence.kl_mean:.4f} mean, {divergence.kl_max:.3f} largest",
            f"  same likeliest token  {divergence.top1_agreement:.1%}",
        ]
    return lines


def _speed(said: Sample) -> str:
    if said.prefill_rate is None or said.decode_rate is None:
        return "speed       not measured: numpy ran it, each result rounded to float16"
    return f"speed       prefill {said.prefill_rate:.0f}, decode {said.decode_rate:.1f} tokens/s"


def _progress(what: str, quiet: bool) -> Any:
    """Tells of every step on a terminal, in one line."""

    def tell(done: int, everything: int) -> None:
        if not quiet and sys.stderr.isatty():
            end = "\r" if done + 1 < everything else "\r\033[K"
            print(f"{what} {done + 1}/{everything}", end=end, file=sys.stderr, flush=True)

    return tell


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8"
        raise OptionError(f"--text {path}", why, "give a text file in UTF-8") from error
