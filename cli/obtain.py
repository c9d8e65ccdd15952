"""From what the user typed to a `.litertlm` file on disk: keep, download or convert."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import OptionError, OutputError, SourceError

if TYPE_CHECKING:
    from cli.sealing import Sealing
    from converter.base import ModelConverter, Plan
    from converter.checkpoint.base import Checkpoint
    from converter.checkpoint.sources import Source
    from converter.receipt import Origin
    from converter.report import PlanReport

# More than what stands beside a network in the file takes: tokenizer, template and metadata.
_TEXT_ROOM = 1 << 28


def obtain(
    args: argparse.Namespace,
    output_dir: Path | None = None,
    force: bool = False,
    announce_kept: bool = False,
) -> Path:
    """The path of MODEL's `.litertlm` file, made if need be.

    Args:
        args: holds `model` and the options of `cli.convert.add_conversion_options`.
        output_dir: where the result goes, None for the models folder.
        force: replace an existing result.
        announce_kept: say so when there is one.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.receipt import settle

    expected: dict[str, Any] | None = getattr(args, "receipt", None)
    if expected is None:
        chosen = _chosen_options(args)
    else:
        from cli.sealing import options_of_receipt

        chosen = options_of_receipt(expected)
    source = _source_of(args, chosen)
    if expected is not None:
        source = replace(source, name=expected["output"]["name"])
    output = source.output_path(output_dir)
    if source.kind == "litertlm":
        if force or output_dir is not None or chosen or expected is not None:
            raise _converted_already(args.model)
        return output
    settle(output)
    if output.exists() and not force:
        # To `run` an existing file is what was meant, unless other options were asked for.
        if announce_kept or chosen:
            _say(args, f"keeping {output}, which exists (convert --force replaces it)")
        return output

    if "engine" in chosen:
        require_reference(args)
    from cli.sealing import Sealing

    local, origin = _fetch(source, args, prefer_converted=not chosen, becomes=output)
    adapter = None
    if "lora" in chosen:
        commit = None if expected is None else expected["options"]["adapter"].get("commit")
        chosen["lora"], adapter = _fetch_adapter(chosen["lora"], args, commit)
    sealing = Sealing(output, origin, adapter, expected)
    if local.suffix != ".litertlm":
        _convert(local, source, output, chosen, args, sealing)
    elif chosen:
        raise _converted_already(args.model)
    else:
        _adopt(local, output, sealing)
    return output


def preview(args: argparse.Namespace, output_dir: Path | None = None) -> PlanReport:
    """What a conversion of MODEL would do. Nothing is written, and nothing downloaded.

    Args:
        args: as in `obtain`.
        output_dir: where the result would go, None for the models folder.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.report import report

    chosen = _chosen_options(args)
    if "engine" in chosen:
        raise OptionError(
            "--dry-run", "plans for the direct engine alone", "leave it or --engine torch out"
        )
    source = _source_of(args, chosen)
    if "lora" in chosen:
        chosen["lora"] = Path(chosen["lora"])
    local = _fetched_before(source, args, prefer_converted=not chosen)
    if local.suffix.lower() == ".litertlm":
        raise OptionError(
            "--dry-run",
            f"{args.model} is converted already, there is nothing to plan",
            f"see what is in it with litert-lm-cli inspect {local}",
        )
    with _planned(local, source, chosen) as (converter, plan):
        return report(converter, plan, source.output_path(output_dir))


def require_reference(args: argparse.Namespace) -> None:
    """Make sure that the torch engine can run; where it cannot, offer to install it.

    Raises:
        LiteRTLMError: it is not installed, and nobody said yes.
    """
    from converter.torch import reference

    if reference.is_installed():
        return
    if sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() and not args.quiet:
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
        "--engine torch", "PyTorch and litert-torch are not installed", "run ./setup --reference"
    )


def in_float(model: str, folder: Path, args: argparse.Namespace) -> Path:
    """MODEL as a `.litertlm` file in fp32, made in `folder`; a `.litertlm` file as it is.

    Args:
        args: holds `revision`, `quiet` and `offline`.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.checkpoint.sources import models_dir, parse_model

    source = parse_model(model, models_dir())
    local, _ = _fetch(source, args, prefer_converted=False)
    if local.suffix.lower() == ".litertlm":
        return local
    output = folder / "float.litertlm"
    _convert(local, source, output, {"quantize": "fp32", "prefill_lengths": (8,)}, args)
    return output


