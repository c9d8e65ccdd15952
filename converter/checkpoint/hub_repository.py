"""One commit of a hub repository, and the local folder that its files go to.

Two things are done here although huggingface_hub's `hf_hub_download` seems to offer them: it
deletes the unfinished file when a run is interrupted (huggingface_hub#4228), and over plain HTTP it
compares a file's size but not its hash. So an unfinished file is named after its hash, continued by
the next run, and gets its own name when the hash is right.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    parse_ratelimit_headers,
)

from converter.checkpoint.files import is_plain_path
from converter.checkpoint.hub_errors import RateLimited, Request, explain
from converter.checkpoint.hub_network import use_environment
from converter.checkpoint.progress import DownloadProgress, download_progress, human_size
from converter.errors import OutputError, SourceError
from converter.version import __version__

WORK = ".download"  # beside the files: the unfinished ones, the lock, and what is complete
_LIST_TIMEOUT = 30.0  # seconds
_READ_SIZE = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A listed file. `digest` is its SHA-256, or git's SHA-1 of it where it is small."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Record:
    """What a download left in the folder: `WORK/{kind}.json`, written before it and after it.

    `asked` is the file or tag that the user named, where the repository has several.
    """

    repo_id: str
    revision: str | None
    commit: str
    kind: str
    files: dict[str, int]  # name to size in bytes
    complete: bool
    asked: str | None = None


class Repository:
    """One commit of a repository, and the folder its files go to.

    Attributes:
        commit: what `request.revision` stands for right now.
        files: the listed files by name.
        base_model: the model that its card says it was made of.
    """

    def __init__(self, request: Request, token: str | None, target: Path) -> None:
        """List the repository.

        Raises:
            LiteRTLMError: what answers is not a hub, or the environment cannot be followed.
            httpx.HTTPError: the client's own errors, for `hub_errors.explain`.
        """
        self.request = request
        self.target = target
        name = "litert-lm-cli"
        self._headers = build_hf_headers(
            token=token or False, library_name=name, library_version=__version__
        )
        self._headers["Accept-Encoding"] = "identity"  # a compressed body cannot be continued
        # Its warnings name signed addresses; what they say is said by our errors.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        use_environment()
        _raise_when_limited()
        api = HfApi(request.endpoint, token or False, name, __version__)
        try:
            info = api.model_info(
                request.repo_id,
                revision=request.revision,
                files_metadata=True,
                timeout=_LIST_TIMEOUT,
            )
            self.files = {item.name: item for item in map(_remote_file, info.siblings or ())}
            self.commit = info.sha or ""
            self.base_model = _base_model(info.card_data)
        except httpx.HTTPError:  # some of the client's are ValueErrors too
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise explain(error, request) from error
        if not _COMMIT.fullmatch(self.commit):
            raise explain(ValueError(self.commit), request)

    def begin(self, kind: str) -> None:
        """Take back the claim that an older commit's files are complete: they will be mixed."""
        before = read_record(self.target, kind)
        if before is not None and before.complete and before.commit != self.commit:
            _write_record(self.target, replace(before, complete=False))

    def bring(
        self,
        kind: str,
        names: list[str],
        quiet: bool,
        announce: Callable[[str], None],
        asked: str | None = None,
    ) -> None:
        """Make `target` hold the files `names`, and record it; see `hub.download`.

        Raises:
            OutputError: the disk has no room for them.
            SourceError: a file is damaged.
        """
        before = read_record(self.target, kind)
        finished = before.files if before and before.complete else {}
        absent = [
            name
            for name in names
            if not (name in finished and has_size(self.target / name, finished[name]))
            and not self._is_right(self.target / name, self.files[name])
        ]
        if absent:
            if before is not None and kind == "safetensors":
                for name in set(before.files) - set(names):  # an older commit's would be read too
                    (self.target / name).unlink(missing_ok=True)
            self._record(kind, names, asked, complete=False)
            self._check_disk(absent)
            announce(kind)
            total = sum(self.files[name].size or 0 for name in absent)
            with download_progress(self.request.repo_id, len(absent), total, quiet) as progress:
                for name in absent:
                    self.fetch(name, progress)
        self._record(kind, names, asked, complete=True)

    def fetch(self, name: str, progress: DownloadProgress) -> None:
        """Fetch one file unless the right one is there; continue where an earlier run stopped."""
        remote, path = self.files[name], self.target / name
        if self._is_right(path, remote):
            return
        part = self._part(remote)
        already = part.stat().st_size if part.exists() else 0
        if already and (remote.size is None or already > remote.size):
            part.unlink()
            already = 0
        progress.start_file(name, remote.size, already)
        url = hf_hub_url(
            self.request.repo_id, name, revision=self.commit, endpoint=self.request.endpoint
        )
        with open(part, "ab") as stream:
            http_get(
                url,
                stream,
                resume_size=already,
                headers=self._headers,  # httpx drops the token when it follows to another host
                expected_size=remote.size,
                displayed_filename=name,
                tqdm_class=_bar_for(progress),
            )
            stream.flush()
            os.fsync(stream.fileno())
        if not self._is_right(part, remote):
            part.unlink()
            raise SourceError(
                f"{self.request.repo_id}/{name}",
                "what arrived does not have the hash that the hub lists",
                "run this again; if it stays so, a proxy or mirror alters the files",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
        progress.end_file()

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes `start:stop` of a file, as far as it has them; nothing of it is kept."""
        url = hf_hub_url(
            self.request.repo_id, name, revision=self.commit, endpoint=self.request.endpoint
        )
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        data = b""
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            begins = start if response.status_code == httpx.codes.PARTIAL_CONTENT else 0
            for piece in response.iter_bytes():  # of a hub that knows no ranges, no more than this
                data += piece
                if begins + len(data) >= stop:
                    break
        return data[start - begins : stop - begins]

    def _part(self, remote: RemoteFile) -> Path:
        """The unfinished file; a hash in its name keeps it from being continued as another."""
        name = remote.digest or f"{self.commit}-{remote.name.replace('/', '-')}"
        return self.target / WORK / f"{name}.part"

    def _is_right(self, path: Path, remote: RemoteFile) -> bool:
        """Tell whether the file at `path` is what the hub lists.

        Where the hub gives no hash (some mirrors), a file that has just arrived is believed, and
        one that was there before is not.
        """
        if not path.is_file() or remote.size not in (None, path.stat().st_size):
            return False
        if remote.digest is None:
            return path.parent.name == WORK
        if len(remote.digest) == 64:
            return _hash_file(path, hashlib.sha256()) == remote.digest
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return _hash_file(path, blob) == remote.digest

    def _check_disk(self, names: list[str]) -> None:
        """Raise OutputError if the files to come are bigger than the free space."""
        need = 0
        for name in names:
            part = self._part(self.files[name])
            need += (self.files[name].size or 0) - (part.stat().st_size if part.exists() else 0)
        free = shutil.disk_usage(self.target).free
        if need > free:
            raise OutputError(
                f"downloading {self.request.repo_id}",
                f"it needs {human_size(need)}, and {self.target} has {human_size(free)} free",
                "free some space, or set LITERT_LM_MODELS to a folder on another disk",
            )

    def _record(self, kind: str, names: list[str], asked: str | None, complete: bool) -> None:
        """Write what `target` holds; the size of a file that is still to come is 0."""
        paths = {name: self.target / name for name in names}
        sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
        wanted = self.request
        _write_record(
            self.target,
            Record(wanted.repo_id, wanted.revision, self.commit, kind, sizes, complete, asked),
        )


def _base_model(card: Any) -> str | None:
    """What a model card's `base_model` names: one model, or the first of several."""
    named = getattr(card, "base_model", None)
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) and _NAME.fullmatch(first) else None


