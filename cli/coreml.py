"""`convert --target coreml`: a model in, a folder of Core ML packages out."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.fetch import (
    fetch,
    fetch_adapter,
    say,
    source_of,
)
from cli.kept import made_otherwise, packages_made_as
from cli.limits import LIMITS
from cli.obtain import (
    converted_already,
    open_checkpoint,
    opened_for_check,
    opened_for_plan,
    require_same,
    say_found,
)
from cli.request import TARGETS, Request, check_choice, flag, of_arguments
from converter.errors import OptionError, OutputError, SourceError

if TYPE_CHECKING:
    from cli.sealing import Sealing
    from converter.checkpoint.base import Checkpoint
    from converter.checkpoint.sources import Source
    from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan
    from converter.coreml_report import CoreMLCheckReport, CoreMLPlanReport

# What shapes a `.litertlm` file alone, and what says the same here.
_OTHERS = {
    "quantize": "choose tables with --lut1, --lut2 and --lut3",
    "clip": "leave it out: tables are those of least squared error",
    "calibrate": "leave it out: it is about int4 and rounded activations",
    "bits": "choose tables with --lut1, --lut2 and --lut3",
    "prefill_seq_len": "say --batch",
    "kv_cache_max_len": "say --context",
    "memory": "say --context",
    "kv_cache": "leave it out: it is float16",
    "engine": "leave it out",
    "draft": "leave it out: no app that reads packages drafts",
}
_NEEDLESS = {
    "restart": "nothing is done in steps: a conversion takes seconds, and begins anew",
    "only": "nothing is done in steps: all packages are written at once",
    "skip_check": "there is nothing to check: no Mac, Xcode or coremltools is needed",
    "skip_anemll_dedup": "nothing is there twice: functions share their weights as written",
    "dynamic_prefill_slice": "prefill always writes its slice where the position says",
}


def add_coreml_options(parser: argparse.ArgumentParser) -> None:
    """The options of the target coreml, which have ANEMLL's names and meanings."""
    group = parser.add_argument_group(
        "Core ML",
        "With --target coreml: packages for Apple's Neural Engine, as ANEMLL's apps "
        "read them; compile.sh beside them finishes the job on a Mac.",
    )
    group.add_argument(
        "--context", type=LIMITS["context"], metavar="N", help="tokens of a chat (default: 512)"
    )
    group.add_argument(
        "--batch",
        type=LIMITS["batch"],
        metavar="N",
        help="tokens that are read at once (default: 64)",
    )
    for i, (what, default) in enumerate(
        (("embedding", "none"), ("layers", "4,8"), ("head", "6,8")), 1
    ):
        group.add_argument(
            f"--lut{i}",
            metavar="BITS[,GROUP]",
            help=f"tables for the {what}: bits of an index, and rows that share a table, 0 for "
            f"all; none for float16 (default: {default})",
        )
    group.add_argument("--no-lut", action="store_true", default=None, help="float16 everywhere")
    group.add_argument(
        "--chunk", metavar="N", help="packages that share the layers, or auto (default: 2)"
    )
    group.add_argument(
        "--max-chunk-mb",
        type=LIMITS["max_chunk_mb"],
        metavar="MB",
        help="how large the largest of them may be; with a number of chunks, more is refused if "
        "you say this, else noted (default: 950)",
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
        help="multiply the residual stream, where float16 could not carry it; auto measures, none "
        "leaves it (default: auto where norms stand after blocks, as in Gemma)",
    )
    group.add_argument("--split-rotate", action="store_true", default=None, help=argparse.SUPPRESS)
    group.add_argument(
        "--monolithic", action="store_true", default=None, help="everything in one package"
    )
    # Steps that direct writing has not.
    for name in ("restart", "only"):
        group.add_argument(f"--{name}", type=LIMITS[name], metavar="STEP", help=argparse.SUPPRESS)
    for name in ("skip_check", "skip_anemll_dedup", "dynamic_prefill_slice"):
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
    restart: int | None = None
    only: int | None = None
    skip_check: bool | None = None
    skip_anemll_dedup: bool | None = None
    dynamic_prefill_slice: bool | None = None
    no_lut: bool | None = None

    decided_by_receipt = (
        *Request.decided_by_receipt, "context", "batch", "lut1", "lut2", "lut3", "chunk",
        "no_lut", "max_chunk_mb", "prefix", "argmax", "fp16_scale", "split_rotate", "monolithic",
    )  # fmt: skip

    def chosen(self) -> dict[str, Any]:
        """What shapes the result: fields of `CoreMLOptions`.

        Raises:
            OptionError: one of them cannot be used. No work was done for it.
        """
        from converter.coreml_options import (
            CoreMLOptions,
            parse_chunks,
            parse_fp16_scale,
            parse_lut,
        )

        for name, instead in _OTHERS.items():
            if getattr(self, name) is not None:
                raise OptionError(flag(name), "is not about --target coreml", instead)
        chosen = self.chosen_for_any_target()
        if self.context is not None and self.batch is None:
            chosen["batch"] = min(CoreMLOptions.batch, self.context)
        for name, by in (("chunk", "monolithic"), *((f"lut{i}", "no_lut") for i in (1, 2, 3))):
            if getattr(self, by) and getattr(self, name) is not None:
                raise OptionError(
                    flag(name), f"has no effect with {flag(by)}", "leave one of them out"
                )
        for name in ("context", "batch", "max_chunk_mb", "prefix", "argmax", "split_rotate",
                     "monolithic"):  # fmt: skip
            if (value := getattr(self, name)) is not None:
                chosen[name] = value
        for name, field in (("lut1", "embeddings"), ("lut2", "layers"), ("lut3", "head")):
            if self.no_lut:
                chosen[f"lut_{field}"] = None
            if (text := getattr(self, name)) is not None:
                chosen[f"lut_{field}"] = parse_lut(flag(name), text)
        if self.chunk is not None:
            chosen["chunks"] = parse_chunks(self.chunk)
        if self.fp16_scale is not None:
            chosen["fp16_scale"] = parse_fp16_scale(self.fp16_scale)
        CoreMLOptions(**chosen).check()
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
    return of_arguments(request_kind(vars(args)), args, **others)


