"""From what the user typed to a `.litertlm` file on disk: keep, download or convert."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.fetch import (
    adapter_fetched_before,
    drafter_fetched_before,
    fetch,
    fetch_adapter,
    fetch_drafter,
    fetch_headers,
    fetched_before,
    local_copy_of,
    only_packages,
    say,
    source_of,
)
from cli.kept import made_as, made_otherwise
from converter.errors import LiteRTLMError, OptionError, OutputError, SourceError

if TYPE_CHECKING:
    from cli.accept import Condition
    from cli.request import Request
    from cli.sealing import Sealing
    from converter.base import ModelConverter, Plan
    from converter.check import CheckReport
    from converter.checkpoint.base import Checkpoint
    from converter.checkpoint.sources import Source
    from converter.network import Network
    from converter.options import ConvertOptions
    from converter.output.atomic_file import Seal
    from converter.report import PlanReport

# More than what stands beside a network in the file takes: tokenizer, template and metadata.
_TEXT_ROOM = 1 << 28


def obtain(request: Request, announce_kept: bool = False) -> Path:
    """The path of a model's `.litertlm` file, made if need be.

    Args:
        announce_kept: say so when there is one already.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.checkpoint.files import status_of
    from converter.receipt import is_outdated, settle

    conditions = accepted_by(request)
    expected = request.receipt
    if expected is None:
        chosen = request.chosen()
    else:
        from cli.sealing import options_of_receipt

        chosen = options_of_receipt(expected)
    source = source_of(request, chosen)
    if expected is not None:
        source = replace(source, name=expected["output"]["name"])
    output = source.output_path(request.output_dir)
    if source.kind == "litertlm":
        is_made_anew = request.force or request.output_dir is not None or conditions
        if is_made_anew or chosen or expected is not None:
            raise converted_already(request.model)
        return output
    settle(output)
    if status_of(output) is not None and not request.force:
        if expected is not None:
            require_same(output, expected)
        # To `run` an existing file is what was meant, unless it would surprise.
        outdated = source.path is not None and is_outdated(output, source.path)
        how = made_as(output)
        # What a receipt decides was held against the file.
        otherwise = "" if expected is not None else made_otherwise(request, chosen, output)
        if conditions and otherwise:
            raise OutputError(
                str(output),
                f"it exists{how}{otherwise}",
                "add --force to convert anew, or --output-dir to keep it",
            )
        if announce_kept or chosen or outdated or request.revision is not None:
            older = ", older than what it was made of" if outdated else ""
            say(
                request,
                f"keeping {output}, which exists{how}{otherwise}{older} "
                "(convert --force replaces it)",
            )
        if conditions:
            with _float_reference(request, source, chosen) as reference:
                _note_accepted(output, _accept(request, conditions, output, reference, output))
        return output

    if "engine" in chosen:
        require_reference(request)
    from cli.sealing import Sealing

    converts = bool(chosen or conditions)
    try:
        local, origin = fetch(source, request, prefer_converted=not converts, becomes=output)
    except SourceError as error:
        packages = only_packages(source)
        if packages is None or str(packages) in error.why:
            raise
        why = f"it is here as Core ML packages alone ({packages}), and {error.why}"
        raise SourceError(error.what, why, error.fix) from error
    adapters = [fetch_adapter(adapter, request) for adapter in chosen.get("lora", ())]
    if adapters:
        chosen["lora"] = [adapter for adapter, _ in adapters]
    of_drafter = None
    if "drafter" in chosen:
        chosen["drafter"], of_drafter = fetch_drafter(chosen["drafter"], request)
    sealing = Sealing(output, origin, adapters, expected, of_drafter)
    if local.suffix != ".litertlm":
        with ExitStack() as stack:
            judge, accepted = None, dict[str, float]()
            if conditions:
                reference = stack.enter_context(_float_reference(request, source, chosen, local))

                def judge(finished: Path) -> None:
                    accepted.update(_accept(request, conditions, output, reference, finished))

            _convert(local, source, output, chosen, request, sealing, judge)
            if accepted:
                _note_accepted(output, accepted)
    elif converts:
        raise converted_already(request.model)
    else:
        _adopt(local, output, sealing)
    return output


def accepted_by(request: Request) -> tuple[Condition, ...]:
    """What a result must hold to get its name.

    Raises:
        OptionError: nobody can read it.
    """
    if request.accept is None:
        return ()
    from cli.accept import parse_accept

    return parse_accept(request.accept)