def near_names(request: Request, token: str | None, count: int) -> tuple[str, ...]:
    """Models of the hub whose names are most like one that it does not have; none on any error."""
    organisation, _, name = request.repo_id.partition("/")
    api = HfApi(request.endpoint, token or False)
    found: dict[str, None] = {}
    with contextlib.suppress(Exception):  # it is a courtesy of an error message
        for query in ({"search": name}, {"author": organisation, "search": name[:4]}):
            found |= dict.fromkeys(model.id for model in api.list_models(limit=50, **query))
    lower = {known.lower(): known for known in found if _NAME.fullmatch(known)}
    near = difflib.get_close_matches(request.repo_id.lower(), lower, count, cutoff=0.7)
    return tuple(lower[known] for known in near)


def _raise_when_limited() -> None:
    """Have the client raise for "too many requests", for which it would wait without a word."""
    client = get_session()
    hooks = client.event_hooks
    if _check_limit not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], _check_limit]}


def _check_limit(response: httpx.Response) -> None:
    if response.status_code == 429:
        after = response.headers.get("Retry-After", "")
        limit = parse_ratelimit_headers(response.headers)
        reset = limit.reset_in_seconds if limit is not None else 0
        raise RateLimited(float(after) if after.isdecimal() else float(reset))


def _remote_file(sibling: Any) -> RemoteFile:
    """Turn the client's listing entry into ours; a hash that is none is left out."""
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        digest = None
    if type(size) is not int or size < 0:
        size = None
    return RemoteFile(sibling.rfilename, size, digest)


def _hash_file(path: Path, algorithm: Any) -> str:
    with open(path, "rb") as stream:
        while chunk := stream.read(_READ_SIZE):
            algorithm.update(chunk)
    return str(algorithm.hexdigest())


def _bar_for(progress: DownloadProgress) -> Any:
    """Return what `http_get` takes for its progress bar's class; it writes to `progress` only."""

    class Bar(contextlib.nullcontext[Any]):
        def __init__(self, **_: object) -> None:
            super().__init__(self)

        def update(self, count: float | None = 1) -> None:
            progress.advance(int(count or 0))

    return Bar


def has_size(path: Path, size: int) -> bool:
    """Tell whether `path` is a file of `size` bytes."""
    return path.is_file() and path.stat().st_size == size


def read_record(target: Path, kind: str) -> Record | None:
    """Return the record of an earlier run; None if there is none that can be understood."""
    try:
        record = Record(**json.loads((target / WORK / f"{kind}.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    sound = isinstance(record.files, dict) and record.files and record.kind == kind
    return record if sound and all(map(is_plain_path, record.files)) else None


def _write_record(target: Path, record: Record) -> None:
    """Write the record at once or not at all."""
    path = target / WORK / f"{record.kind}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")
    os.replace(unfinished, path)