def request_kind(options: Mapping[str, Any]) -> type[Request]:
    """What kind of request has these options, by their names in Python.

    Raises:
        OptionError: an option of this target was given for another one.
    """
    target = options.get("target")
    if target is not None:
        check_choice("target", target, TARGETS)
    if target == "coreml" or _is_of_packages(options.get("from_receipt")):
        return CoreMLRequest
    own = {field.name for field in fields(CoreMLRequest)} - {f.name for f in fields(Request)}
    for name in sorted(own):
        if options.get(name) is not None:
            raise OptionError(flag(name), "is about --target coreml", "add that, or leave it out")
    return Request


def _is_of_packages(path: Path | None) -> bool:
    """Whether a receipt is one of a folder of packages; what is none is said where it is used."""
    if path is None:
        return False
    from converter.receipt import read_receipt

    try:
        return (read_receipt(path).get("options") or {}).get("target") == "coreml"
    except SourceError:
        return False


def obtain_packages(request: CoreMLRequest, check: bool = False) -> Path:
    """The folder of a model's packages, made if need be.

    Args:
        check: whether to try them out, which nothing here can.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    if check:
        raise OptionError(
            "--check", "the engine runs no packages", "leave it out, and try eval FOLDER"
        )
    if request.accept is not None:
        raise OptionError(
            "--accept", "the engine runs no packages", "leave it out, and try eval FOLDER --against"
        )
    from cli.sealing import Sealing, coreml_options_of_receipt
    from converter.output.atomic_folder import require_replaceable
    from converter.receipt import is_outdated, why_not_replaced

    expected = request.receipt
    chosen = request.chosen() if expected is None else coreml_options_of_receipt(expected)
    source = source_of(request, chosen)
    if expected is not None:
        source = replace(source, name=expected["output"]["name"])
    output = _output(request, source)
    request.say_needless()
    if not request.force and _holds_packages(output):
        if expected is not None:
            require_same(output, expected)
        older = packages_made_as(output)
        if expected is None:
            older += made_otherwise(request, chosen, output)
        if source.path is not None and is_outdated(output, source.path):
            older += ", older than what it was made of"
        say(request, f"keeping {output}, which exists{older} (convert --force replaces it)")
        return output
    require_replaceable(output, why_not_replaced)
    local, origin = fetch(source, request, prefer_converted=False, becomes=output)
    if local.suffix.lower() == ".litertlm":
        raise converted_already(request.model)
    adapters = [fetch_adapter(adapter, request) for adapter in chosen.get("lora", ())]
    if adapters:
        chosen["lora"] = [adapter for adapter, _ in adapters]
    sealing = Sealing(output, origin, adapters, expected, folder_of=source.name)
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
        plan = converter.plan(_scale(converter, request))
        _check_disk(plan, output)
        say(request, f"{source.name}: {_summary(plan)} -> {output}")
        say_found(request, plan.found)
        for note in plan.notes:
            say(request, note)
        with byte_progress(plan.weights_nbytes, request.quiet, request.progress) as progress:
            converter.write(plan, output, progress, sealing.of_packages(converter, plan))
    say(request, "on a Mac, compile.sh in it is what comes next: docs/coreml.md")


def _scale(converter: CoreMLConverter, request: CoreMLRequest) -> float:
    """What the residual stream is multiplied by, with the progress of measuring it."""
    from cli.progress import byte_progress

    hidden = request.quiet or not converter.measures_scale
    halves = 2 * sum(math.prod(shape) for shape in converter.network.shapes.values())
    with byte_progress(halves, hidden, what="Measuring") as advance:
        return converter.measured_scale(lambda count: advance(2 * count))


def preview_packages(request: CoreMLRequest) -> CoreMLPlanReport:
    """What a conversion would do. Nothing is written, and nothing downloaded.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.coreml_report import report

    chosen = request.chosen()
    request.say_needless()
    with opened_for_plan(request, chosen) as (checkpoint, source):
        converter = _converter(checkpoint, source, chosen)
        plan = converter.plan(chosen.get("fp16_scale") or 1.0)
        say_found(request, plan.found)
        return report(converter, plan, _output(request, source))


