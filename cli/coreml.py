"""`convert --target coreml`: a model in, a folder of Core ML packages out."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.fetch import (
    fetch,
    fetch_adapter,
    say,
    source_of,
)
from cli.limits import LIMITS
from cli.obtain import converted_already, open_checkpoint, require_same
from cli.request import Request, flag, of_arguments
from converter.errors import OptionError, OutputError

if TYPE_CHECKING:
    from cli.sealing import Sealing
    from converter.checkpoint.base import Checkpoint
    from converter.checkpoint.sources import Source
    from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan

FOLDER = "coreml"  # in a model's own, where --output-dir names no other

# What shapes a `.litertlm` file alone, and what says the same here.
_OTHERS = {
    "quantize": "choose tables with --lut1, --lut2 and --lut3",
    "clip": "leave it out: tables are those of least squared error",
    "prefill_seq_len": "say --batch",
    "kv_cache_max_len": "say --context",
    "engine": "leave it out",
}
_NEEDLESS = {
    "restart": "nothing is done in steps: a conversion takes seconds, and begins anew",
    "only": "nothing is done in steps: all packages are written at once",
    "skip_check": "there is nothing to check: no Mac, Xcode or coremltools is needed",
    "skip_anemll_dedup": "nothing is there twice: functions share their weights as written",
}


def add_coreml_options(parser: argparse.ArgumentParser) -> None:
    """The options of the target coreml, which have ANEMLL's names and meanings."""
    group = parser.add_argument_group(
        "Core ML",
        "With --target coreml: packages for Apple's Neural Engine, as ANEMLL's apps "
        "read them; compile.sh beside them finishes the job on a Mac.",
    )
    number = LIMITS["kv_cache_max_len"]
    group.add_argument(
        "--context", type=number, metavar="N", help="tokens of a chat (default: 512)"
    )
    group.add_argument(
        "--batch", type=number, metavar="N", help="tokens that are read at once (default: 64)"
    )
    for i, (what, default) in enumerate(
        (("embedding", "none"), ("layers", "4,8"), ("head", "6,8")), 1
    ):
        group.add_argument(
            f"--lut{i}",
            metavar="BITS[,GROUP]",
            help=f"tables for the {what}: bits of an index, and rows that share a table; none for "
            f"float16 (default: {default})",
        )
    group.add_argument(
        "--chunk", metavar="N", help="packages that share the layers, or auto (default: 2)"
    )
    group.add_argument(
        "--max-chunk-mb",
        type=number,
        metavar="MB",
        help="how large the largest of them may be (default: 950)",
    )
    group.add_argument(
        "--prefix", metavar="NAME", help="what names of files begin with (default: the family's)"
    )
    group.add_argument(
        "--argmax",
        action="store_true",
        default=None,
        help="the head names the likeliest token alone: faster, and always greedy",
    )
    group.add_argument(
        "--fp16-scale",
        metavar="A",
        help="multiply the residual stream, where float16 could not carry it; auto measures",
    )
    group.add_argument("--split-rotate", action="store_true", default=None, help=argparse.SUPPRESS)
    group.add_argument(
        "--monolithic", action="store_true", default=None, help="everything in one package"
    )
    # Steps that direct writing has not.
    for name in ("restart", "only"):
        group.add_argument(f"--{name}", metavar="STEP", help=argparse.SUPPRESS)
    for name in ("skip_check", "skip_anemll_dedup"):
        group.add_argument(flag(name), action="store_true", default=None, help=argparse.SUPPRESS)


@dataclass(frozen=True)
class CoreMLRequest(Request):
    """A model that is wanted as packages; see `add_coreml_options`."""

    context: int | None = None
    batch: int | None = None
    lut1: str | None = None
    lut2: str | None = None
    lut3: str | None = None
    chunk: str | None = None
    max_chunk_mb: int | None = None
    prefix: str | None = None
    argmax: bool | None = None
    fp16_scale: str | None = None
    split_rotate: bool | None = None
    monolithic: bool | None = None
    restart: str | None = None
    only: str | None = None
    skip_check: bool | None = None
    skip_anemll_dedup: bool | None = None

    decided_by_receipt = (
        "lora", "chat_template", "target", "revision", "context", "batch", "lut1", "lut2", "lut3",
        "chunk", "max_chunk_mb", "prefix", "argmax", "fp16_scale", "split_rotate", "monolithic",
    )  # fmt: skip

    def chosen(self) -> dict[str, Any]:
        """What shapes the result: fields of `CoreMLOptions`.

        Raises:
            OptionError: one of them cannot be used. No work was done for it.
        """
        from converter.coreml_options import parse_chunks, parse_fp16_scale, parse_lut

        for name, instead in _OTHERS.items():
            if getattr(self, name) is not None:
                raise OptionError(flag(name), "is not about --target coreml", instead)
        chosen = self.chosen_for_any_target()
        for name in ("context", "batch", "max_chunk_mb", "prefix", "argmax", "split_rotate",
                     "monolithic"):  # fmt: skip
            if (value := getattr(self, name)) is not None:
                chosen[name] = value
        for name, field in (("lut1", "embeddings"), ("lut2", "layers"), ("lut3", "head")):
            if (text := getattr(self, name)) is not None:
                chosen[f"lut_{field}"] = parse_lut(flag(name), text)
        if self.chunk is not None:
            chosen["chunks"] = parse_chunks(self.chunk)
        if self.fp16_scale is not None:
            chosen["fp16_scale"] = parse_fp16_scale(self.fp16_scale)
        return chosen

    def say_needless(self) -> None:
        """Of steps that were named, why nothing is left for them to do."""
        for name, why in _NEEDLESS.items():
            if getattr(self, name) is not None:
                say(self, f"{flag(name)}: {why}")