def _accept(
    request: Request,
    conditions: Sequence[Condition],
    output: Path,
    reference: Path,
    bundle: Path,
) -> dict[str, float]:
    """What was measured of a bundle, by the conditions that it holds.

    Args:
        bundle: where it lies before it is `output`, or that.

    Raises:
        OutputError: it is too far from its source in float.
    """
    from cli.accept import require_accepted

    say(request, f"{output.name}: measuring what conversion cost")
    fix = "choose a wider --quantize"
    if request.calibrate is None:
        fix = f"add --calibrate self, or {fix}"
    consequence = f"nothing was written, {fix}"
    if bundle == output:
        consequence = "it was there before and is kept, --force converts anew"
    named = reference.with_name("measured.litertlm")  # the engine looks at how a name ends
    named.symlink_to(bundle.absolute())
    found = require_accepted(conditions, named, reference, output, consequence, request.quiet)
    told = ", ".join(f"{condition} ({value:.4g})" for condition, value in found.items())
    say(request, f"accepted: {told}")
    return found


def _note_accepted(output: Path, found: dict[str, float]) -> None:
    from converter.receipt import add_to_receipt, receipt_path

    if receipt_path(output).is_file():
        add_to_receipt(output, accept=found)


@contextmanager
def _float_reference(
    request: Request, source: Source, chosen: dict[str, Any], local: Path | None = None
) -> Iterator[Path]:
    """A model in fp32 with its adapters, gone afterwards.

    Args:
        chosen: its adapters are fetched where `local` is, which is None where it must be fetched.
    """
    from converter.output.scratch import scratch_folder

    options = {"quantize": "fp32", "prefill_lengths": (8,)}
    options |= {name: chosen[name] for name in ("lora", "cache_length") if name in chosen}
    if local is None:
        local, _ = fetch(source, request, prefer_converted=False)
        if "lora" in chosen:
            adapters = [fetch_adapter(adapter, request)[0] for adapter in chosen["lora"]]
            options["lora"] = adapters
    with scratch_folder("litert-lm-accept-") as folder:
        output = folder / "float.litertlm"
        _convert(local, source, output, options, replace(request, quiet=True, progress=None))
        yield output


def require_same(output: Path, receipt: dict[str, Any]) -> None:
    """Raise OutputError where a file that exists is not what a receipt says must come out."""
    from converter.receipt import differences

    changed = differences(receipt, output)
    if changed:
        raise OutputError(
            str(output),
            f"it exists, and is not what the receipt says ({'; '.join(changed)})",
            "add --force to replace it, or --output-dir to keep it",
        )


def preview(request: Request) -> PlanReport:
    """What a conversion would do. Nothing is written, and nothing downloaded.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.report import report

    chosen = request.chosen()
    if "engine" in chosen:
        raise OptionError(
            "--dry-run", "plans for the direct engine alone", "leave it or --engine torch out"
        )
    with opened_for_plan(request, chosen) as (checkpoint, source):
        converter = _converter(checkpoint, source, chosen)
        plan = converter.plan()
        say_found(request, plan.found)
        return report(converter, plan, source.output_path(request.output_dir))


@contextmanager
def opened_for_plan(
    request: Request, chosen: dict[str, Any]
) -> Iterator[tuple[Checkpoint, Source]]:
    """What is on this disk of a model, its adapters and drafter, which `chosen` has from then on.

    Raises:
        LiteRTLMError: see `converter.errors`; something would have to be downloaded.
    """
    source = source_of(request, chosen)
    _find_beside(chosen)
    local = fetched_before(source, request, prefer_converted=not chosen)
    if local.suffix.lower() == ".litertlm":
        raise OptionError(
            "--dry-run",
            f"{request.model} is converted already, there is nothing to plan",
            f"see what is in it with litert-lm-cli inspect {local}",
        )
    with open_checkpoint(local) as checkpoint, _with_drafter(chosen):
        yield checkpoint, source


def examine(request: Request) -> CheckReport:
    """What would become of a model: of one on the hub, no more than its headers is fetched.

    Raises:
        LiteRTLMError: what its conversion would be refused with.
    """
    from converter.check import check

    chosen = request.chosen()
    if "engine" in chosen:
        raise OptionError("check", "is about the direct engine alone", "leave --engine torch out")
    with opened_for_check(request, chosen) as (checkpoint, source, has_text):
        return check(checkpoint, source.name, _options(chosen), has_text)


@contextmanager
def opened_for_check(
    request: Request, chosen: dict[str, Any]
) -> Iterator[tuple[Checkpoint, Source, bool]]:
    """A model, or no more than its headers where it is on the hub; and whether its text is there.

    Adapters and a drafter are those that `chosen` has from then on.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.output.scratch import scratch_folder

    source = source_of(request, chosen)
    _find_beside(chosen)
    local = local_copy_of(source, request, prefer_converted=False)
    if local is not None:
        _refuse_converted(request, local)
        with open_checkpoint(local) as checkpoint, _with_drafter(chosen):
            yield checkpoint, source, True
        return
    if source.kind == "demo":
        raise SourceError(
            request.model, "it comes in one piece, which is not here", "litert-lm-cli run demo"
        )
    with scratch_folder("litert-lm-cli-check-") as folder:
        try:
            headers = fetch_headers(source, request, folder)
            _refuse_converted(request, headers)
            with open_checkpoint(headers) as checkpoint, _with_drafter(chosen):
                yield checkpoint, source, False
        except LiteRTLMError as error:  # which says where the file lies that nobody will see
            what, why, fix = (
                text.replace(str(folder), request.model)
                for text in (error.what, error.why, error.fix)
            )
            raise type(error)(what, why, fix) from error