def examine_packages(request: CoreMLRequest) -> CoreMLCheckReport:
    """What would become of a model: of one on the hub, no more than its headers is fetched.

    Raises:
        LiteRTLMError: what its conversion would be refused with.
    """
    from converter.coreml_options import CoreMLOptions
    from converter.coreml_report import check

    chosen = request.chosen()
    with opened_for_check(request, chosen) as (checkpoint, source, has_text):
        return check(checkpoint, source.name, CoreMLOptions(**chosen), has_text)


def plan_lines(report: CoreMLPlanReport, force: bool) -> list[str]:
    """A plan for people."""
    from cli.inspect import printable, size

    lines = [f"{report.output}  {size(report.output_bytes)}"]
    if report.output_exists:
        kept = "would be replaced" if force else "would be kept (--force replaces it)"
        lines.append(f"  this folder exists and {kept}")
    scale = "to be measured" if report.fp16_scale is None else f"{report.fp16_scale:g}"
    lines += [
        f"  model: {report.model}",
        f"  family: {report.family}",
        f"  target: {report.target}",
        f"  context: {report.context}",
        f"  batch: {report.batch}",
        *(f"  {part}: {_format(pair)}" for part, pair in report.lut.items()),
        f"  scale of the residual stream: {scale}",
        f"  threads: {report.threads}",
        "",
        "Packages",
    ]
    for package in report.packages:
        functions = ", ".join(package.functions)
        lines.append(f"  {package.name}.mlpackage  {size(package.bytes)}  {functions}")
    lines += ["", "States"]
    for state in report.states:
        lines.append(f"  {state.name}  {list(state.shape)}  {size(state.bytes)}")
    if all(package.kind != "monolithic" for package in report.packages):
        lines += ["", f"Chunks of at most {report.max_chunk_mb} MiB, as ANEMLL estimates them"]
        lines += [f"  {figure}" for figure in report.chunk_figures]
    parts = Counter(report.head_parts)
    heads = " and ".join(f"{count} parts of {rows} rows" for rows, count in parts.items())
    lines += ["", f"Head: {heads}", "", "Weights"]
    for group in report.tensors:
        lines.append(f"  {group.kind:12}{group.dtype:12}{size(group.bytes):>10}  x{group.count}")
    short = " (too little)" if report.disk_needed_bytes > report.disk_free_bytes else ""
    lines += ["", "Conversion needs"]
    for what, nbytes, note in (
        ("to read", report.source_bytes, ""),
        ("weights", report.weights_bytes, ""),
        ("output", report.output_bytes, ""),
        ("disk", report.disk_needed_bytes, f"{size(report.disk_free_bytes)} free{short}"),
    ):
        lines.append(f"  {what:24}{size(nbytes):>10}  {note}".rstrip())
    lines += [f"Note: {note}" for note in report.notes]
    return [printable(line) for line in lines]


def check_lines(report: CoreMLCheckReport) -> list[str]:
    """What would become of a model, for people."""
    from cli.inspect import printable, size

    lines = [
        f"{report.model}: can be converted",
        f"  family: {report.family}",
        f"  parameters: {report.parameters / 1e9:.2f} billion",
        f"  made for: {report.context_length} tokens",
        "",
        "Size of all packages, without the tokenizer",
        f"  {'as chosen, or by default':30}{size(report.bytes):>10}",
    ]
    for each in report.sizes:
        nbytes = f"refused: {each.refusal}" if each.bytes is None else size(each.bytes)
        lines.append(f"  {_format(each.lut):30}{nbytes:>10}")
    lines += ["", f"States in a context of {report.context}: {size(report.states_bytes)}"]
    notes = [f"Note: {note}" for note in report.notes]
    if not report.text_proved:
        notes.insert(0, "The tokenizer was not fetched; it is proved at conversion.")
    lines += ["", *notes] if notes else []
    return [printable(line) for line in lines]


def _format(lut: tuple[int, int] | None) -> str:
    if lut is None:
        return "float16"
    bits, group = lut
    return f"tables of {bits} bits for " + (f"{group} rows" if group else "a tensor")


def _output(request: Request, source: Source) -> Path:
    return source.packages_dir if request.output_dir is None else request.output_dir


def _holds_packages(folder: Path) -> bool:
    from converter.checkpoint.files import status_of
    from converter.coreml.meta import META

    return status_of(folder / META) is not None


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