@contextmanager
def source_checkpoint(model: str, args: argparse.Namespace) -> Iterator[Checkpoint]:
    """MODEL's own weights, open; downloaded where they are remote.

    Args:
        args: holds `revision`, `quiet` and `offline`.

    Raises:
        LiteRTLMError: see `converter.errors`.
    """
    from converter.checkpoint.sources import models_dir, parse_model

    local, _ = _fetch(parse_model(model, models_dir()), args, prefer_converted=False)
    if local.suffix.lower() == ".litertlm":
        raise SourceError(model, "it is converted already", "name the model that it was made of")
    with open_checkpoint(local) as checkpoint:
        yield checkpoint


def _chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """What shapes the result: fields of `ConvertOptions`, and `engine` where it is not ours.

    Bad ones are refused before any work.
    """
    chosen: dict[str, Any] = {}
    if args.quantize is not None:
        from converter.weights.quantization import parse_quantization

        chosen["quantize"] = parse_quantization(args.quantize).name
    if args.clip is not None:
        from converter.weights.quantization import Clip

        chosen["clip"] = Clip(args.clip)
    if args.lora is not None:
        chosen["lora"] = args.lora
    if args.prefill_seq_len is not None:
        from converter.options import parse_prefill_lengths

        chosen["prefill_lengths"] = parse_prefill_lengths(args.prefill_seq_len)
    if args.kv_cache_max_len is not None:
        chosen["cache_length"] = args.kv_cache_max_len
    if args.target is not None:
        from converter.tflite.kv_cache import Target

        chosen["target"] = Target(args.target)
    if args.engine == "torch":
        chosen["engine"] = args.engine
    return chosen


def _source_of(args: argparse.Namespace, chosen: dict[str, Any]) -> Source:
    """What MODEL names; under a name of its own, where an adapter makes another model of it."""
    from converter.checkpoint.sources import models_dir, parse_model

    source = parse_model(args.model, models_dir())
    for note in source.notes:
        _say(args, note)
    if "lora" not in chosen:
        return source
    adapter = Path(chosen["lora"].rstrip("/")).name
    return replace(source, name=f"{source.name}-{adapter}")


def _fetch_adapter(
    text: str, args: argparse.Namespace, revision: str | None
) -> tuple[Path, Origin]:
    """The folder of an adapter, downloaded where it is remote; and where it is from."""
    from converter.checkpoint.sources import models_dir, parse_adapter
    from converter.receipt import Origin

    path, repo_id = parse_adapter(text)
    if path is not None:
        return path, Origin("folder", str(path.absolute()))
    from converter.checkpoint.hub import download

    assert repo_id is not None

    def announce(_kind: str) -> None:
        _say(args, "Adapter not found locally. Downloading...")

    folder = models_dir().joinpath(*repo_id.split("/"), "adapter")
    fetched = download(
        repo_id,
        folder,
        revision=revision,
        quiet=args.quiet,
        is_adapter=True,
        offline=args.offline,
        announce=announce,
    )
    return fetched.path, Origin("hub", repo_id, commit=fetched.commit)


def _converted_already(model: str) -> OptionError:
    return OptionError(
        model,
        "it is converted already, its scheme and lengths are fixed",
        "leave the conversion options out, or convert the original model",
    )


def _fetch(
    source: Source, args: argparse.Namespace, prefer_converted: bool, becomes: Path | None = None
) -> tuple[Path, Origin]:
    """The local folder or file of a source, downloaded where it is remote; and where it is from.

    Args:
        args: holds `revision`, `quiet` and `offline`.
        becomes: where the result will be, where one stays.
    """
    from converter.receipt import Origin

    if source.kind == "demo":
        from converter.checkpoint.demo import fetch_demo

        demo = fetch_demo(source.checkpoint_dir, quiet=args.quiet, offline=args.offline)
        return demo, Origin("demo", "demo")
    if source.kind != "hub":
        assert source.path is not None
        return source.path, Origin(source.kind, str(source.path.absolute()))

    from converter.checkpoint.gguf import check_head
    from converter.checkpoint.hub import download
    from converter.registry import family_of

    assert source.repo_id is not None

    def announce(kind: str) -> None:
        _say(args, "Model not found locally. Downloading...")
        if becomes is not None:
            how = "it is converted already" if kind == "litertlm" else "then it is converted"
            _say(args, f"{source.repo_id}: {how}, to {becomes}")

    fetched = download(
        source.repo_id,
        source.checkpoint_dir,
        revision=args.revision,
        quiet=args.quiet,
        file=source.file,
        prefer_converted=prefer_converted,
        check_config=family_of,
        check_gguf=check_head,
        offline=args.offline,
        announce=announce,
    )
    for note in fetched.notes:
        _say(args, note)
    return fetched.path, Origin("hub", source.repo_id, args.revision, fetched.commit, source.file)


