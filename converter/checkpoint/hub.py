"""Fetch a model from the Hugging Face hub, or from a mirror of it (HF_ENDPOINT).

The repository is listed first, and everything follows from the list: what kind of model it is,
which files are needed, how big they are, what their hashes must be. config.json comes first, so
that an unsupported model costs a second and not an evening.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from converter.checkpoint.files import (
    ADAPTER_FILES,
    INDEX_NAME,
    SIDE_FILES,
    SINGLE_NAME,
    is_plain_name,
    is_plain_path,
    weight_files,
    why_not_a_model,
    why_not_an_adapter,
)
from converter.checkpoint.gguf_names import (
    all_parts,
    default_model,
    gguf_models,
    part_name,
    split_name,
    with_tag,
)
from converter.checkpoint.hub_token import find_token
from converter.checkpoint.progress import DownloadProgress, write_line
from converter.errors import SourceError

if TYPE_CHECKING:
    from converter.checkpoint.hub_repository import Repository

# These stand in the names of .litertlm files made for one accelerator, one chip or the browser.
_NOT_GENERIC = re.compile(
    r"gpu|npu|web|qualcomm|mediatek|tensor_g|intel|exynos|sm[78]\d|qcs|mt6", re.IGNORECASE
)
_FOLDERS = ("safetensors", "adapter")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0  # seconds, where the hub has too many requests
_NEAR_NAMES = 3
_GGUF_HEAD = 1 << 16  # bytes, in which converters say what model it is


@dataclass(frozen=True)
class HubDownload:
    """A model that is here now.

    Attributes:
        kind: `safetensors` (`path` is a folder), `gguf` or `litertlm` (`path` is that file).
        path: what to open.
        repo_id, commit: exactly what it is.
        notes: what the user should be told, a line each.
    """

    kind: str
    path: Path
    repo_id: str
    commit: str
    notes: tuple[str, ...] = ()


def download(
    repo_id: str,
    target: Path,
    revision: str | None = None,
    quiet: bool = False,
    *,
    file: str | None = None,
    prefer_converted: bool = True,
    check_config: Callable[[dict[str, Any]], object] | None = None,
    check_gguf: Callable[[str, bytes], object] | None = None,
    is_adapter: bool = False,
    headers_only: bool = False,
    offline: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> HubDownload:
    """Bring a model's files into the folder `target`, or find that they are there already.

    Args:
        repo_id: `org/name`.
        target: made if missing. Complete files in it are kept, unfinished ones continued.
        revision: branch, tag or commit; None is the repository's main branch.
        quiet: no progress on stderr.
        file: the one .gguf or .litertlm file to take, or the tag of a GGUF (`Q4_K_M`).
        prefer_converted: take a .litertlm where the repository has one, even beside weights.
        is_adapter: take a LoRA adapter and nothing else.
        check_config: called with the parsed config.json before anything big is fetched; what it
            raises ends the download.
        check_gguf: the same with the name and the first bytes of a GGUF.
        headers_only: of weights fetch the headers alone (`hub_headers`), and no tokenizer; `target`
            is then for nothing else.
        offline: ask nobody: a complete copy is here, or it is an error.
        announce: called with the kind of what will be fetched, where anything will.

    Raises:
        SourceError: no such model, no permission, no network, not a model, damaged on the way.
        UnsupportedError: only an adapter, or only PyTorch pickles.
        OutputError: the disk is full or the folder cannot be written.
    """
    if revision is not None and _COMMIT.fullmatch(revision):  # a commit never changes
        local = local_copy(repo_id, target, revision, file, prefer_converted, is_adapter)
        if local is not None:
            return local

    # It has no effect any more, and the client says so on two lines.
    warnings.filterwarnings("ignore", message=".*HF_HUB_ENABLE_HF_TRANSFER")
    import httpx
    from huggingface_hub.utils import WeakFileLock

    from converter.checkpoint import hub_errors, hub_headers, hub_network, hub_repository

    endpoint = hub_network.read_endpoint(os.environ)
    if offline:
        local = local_copy(repo_id, target, revision, file, prefer_converted, is_adapter)
        if local is not None:
            return local
        request = hub_errors.Request(repo_id, revision, endpoint, None)
        raise hub_errors.not_here(request)

    token, token_source = find_token()
    request = hub_errors.Request(repo_id, revision, endpoint, token_source)

    def attempt() -> HubDownload:
        # First of all, as a model that nobody has shall leave no folder.
        repository = hub_repository.Repository(request, token, target)
        listed = list(repository.files)
        kind, names, notes = (
            choose_adapter(repo_id, listed)
            if is_adapter
            else choose_files(repo_id, listed, file, prefer_converted)
        )
        work = target / hub_repository.WORK
        work.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(work / "lock"):  # a second process waits, then finds it done
            repository.begin(kind)
            if kind == "safetensors":
                names = _complete_names(repository, names, check_config)
            elif kind == "gguf" and check_gguf is not None and not (target / names[0]).exists():
                check_gguf(f"{repo_id}/{names[0]}", repository.read(names[0], 0, _GGUF_HEAD))
            names = [*names, *_papers_of(repository)]
            if headers_only:
                hub_headers.bring_headers(repository, names)
            else:
                repository.bring(kind, names, quiet, announce, asked=file)
        path = target if kind in _FOLDERS else target / names[0]
        return HubDownload(kind, path, repo_id, repository.commit, tuple(notes))

    waited, wait = 0.0, _FIRST_WAIT
    while True:
        try:
            return attempt()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            if hub_errors.is_unreachable(error):
                local = local_copy(repo_id, target, revision, file, prefer_converted, is_adapter)
                if local is not None:
                    return local
            seconds = None
            if isinstance(error, hub_errors.RateLimited):
                seconds, wait = error.seconds or wait, wait * 2
            if seconds is None or waited + seconds > _LONGEST_WAIT:
                near: tuple[str, ...] = ()
                if hub_errors.is_unknown(error):
                    near = hub_repository.near_names(request, token, _NEAR_NAMES)
                # The client's own error would show headers and signed addresses in a traceback.
                raise hub_errors.explain(error, request, near) from None
        if not quiet:
            write_line(f"{endpoint} has too many requests: trying again in {seconds:.0f} s")
        sleep(seconds)
        waited += seconds


def _papers_of(repository: Repository) -> list[str]:
    """Its card and licence, which go wherever the model goes."""
    from converter.checkpoint.papers import LARGEST, are_papers

    return [
        name
        for name in are_papers(repository.files)
        if (repository.files[name].size or 0) <= LARGEST
    ]


def choose_adapter(repo_id: str, listed: list[str]) -> tuple[str, list[str], list[str]]:
    """The same as `choose_files` of a repository that holds a LoRA adapter.

    Raises:
        SourceError, UnsupportedError: it holds none.
    """
    top = {name.split("/", 1)[0] for name in listed}
    unusable = why_not_an_adapter(f"--lora {repo_id}", top)
    if unusable is not None:
        raise unusable
    return "adapter", list(ADAPTER_FILES), []


def choose_files(
    repo_id: str, listed: list[str], file: str | None = None, prefer_converted: bool = True
) -> tuple[str, list[str], list[str]]:
    """Decide from a repository's file names what it is and what to take.

    Returns:
        The kind; the files, of which the weights of a sharded model may be too many until its index
        has been read, and the first part of a split GGUF is the first; and notes for the user.

    Raises:
        SourceError, UnsupportedError: there is nothing that can be converted.
    """
    names = sorted(name for name in listed if is_plain_name(name) or name in SIDE_FILES)
    converted = [name for name in names if name.endswith(".litertlm")]
    gguf = gguf_models([name for name in listed if is_plain_path(name)])
    if file is not None:
        if file in converted:
            return "litertlm", [file], []
        named = file if file in listed else with_tag(gguf, file)
        if named is None:
            have = ", ".join(converted + gguf) or "no .gguf and no .litertlm file"
            raise SourceError(
                f"{repo_id}:{file}", "the repository has no such file", f"it has {have}"
            )
        return "gguf", _gguf_parts(repo_id, listed, named), []
    weights = weight_files(names) if "config.json" in names else []
    if converted and (prefer_converted or not (weights or gguf)):
        first, *others = sorted(
            converted, key=lambda name: (bool(_NOT_GENERIC.search(name)), len(name), name)
        )
        ask = f"took {first}; for {', '.join(others)} ask with {repo_id}:FILE"
        return "litertlm", [first], [ask] if others else []
    if weights:
        return "safetensors", [*weights, *(name for name in SIDE_FILES if name in names)], []
    if gguf:
        taken = default_model(gguf)
        rest = ", ".join(name for name in gguf if name != taken)
        note = f"took {taken}; for {rest} ask with {repo_id}:FILE, or a tag like {repo_id}:Q8_0"
        return "gguf", _gguf_parts(repo_id, listed, taken), [note] if rest else []
    raise why_not_a_model(repo_id, names) or SourceError(repo_id, "it is empty", "check the name")


def _gguf_parts(repo_id: str, listed: list[str], chosen: str) -> list[str]:
    """Every file of the GGUF `chosen`, of which any part may be named."""
    part = split_name(chosen)
    parts = all_parts(chosen if part is None else part_name(chosen, 1))
    missing = [name for name in parts if name not in listed]
    if missing:
        raise SourceError(
            f"{repo_id}:{chosen}",
            f"the repository lacks {len(missing)} of its {len(parts)} parts: {missing[0]}",
            "ask its owner, or take another of its files",
        )
    return parts


def _complete_names(
    repository: Repository,
    names: list[str],
    check_config: Callable[[dict[str, Any]], object] | None,
) -> list[str]:
    """Read config.json and the index; return exactly the files that the model needs."""
    from converter.checkpoint.quantized.methods import layout_of
    from converter.checkpoint.safetensors import read_config, read_index

    repository.fetch("config.json", DownloadProgress())
    config = read_config(repository.target / "config.json")
    if check_config is not None:
        check_config(config)
    repo_id = repository.request.repo_id
    layout_of(repo_id, config, repository.files, repository.base_model)  # or it is refused
    weights = [name for name in names if name.endswith(".safetensors")]
    if INDEX_NAME in repository.files and weights != [SINGLE_NAME]:
        repository.fetch(INDEX_NAME, DownloadProgress())
        shards = sorted(set(read_index(repository.target / INDEX_NAME).values()))
        absent = [shard for shard in shards if shard not in repository.files]
        if absent:
            raise SourceError(
                repo_id,
                f"{INDEX_NAME} names files that the repository does not have: {', '.join(absent)}",
                "tell its owner, or try another --revision",
            )
        weights = [INDEX_NAME, *shards]
    return ["config.json", *weights, *(name for name in names if name in SIDE_FILES)]


def local_copy(
    repo_id: str,
    target: Path,
    revision: str | None = None,
    file: str | None = None,
    prefer_converted: bool = True,
    is_adapter: bool = False,
) -> HubDownload | None:
    """Return what an earlier run completed in `target`, if it is what `download` is asked for."""
    from converter.checkpoint.hub_repository import has_size, read_record

    weights = ("safetensors", "gguf")
    kinds = ("litertlm", *weights) if prefer_converted else (*weights, "litertlm")
    for kind in ("adapter",) if is_adapter else kinds:
        record = read_record(target, kind)
        if record is None or not record.complete or record.repo_id != repo_id:
            continue
        if revision not in (record.revision, record.commit):
            continue
        names = list(record.files)
        if file != record.asked and file not in names:
            continue
        if not all(has_size(target / name, size) for name, size in record.files.items()):
            continue
        path = target if kind in _FOLDERS else target / names[0]
        pinned = revision == record.commit
        note = f"the hub cannot be reached: using {repo_id} as it was fetched before"
        return HubDownload(kind, path, repo_id, record.commit, () if pinned else (note,))
    return None