def _find_beside(chosen: dict[str, Any]) -> None:
    """Put what is on this disk of adapters and a drafter in their places."""
    if "lora" in chosen:
        chosen["lora"] = [adapter_fetched_before(adapter) for adapter in chosen["lora"]]
    if "drafter" in chosen:
        chosen["drafter"] = drafter_fetched_before(chosen["drafter"])


@contextmanager
def _with_drafter(chosen: dict[str, Any]) -> Iterator[list[Path]]:
    """The files of the drafter that `chosen` names, and there from then on the drafter, open."""
    source = chosen.get("drafter")
    if source is None:
        yield []
        return
    from converter.options import DrafterSource

    with open_checkpoint(source.path) as checkpoint:
        chosen["drafter"] = DrafterSource(checkpoint, source.repo_id or source.name)
        yield [*checkpoint.files]


def _refuse_converted(request: Request, local: Path) -> None:
    if local.suffix.lower() == ".litertlm":
        raise OptionError(
            request.model,
            "it is converted already, and this reads what models are made of",
            f"name its folder, GGUF or repository, or see litert-lm-cli inspect {local}",
        )


def try_out(output: Path) -> str:
    """Load a result and ask it easy questions; what it did, which its receipt says from then on.

    Raises:
        EngineError: it makes no sense, or does not run.
    """
    from dataclasses import asdict

    from converter.receipt import add_to_receipt, receipt_path
    from runner.check import check, require
    from runner.engine import Model
    from runner.evaluation import TEXT

    with Model(output) as model:
        found = check(model, TEXT.read_text(encoding="utf-8"))
    if receipt_path(output).is_file():
        add_to_receipt(output, check=asdict(found))
    return require(output, found)