def _fetched_before(source: Source, args: argparse.Namespace, prefer_converted: bool) -> Path:
    """The local folder or file of a source; one that would have to be downloaded is refused."""
    if source.path is not None:
        return source.path
    assert source.repo_id is not None
    if source.kind == "demo":
        from converter.checkpoint.demo import fetched_demo

        found = fetched_demo(source.checkpoint_dir)
    else:
        from converter.checkpoint.hub import local_copy

        copy = local_copy(
            source.repo_id, source.checkpoint_dir, args.revision, source.file, prefer_converted
        )
        found = None if copy is None else copy.path
    if found is None:
        raise SourceError(
            args.model,
            "it is not downloaded yet, and a dry run downloads nothing",
            f"fetch it first (hf download {source.repo_id} --local-dir DIR) and pass what arrived, "
            "or leave --dry-run out",
        )
    _say(args, f"planned with what was downloaded to {found}, nobody was asked for a newer one")
    return found


def _adopt(file: Path, output: Path, sealing: Sealing) -> None:
    """Give a downloaded bundle its place, without a second copy where the file system can."""
    from converter.litertlm.inspection import read_bundle
    from converter.output.atomic_file import link_or_copy

    read_bundle(file)  # a damaged one is refused before it is taken for a model
    sealing.check_sources([file])
    with sealing.naming():
        link_or_copy(file, output, lambda _: sealing.seal(file, [file], None, None))


def _convert(
    local: Path,
    source: Source,
    output: Path,
    chosen: dict[str, Any],
    args: argparse.Namespace,
    sealing: Sealing | None = None,
) -> None:
    from cli.progress import byte_progress, stage_progress
    from converter.report import weights_bytes
    from converter.tflite.kv_cache import Target

    if getattr(args, "backend", "cpu") == "gpu" or "engine" in chosen:
        chosen = {"target": Target.GPU, **chosen}
    with (
        stage_progress(args.quiet) as tell,
        _planned(local, source, chosen, tell) as (converter, plan),
    ):
        seal = None if sealing is None else sealing.of_conversion(converter, plan)
        _check_disk(converter, plan, output)
        _say(
            args,
            f"{source.name}: {plan.family.name}, {plan.quantization.name}, "
            f"KV cache {plan.cache_length}, {plan.model.nbytes / 1e6:.0f} MB -> {output}",
        )

        # The torch engine tells its stages instead.
        hidden = args.quiet or "engine" in chosen
        with (
            sealing.naming() if sealing is not None else nullcontext(),
            byte_progress(weights_bytes(plan), hidden) as progress,
        ):
            converter.write(plan, output, progress, seal)
    for note in plan.metadata.notes:
        _say(args, note)


@contextmanager
def _planned(
    local: Path,
    source: Source,
    chosen: dict[str, Any],
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[ModelConverter, Plan]]:
    """The converter of an open checkpoint, and its plan; `tell` is told the stages of slow ones."""
    from converter.base import ModelConverter
    from converter.options import ConvertOptions

    if source.kind == "demo":
        # So small a model that int8 activations change what it says (CONVERSION_STATUS.md).
        chosen = {"quantize": "fp16", **chosen}
    options = ConvertOptions(**{key: chosen[key] for key in chosen if key != "engine"})
    with open_checkpoint(local) as checkpoint:
        if "engine" in chosen:
            from converter.torch.reference import ReferenceConverter

            converter: ModelConverter = ReferenceConverter(checkpoint, source.name, options, tell)
        else:
            converter = ModelConverter(checkpoint, source.name, options)
        yield converter, converter.plan()


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


def _say(args: argparse.Namespace, text: str) -> None:
    """A line of progress: on stderr, so that stdout carries the result alone."""
    if not args.quiet:
        printable = "".join(c if c.isprintable() else "?" for c in text)
        print(f"litert-lm-cli: {printable}", file=sys.stderr)
