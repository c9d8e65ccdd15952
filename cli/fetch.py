"""Brings what the user named to this disk: a model, an adapter, or headers alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import OptionError, SourceError

if TYPE_CHECKING:
    from cli.request import Request
    from converter.checkpoint.sources import AdapterSource, Source
    from converter.receipt import Origin
    from converter.weights.adapters import WeightedAdapter


def source_of(request: Request, chosen: dict[str, Any]) -> Source:
    """What MODEL names; under a name of its own, where adapters make another model of it."""
    from converter.checkpoint.sources import models_dir, parse_model

    source = parse_model(request.model, models_dir())
    if request.revision is not None and request.receipt is None and source.kind != "hub":
        raise OptionError(
            f"--revision {request.revision}",
            f"{request.model} is not on the hub, and has one version",
            "leave it out",
        )
    for note in source.notes:
        say(request, note)
    names = (source.name, *(adapter.name for adapter in chosen.get("lora", ())))
    return replace(source, name="-".join(names))


def fetch(
    source: Source, request: Request, prefer_converted: bool, becomes: Path | None = None
) -> tuple[Path, Origin]:
    """The local folder or file of a source, downloaded where it is remote; and where it is from.

    Args:
        becomes: where the result will be, where one stays.
    """
    from converter.receipt import Origin

    if source.kind == "demo":
        from converter.checkpoint.demo import fetch_demo

        demo = fetch_demo(source.checkpoint_dir, quiet=request.quiet, offline=request.offline)
        return demo, Origin("demo", "demo")
    if source.kind != "hub":
        assert source.path is not None
        return source.path, Origin(source.kind, str(source.path.absolute()))
    _refuse_made_here(source)

    from converter.checkpoint.gguf import check_head
    from converter.checkpoint.hub import download
    from converter.registry import family_of

    assert source.repo_id is not None
    revision = _revision(source, request)

    def announce(kind: str) -> None:
        say(request, "Model not found locally. Downloading...")
        if becomes is not None:
            how = "it is converted already" if kind == "litertlm" else "then it is converted"
            say(request, f"{source.repo_id}: {how}, to {becomes}")

    fetched = download(
        source.repo_id,
        source.checkpoint_dir,
        revision=revision,
        quiet=request.quiet,
        file=source.file,
        prefer_converted=prefer_converted,
        check_config=family_of,
        check_gguf=check_head,
        offline=request.offline,
        announce=announce,
    )
    for note in fetched.notes:
        say(request, note)
    return fetched.path, Origin("hub", source.repo_id, revision, fetched.commit, source.file)


def fetch_adapter(adapter: AdapterSource, request: Request) -> tuple[WeightedAdapter, Origin]:
    """An adapter on this disk, downloaded where it is remote; and where it is from."""
    from converter.receipt import Origin
    from converter.weights.adapters import WeightedAdapter

    if adapter.path is not None:
        kind = "gguf" if adapter.path.is_file() else "folder"
        merged = WeightedAdapter(adapter.path, adapter.weight)
        return merged, Origin(kind, str(adapter.path.absolute()))
    from converter.checkpoint.hub import download

    assert adapter.repo_id is not None

    def announce(_kind: str) -> None:
        say(request, "Adapter not found locally. Downloading...")

    fetched = download(
        adapter.repo_id,
        _folder_of(adapter),
        revision=adapter.commit,
        quiet=request.quiet,
        file=adapter.file,
        is_adapter=adapter.file is None,
        offline=request.offline,
        announce=announce,
    )
    merged = WeightedAdapter(fetched.path, adapter.weight, str(adapter))
    return merged, Origin("hub", adapter.repo_id, commit=fetched.commit, file=adapter.file)


def fetch_drafter(drafter: Source, request: Request) -> tuple[Source, Origin]:
    """A drafter on this disk, downloaded where it is remote; and where it is from."""
    from converter.receipt import Origin

    if drafter.path is not None:
        return drafter, Origin("folder", str(drafter.path.absolute()))
    from converter.checkpoint.hub import download
    from converter.drafter import check_drafter_config

    assert drafter.repo_id is not None
    fetched = download(
        drafter.repo_id,
        drafter.checkpoint_dir,
        revision=drafter.revision,
        quiet=request.quiet,
        prefer_converted=False,
        check_config=check_drafter_config,
        offline=request.offline,
        announce=lambda _: say(request, "Drafter not found locally. Downloading..."),
    )
    origin = Origin("hub", drafter.repo_id, drafter.revision, fetched.commit)
    return replace(drafter, path=fetched.path), origin


def drafter_fetched_before(drafter: Source) -> Source:
    """A drafter on this disk; one that would have to be downloaded is refused."""
    if drafter.path is not None:
        return drafter
    from converter.checkpoint.hub import local_copy

    assert drafter.repo_id is not None
    folder = drafter.checkpoint_dir
    copy = local_copy(drafter.repo_id, folder, drafter.revision, prefer_converted=False)
    if copy is None:
        raise SourceError(
            f"--draft {drafter.repo_id}",
            "it is not downloaded yet, and to look at it nothing is",
            "fetch it first (hf download) and pass what arrived",
        )
    return replace(drafter, path=copy.path)


def adapter_fetched_before(adapter: AdapterSource) -> WeightedAdapter:
    """An adapter on this disk; one that would have to be downloaded is refused."""
    from converter.weights.adapters import WeightedAdapter

    if adapter.path is not None:
        return WeightedAdapter(adapter.path, adapter.weight)
    from converter.checkpoint.hub import local_copy

    assert adapter.repo_id is not None
    copy = local_copy(
        adapter.repo_id,
        _folder_of(adapter),
        file=adapter.file,
        is_adapter=adapter.file is None,
    )
    if copy is None:
        raise SourceError(
            f"--lora {adapter}",
            "it is not downloaded yet, and to look at it nothing is",
            "fetch it first (hf download) and pass what arrived",
        )
    return WeightedAdapter(copy.path, adapter.weight, str(adapter))


def _folder_of(adapter: AdapterSource) -> Path:
    """Where an adapter of the hub goes: of several GGUFs in a repository, each into its own."""
    from converter.checkpoint.sources import models_dir

    assert adapter.repo_id is not None
    file = [] if adapter.file is None else adapter.file.removesuffix(".gguf").split("/")
    return models_dir().joinpath(*adapter.repo_id.split("/"), "adapter", *file)


def fetch_headers(source: Source, request: Request, folder: Path) -> Path:
    """What `open_checkpoint` takes of a model on the hub, in `folder`: see `hub_headers`."""
    from converter.checkpoint.gguf import check_head
    from converter.checkpoint.hub import download
    from converter.registry import family_of

    assert source.repo_id is not None
    return download(
        source.repo_id,
        folder,
        revision=_revision(source, request),
        quiet=request.quiet,
        file=source.file,
        prefer_converted=False,
        check_config=family_of,
        check_gguf=check_head,
        headers_only=True,
        offline=request.offline,
    ).path


def local_copy_of(source: Source, request: Request, prefer_converted: bool) -> Path | None:
    """The folder or file of a source that is on this disk; None where it is not."""
    if source.path is not None:
        return source.path
    assert source.repo_id is not None
    _refuse_made_here(source)
    if source.kind == "demo":
        from converter.checkpoint.demo import fetched_demo

        found = fetched_demo(source.checkpoint_dir)
    else:
        from converter.checkpoint.hub import local_copy

        copy = local_copy(
            source.repo_id,
            source.checkpoint_dir,
            _revision(source, request),
            source.file,
            prefer_converted,
        )
        found = None if copy is None else copy.path
    if found is not None:
        say(
            request,
            f"planned with what was downloaded to {found}, nobody was asked for a newer one",
        )
    return found


def fetched_before(source: Source, request: Request, prefer_converted: bool) -> Path:
    """The local folder or file of a source; one that would have to be downloaded is refused."""
    found = local_copy_of(source, request, prefer_converted)
    if found is None:
        raise SourceError(
            request.model,
            "it is not downloaded yet, and a dry run downloads nothing",
            f"fetch it first (hf download {source.repo_id} --local-dir DIR) and pass what arrived, "
            "or leave --dry-run out",
        )
    return found


def _refuse_made_here(source: Source) -> None:
    """Raise SourceError for a name in `list` that stands for what was made of a file or folder.

    The hub may have a model of this name, which would be another one.
    """
    from converter.checkpoint.files import status_of
    from converter.checkpoint.sources import LOCAL

    if source.home.parent.name != LOCAL:
        return
    what = str(source.repo_id)
    if packages := only_packages(source):
        raise SourceError(
            what,
            f"it is here as Core ML packages alone ({packages}), for Apple's systems",
            f"finish them on a Mac (docs/coreml.md), or convert {_made_of(packages)} without "
            "--target coreml",
        )
    output = source.output_path()
    if status_of(output) is not None:
        raise SourceError(
            what,
            f"it is the result {output}, and this is about what that was made of",
            f"name {_made_of(output)}",
        )


def only_packages(source: Source) -> Path | None:
    """The Core ML packages of a model, where they are all that was made of it."""
    from converter.checkpoint.files import status_of
    from converter.coreml.meta import META

    if status_of(source.packages_dir / META) is None or status_of(source.output_path()) is not None:
        return None
    return source.packages_dir


def _made_of(output: Path) -> str:
    """The source of a result, as its receipt says."""
    from converter.checkpoint.sources import shown
    from converter.receipt import read_receipt, receipt_path

    try:
        return shown(read_receipt(receipt_path(output))["source"]["model"])
    except SourceError:
        return "what it was made of"


def _revision(source: Source, request: Request) -> str | None:
    """The revision that was asked for, as an option or in the address of a page."""
    asked = request.revision
    if asked is not None and source.revision not in (None, asked):
        raise OptionError(
            f"--revision {asked}", f"the address names {source.revision}", "leave one of them out"
        )
    return asked or source.revision


def say(request: Request, text: str) -> None:
    """A line of progress: on stderr, so that stdout carries the result alone."""
    if not request.quiet:
        printable = "".join(c if c.isprintable() else "?" for c in text)
        print(f"litert-lm-cli: {printable}", file=sys.stderr)