def request_of(args: argparse.Namespace, **others: Any) -> Request:
    """What a command line with these options wants.

    Raises:
        OptionError: an option of this target was given for another one.
    """
    if args.target == "coreml" or _is_of_packages(args):
        return of_arguments(CoreMLRequest, args, **others)
    own = {field.name for field in fields(CoreMLRequest)} - {f.name for f in fields(Request)}
    for name in sorted(own):
        if getattr(args, name) is not None:
            raise OptionError(flag(name), "is about --target coreml", "add that, or leave it out")
    return of_arguments(Request, args, **others)


def _is_of_packages(args: argparse.Namespace) -> bool:
    """Whether a receipt is wanted again that is one of a folder of packages."""
    path = getattr(args, "from_receipt", None)
    if path is None:
        return False
    from converter.receipt import read_receipt

    return (read_receipt(path).get("options") or {}).get("target") == "coreml"


def obtain_packages(request: CoreMLRequest) -> Path:
    """The folder of a model's packages, made if need be.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from cli.sealing import Sealing, coreml_options_of_receipt

    expected = request.receipt
    chosen = request.chosen() if expected is None else coreml_options_of_receipt(expected)
    source = source_of(request, chosen)
    if expected is not None:
        source = replace(source, name=expected["output"]["name"])
    output = _output(request, source)
    request.say_needless()
    if output.is_dir() and not request.force and any(output.iterdir()):
        if expected is not None:
            require_same(output, expected)
        say(request, f"keeping {output}, which exists (convert --force replaces it)")
        return output
    local, origin = fetch(source, request, prefer_converted=False, becomes=output)
    if local.suffix.lower() == ".litertlm":
        raise converted_already(request.model)
    adapters = [fetch_adapter(adapter, request) for adapter in chosen.get("lora", ())]
    if adapters:
        chosen["lora"] = [adapter for adapter, _ in adapters]
    sealing = Sealing(output, origin, adapters, expected, source.name)
    _convert(local, source, output, chosen, request, sealing)
    return output


def _convert(
    local: Path,
    source: Source,
    output: Path,
    chosen: dict[str, Any],
    request: CoreMLRequest,
    sealing: Sealing,
) -> None:
    from cli.progress import byte_progress

    with open_checkpoint(local) as checkpoint:
        sealing.begin(checkpoint.files)
        converter = _converter(checkpoint, source, chosen)
        plan = converter.plan(converter.measured_scale())
        _check_disk(plan, output)
        say(request, f"{source.name}: {_summary(plan)} -> {output}")
        for what, finding in plan.found.items():
            say(request, f"{what}: {finding}")
        with byte_progress(plan.weights_nbytes, request.quiet, request.progress) as progress:
            converter.write(plan, output, progress, sealing.of_packages(converter, plan))


def _output(request: Request, source: Source) -> Path:
    return source.home / FOLDER if request.output_dir is None else request.output_dir


def _converter(checkpoint: Checkpoint, source: Source, chosen: dict[str, Any]) -> CoreMLConverter:
    from converter.coreml_options import CoreMLOptions
    from converter.coreml_pipeline import CoreMLConverter

    return CoreMLConverter(checkpoint, source.name, CoreMLOptions(**chosen))


def _summary(plan: CoreMLPlan) -> str:
    """A plan in a line."""
    context = f"context {plan.interface.context}"
    packages = f"{len(plan.parts)} package{'s' if len(plan.parts) > 1 else ''}"
    scale = f", residual stream times {plan.scale:g}" if plan.scale != 1 else ""
    return f"{plan.family.name}, {context}{scale}, {packages}, {plan.packages_nbytes / 1e6:.0f} MB"


def _check_disk(plan: CoreMLPlan, output: Path) -> None:
    """Raise OutputError if the disk has no room for the result."""
    from cli.inspect import size
    from converter.report import disk_free

    free = disk_free(output)
    if free < plan.packages_nbytes:
        raise OutputError(
            str(output),
            f"needs {size(plan.packages_nbytes)} of disk, {size(free)} are free",
            "free some or choose another folder with --output-dir",
        )
