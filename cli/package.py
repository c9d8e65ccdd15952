"""`litert-lm-cli package`: a folder with all that the hub and Google's Gallery app need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.convert import MODEL_HELP, add_conversion_options
from cli.limits import LIMITS
from cli.request import Request, of_arguments
from converter.errors import OptionError

if TYPE_CHECKING:
    from publish.figures import Figures


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "package",
        help="make a folder to publish: the model, its card, its licence",
        description="Make a folder with all that the Hugging Face hub and Google's AI Edge Gallery "
        "need: the .litertlm file, a model card made from its receipt, the licence as the source "
        "states it, and the Gallery's JSON. Prints the folder's path; upload sends it. A model "
        "that has not been converted yet is converted first.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"a .litertlm file, {MODEL_HELP}")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="a new folder, or a package"
    )
    parser.add_argument(
        "--repo", metavar="ORG/NAME", help="where it will go (default: upload fills it in)"
    )
    parser.add_argument(
        "--eval",
        action="store_true",
        help="measure perplexity and speed for the card; kept in the receipt, and shown from then "
        "on",
    )
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="with --eval: compare with this model in float, as eval does",
    )
    parser.add_argument(
        "--threads",
        type=LIMITS["threads"],
        metavar="N",
        help="for --eval (default: the engine's choice)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write texts anew that were edited in DIR"
    )
    add_conversion_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    for option, value in (("--against", args.against), ("--threads", args.threads)):
        if value is not None and not args.eval:
            raise OptionError(option, "has no effect without --eval", "add that, or leave it out")
    if args.repo is not None:
        from publish.names import check_repo_id

        check_repo_id(args.repo)
    from cli.fetch import say
    from cli.obtain import obtain

    # Of the package, --force speaks, not of the model.
    request = of_arguments(Request, args, asks=True, force=False)
    output = obtain(request)
    from converter.receipt import add_to_receipt, receipt_path
    from publish.package import write_package

    if args.eval:
        # Before the work: whoever has no receipt has nowhere to keep it.
        add_to_receipt(output, eval=_measured(output, args).as_json())
    package = write_package(output, args.to, args.repo, args.force)
    from converter.receipt import read_receipt

    receipt = read_receipt(receipt_path(output))
    if receipt.get("eval") is None:
        say(request, "the card has no figures: add --eval to measure them")
    if not any((receipt["source"].get("papers") or {}).get("license", ())):
        say(request, "no licence is known of its source, and the card says so")
    print(package.folder)


def _measured(output: Path, args: argparse.Namespace) -> Figures:
    """What the card says of quality and speed, measured now."""
    import datetime

    from cli.eval import Task, evaluate
    from converter.receipt import versions
    from publish.figures import Figures
    from runner.engine import Model
    from runner.evaluation import COMPARED, TEXT, TEXT_TITLE, measure_speed

    text = TEXT.read_text(encoding="utf-8")
    against = None
    if args.against is not None:
        against = Request(args.against, offline=args.offline, quiet=args.quiet, asks=True)
    task = Task(text, COMPARED, threads=args.threads, quiet=args.quiet)
    found = evaluate(output, task, against)
    perplexity, divergence = found.first.perplexity, found.divergence
    with Model(output, threads=args.threads, benchmark=True) as model:
        speed = measure_speed(model, text)
    known = versions()
    compared: dict[str, Any] = {}
    if divergence is not None:
        name = Path(args.against)
        compared = {
            "against": name.name if name.exists() else args.against,
            "kl_mean": divergence.kl_mean,
            "kl_max": divergence.kl_max,
            "top1_agreement": divergence.top1_agreement,
            "positions": divergence.positions,
        }
    threads = f", {args.threads} threads" if args.threads is not None else ""
    return Figures(
        perplexity=perplexity.perplexity,
        tokens=perplexity.tokens,
        text=TEXT_TITLE,
        prefill_tokens=speed.prefill_tokens,
        prefill_rate=speed.prefill_rate,
        decode_tokens=speed.decode_tokens,
        decode_rate=speed.decode_rate,
        first_token_seconds=speed.first_token_seconds,
        machine=f"{_machine()}{threads}",
        versions=f"litert-lm-cli {known['litert-lm-cli']} and LiteRT-LM {_engine_version()}",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        **compared,
    )


def _engine_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("litert-lm-api")


def _machine() -> str:
    """Processor, cores that this process may use, and system."""
    import os
    import platform

    name = platform.processor() or platform.machine()
    try:  # on Linux the standard library knows no more than x86_64
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
        name = names[0] if names else name
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} ({cores} cores), {platform.system()}"