def require_reference(request: Request) -> None:
    """Make sure that the torch engine can run; where it cannot, offer to install it.

    Raises:
        LiteRTLMError: it is not installed, and nobody said yes.
    """
    from converter import home
    from converter.torch import reference

    if reference.is_installed():
        return
    may_ask = home.IS_CHECKOUT and request.asks and not request.quiet
    if may_ask and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(
            "litert-lm-cli: --engine torch needs PyTorch and litert-torch in "
            f"{reference.ENVIRONMENT} (2 GB or more). Install them now? [y/N] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            reference.install()
            return
    raise OptionError(
        "--engine torch", "PyTorch and litert-torch are not installed", reference.HOW_TO_INSTALL
    )


def in_float(request: Request, folder: Path) -> Path:
    """A model as a `.litertlm` file in fp32, made in `folder`; a `.litertlm` file as it is.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    source = source_of(request, {})
    local, _ = fetch(source, request, prefer_converted=False)
    if local.suffix.lower() == ".litertlm":
        return local
    output = folder / "float.litertlm"
    _convert(local, source, output, {"quantize": "fp32", "prefill_lengths": (8,)}, request)
    return output


@contextmanager
def source_checkpoint(request: Request) -> Iterator[Checkpoint]:
    """A model's own weights, open; downloaded where they are remote.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    local, _ = fetch(source_of(request, {}), request, prefer_converted=False)
    if local.suffix.lower() == ".litertlm":
        raise SourceError(
            request.model, "it is converted already", "name the model that it was made of"
        )
    with open_checkpoint(local) as checkpoint:
        yield checkpoint


@contextmanager
def source_network(request: Request) -> Iterator[Network]:
    """The network of a model's own weights, with its adapters; downloaded where it is remote.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.network import read_network

    chosen = request.chosen()
    source = source_of(request, chosen)
    local, _ = fetch(source, request, prefer_converted=False)
    _refuse_converted(request, local)
    adapters = [fetch_adapter(adapter, request)[0] for adapter in chosen.get("lora", ())]
    with open_checkpoint(local) as checkpoint:
        yield read_network(checkpoint, source.name, adapters)


def converted_already(model: str) -> OptionError:
    return OptionError(
        model,
        "it is converted already, its scheme and lengths are fixed",
        "leave the conversion options out, or convert the original model",
    )


def _adopt(file: Path, output: Path, sealing: Sealing) -> None:
    """Give a downloaded bundle its place, without a second copy where the file system can."""
    from converter.litertlm.inspection import read_bundle
    from converter.output.atomic_file import link_or_copy

    read_bundle(file)  # a damaged one is refused before it is taken for a model
    sealing.begin([file])
    with sealing.naming():
        link_or_copy(file, output, lambda _: sealing.seal(file, None, None))


def _convert(
    local: Path,
    source: Source,
    output: Path,
    chosen: dict[str, Any],
    request: Request,
    sealing: Sealing | None = None,
    judge: Callable[[Path], None] | None = None,
) -> None:
    """
    Args:
        judge: is told where the complete file lies, and may raise to keep it from getting its name.
    """
    from cli.progress import byte_progress, stage_progress

    chosen = dict(chosen)
    with (
        stage_progress(request.quiet) as tell,
        open_checkpoint(local) as checkpoint,
        _with_drafter(chosen) as of_drafter,
    ):
        if sealing is not None:
            sealing.begin(checkpoint.files, of_drafter)
        # What takes time to import comes after this: while the files are hashed.
        from converter.base import IGNORED_KEYS
        from converter.report import weights_bytes
        from converter.tflite.kv_cache import Target

        if request.backend == "gpu" or "engine" in chosen:
            chosen = {"target": Target.GPU, **chosen}
        converter = _converter(checkpoint, source, chosen, tell)
        if "bits" in chosen and "calibrate" in chosen:
            say(request, f"{source.name}: measuring what each matrix would lose in int4")
        plan = converter.plan()
        _check_disk(converter, plan, output)
        say(
            request,
            f"{source.name}: {plan.family.name}, {plan.quantization.name}, "
            f"KV cache {plan.cache_length}, {plan.model.nbytes / 1e6:.0f} MB -> {output}",
        )
        if plan.memory_fit is not None:
            from cli.inspect import fit_line

            say(request, fit_line(plan.memory_fit))
        say_found(request, plan.found)

        # The torch engine tells its stages instead.
        hidden = request.quiet or "engine" in chosen
        with (
            sealing.naming() if sealing is not None else nullcontext(),
            byte_progress(weights_bytes(plan), hidden, request.progress) as progress,
        ):
            seal = None if sealing is None else sealing.of_conversion(converter, plan)
            if seal is not None and judge is not None:
                seal = _judged(seal, judge)
            converter.write(plan, output, progress, seal)
    for note in plan.metadata.notes:
        say(request, note)
    if ignored := plan.text().system.get(IGNORED_KEYS):
        say(request, f"config.json: ignored, as transformers does: {ignored}")


def _judged(seal: Seal, judge: Callable[[Path], None]) -> Seal:
    def judged(finished: Path) -> Callable[[], None]:
        judge(finished)
        return seal(finished)

    return judged


def say_found(request: Request, found: Mapping[str, str]) -> None:
    """What a user should know about the weights, by what it concerns."""
    for what, finding in found.items():
        say(request, f"{what}: {finding}")


def _converter(
    checkpoint: Checkpoint,
    source: Source,
    chosen: dict[str, Any],
    tell: Callable[[str], None] = lambda _: None,
) -> ModelConverter:
    """What converts an open checkpoint; `tell` is told the stages of slow ones."""
    from converter.base import ModelConverter

    options = _options(chosen)
    if "engine" in chosen:
        from converter.torch.reference import ReferenceConverter

        return ReferenceConverter(checkpoint, source.name, options, tell)
    return ModelConverter(checkpoint, source.name, options)


def _options(chosen: dict[str, Any]) -> ConvertOptions:
    from converter.options import ConvertOptions

    return ConvertOptions(**{key: chosen[key] for key in chosen if key != "engine"})


def _check_disk(converter: ModelConverter, plan: Plan, output: Path) -> None:
    """Raise OutputError if the disk has no room for the result."""
    from converter.report import disk_free, disk_needed

    free = disk_free(output)
    # If so, there is no need to wait for the exact size.
    if free >= plan.model.nbytes + _TEXT_ROOM + converter.scratch_bytes(plan):
        return
    from cli.inspect import size

    needed = disk_needed(converter, plan)
    if needed > free:
        raise OutputError(
            str(output),
            f"needs {size(needed)} of disk, {size(free)} are free",
            "free some or choose another folder with --output-dir",
        )


def open_checkpoint(local: Path) -> Checkpoint:
    """Open a folder of safetensors, or a GGUF file."""
    if local.is_dir():
        from converter.checkpoint.safetensors import open_folder

        return open_folder(local)
    from converter.checkpoint.gguf import open_gguf

    return open_gguf(local)
