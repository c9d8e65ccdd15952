"""From what the user typed to a `.litertlm` file on disk: keep, download or convert."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import OptionError

if TYPE_CHECKING:
    from converter.base import Progress
    from converter.checkpoint.base import Checkpoint
    from converter.sources import Source


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
    from converter.sources import models_dir, parse_model

    chosen = _chosen_options(args)
    source = parse_model(args.model, models_dir())
    output = source.output_path(output_dir)
    if source.kind == "litertlm":
        if force or output_dir is not None or chosen:
            raise _converted_already(args.model)
        return output
    if output.exists() and not force:
        # To `run` an existing file is what was meant, unless other options were asked for.
        if announce_kept or chosen:
            _say(args, f"keeping {output}, which exists (convert --force replaces it)")
        return output

    local = _fetch(source, args, prefer_converted=not chosen)
    if local.suffix != ".litertlm":
        if source.kind == "demo":
            # So small a model that int8 activations change what it says (CONVERSION_STATUS.md).
            chosen = {"quantize": "fp16", **chosen}
        _convert(local, source.name, output, chosen, args)
    elif chosen:
        raise _converted_already(args.model)
    else:
        _adopt(local, output)
    return output


def _chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `ConvertOptions` from the command line; bad ones are refused before any work."""
    chosen: dict[str, Any] = {}
    if args.quantize is not None:
        from converter.quantization import get_scheme

        chosen["quantize"] = get_scheme(args.quantize).name
    if args.prefill_seq_len is not None:
        from cli.convert import prefill_lengths

        chosen["prefill_lengths"] = prefill_lengths(args.prefill_seq_len)
    if args.kv_cache_max_len is not None:
        chosen["cache_length"] = args.kv_cache_max_len
    return chosen


def _converted_already(model: str) -> OptionError:
    return OptionError(
        model,
        "it is converted already, its scheme and lengths are fixed",
        "leave the conversion options out, or convert the original model",
    )


def _fetch(source: Source, args: argparse.Namespace, prefer_converted: bool) -> Path:
    """The local folder or file of a source, downloaded where it is remote."""
    if source.kind == "demo":
        from converter.checkpoint.demo import fetch_demo

        return fetch_demo(source.checkpoint_dir, quiet=args.quiet)
    if source.kind != "hub":
        assert source.path is not None
        return source.path

    from converter.checkpoint.hub import download
    from converter.registry import family_of

    assert source.repo_id is not None
    _say(args, f"Model not found locally. Downloading {source.repo_id} ...")
    fetched = download(
        source.repo_id,
        source.checkpoint_dir,
        revision=args.revision,
        quiet=args.quiet,
        file=source.file,
        prefer_converted=prefer_converted,
        check_config=family_of,
    )
    for note in fetched.notes:
        _say(args, note)
    return fetched.path


def _adopt(file: Path, output: Path) -> None:
    """Give a downloaded bundle its place, without a second copy where the file system can."""
    from converter.bundle import link_or_copy
    from converter.inspection import read_bundle

    read_bundle(file)  # a damaged one is refused before it is taken for a model
    link_or_copy(file, output)


def _convert(
    local: Path, name: str, output: Path, chosen: dict[str, Any], args: argparse.Namespace
) -> None:
    from converter.base import ConvertOptions, ModelConverter

    with open_checkpoint(local) as checkpoint:
        converter = ModelConverter(checkpoint, name, ConvertOptions(**chosen))
        plan = converter.plan()
        _say(
            args,
            f"{name}: {plan.family.name}, {plan.scheme.name}, KV cache {plan.cache_length}, "
            f"{plan.bundle.nbytes / 1e6:.0f} MB -> {output}",
        )
        with _progress(args, plan.model.nbytes) as progress:
            converter.write(plan, output, progress)
    for note in plan.metadata.notes:
        _say(args, note)


def open_checkpoint(local: Path) -> Checkpoint:
    """Open a `.gguf` file or a folder of safetensors."""
    if local.suffix.lower() == ".gguf":
        from converter.checkpoint.gguf import open_gguf

        return open_gguf(local)
    from converter.checkpoint.safetensors import open_folder

    return open_folder(local)


@contextmanager
def _progress(args: argparse.Namespace, total: int) -> Iterator[Progress]:
    """A bar on a terminal's stderr; elsewhere nothing, as a conversion takes seconds."""
    if args.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns: tuple[Any, ...] = (BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total)
        yield lambda nbytes: bars.advance(task, nbytes)


def _say(args: argparse.Namespace, text: str) -> None:
    """A line of progress: on stderr, so that stdout carries the result alone."""
    if not args.quiet:
        printable = "".join(c if c.isprintable() else "?" for c in text)
        print(f"litert-lm-cli: {printable}", file=sys.stderr)
