"""Sends a package to the Hugging Face hub, or to a mirror of it (HF_ENDPOINT).

huggingface_hub does it: it asks the hub which files go to its large file storage and which of those
it has already, sends the others, and commits them all at once. So what was interrupted sends
nothing twice that has arrived, and what has not changed is not sent at all. Files are given to it
opened, so that their way can be shown; it then sends them by plain HTTP (git-LFS's basic and
multipart transfers), through the proxies and certificates that downloads use, and not by Xet.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from converter.checkpoint import hub_errors, hub_network
from converter.checkpoint.hub_token import find_token
from converter.errors import LiteRTLMError, OptionError, SourceError
from converter.version import __version__
from publish.package import Package

_NAME = "litert-lm-cli"


@dataclass(frozen=True)
class Uploaded:
    """What became of an upload.

    Attributes:
        url: the repository's page.
        commit: of the revision now.
        notes: what the hub said of the card, a line each.
    """

    url: str
    commit: str
    notes: tuple[str, ...]


def upload(
    package: Package,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Uploaded:
    """Make `repo_id` hold the files of a package; what else is there stays.

    Args:
        private: of a new repository; one that exists must be so already.
        revision: a branch, made if missing; None is the main one.
        progress: is told the bytes of each piece that was sent.

    Raises:
        SourceError: the package is damaged, or the hub does not take it.
        OptionError: the repository is public, and should not be.
    """
    hub_network.use_environment()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our errors say what it would
    endpoint = hub_network.read_endpoint(os.environ)
    token, token_source = find_token()
    request = hub_errors.Request(repo_id, revision, endpoint, token_source)
    if token is None:
        raise SourceError(
            repo_id,
            f"{endpoint} wants an access token that may write, and none is set",
            hub_errors.LOGIN,
        )
    api = HfApi(endpoint, token, _NAME, __version__)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(_SentFile(package.folder / name, progress))
            for name in package.files
        }
        operations = [_addition(package, name, file) for name, file in files.items()]
        stack.enter_context(_without_bars())
        noted = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            if private and not api.repo_info(repo_id).private:
                raise OptionError(
                    f"--private {repo_id}",
                    "it exists, and everybody can see it",
                    f"make it private at {endpoint}/{repo_id}/settings, or choose another name",
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            for file in files.values():
                file.is_sent = True
            done = api.create_commit(
                repo_id,
                operations,
                commit_message=f"Upload {Path(package.bundle).stem} with {_NAME} {__version__}",
                revision=revision,
            )
        except LiteRTLMError:
            raise
        except Exception as error:
            # The client's own errors would show signed addresses in a traceback.
            raise _explain(error, request) from None
    url = f"{endpoint}/{repo_id}" + ("" if revision is None else f"/tree/{revision}")
    notes = (" ".join(str(each.message).split()) for each in noted if each.category is UserWarning)
    return Uploaded(url, done.oid, tuple(notes))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let the client show no progress of its own."""
    were_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            enable_progress_bars()


class _SentFile(io.BufferedReader):
    """A file that tells how far it was sent; what is sent again is not told again."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self.is_sent = False
        self._progress, self._told = progress, 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.is_sent and (more := self.tell() - self._told) > 0:
            self._told += more
            self._progress(more)
        return data


def _addition(package: Package, name: str, file: _SentFile) -> CommitOperationAdd:
    """One file as the client takes it, which hashes it: a damaged one is refused."""
    operation = CommitOperationAdd(name, file)
    wanted, found = package.files[name], operation.upload_info
    if name not in package.texts and (found.size, found.sha256.hex()) != (
        wanted.size,
        wanted.sha256,
    ):
        raise SourceError(
            str(package.folder / name),
            "it is not what was packaged",
            "package the model again: litert-lm-cli package MODEL --to DIR",
        )
    return operation


def _explain(error: Exception, request: hub_errors.Request) -> LiteRTLMError:
    """Our error for one of the client's; the order matters, as in `hub_errors.explain`."""
    what, endpoint = f"upload to {request.repo_id}", request.endpoint
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__, request)  # of a file on its way
    again = "run this again: what has arrived is not sent again"
    used = f"with the token from {request.token_source}"
    organisation = request.repo_id.partition("/")[0]
    if isinstance(error, HFValidationError):
        return OptionError(request.repo_id, "it is no repository's name", "write ORG/NAME")
    if isinstance(error, RevisionNotFoundError):
        return SourceError(what, f"it has no revision {request.revision!a}", "name a branch")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return SourceError(
            what,
            f"{endpoint} has no {organisation}, or does not show it ({used})",
            "check the spelling, and whether the token's owner belongs to it",
        )
    if status == 401:
        return SourceError(
            what,
            f"the hub does not accept the access token from {request.token_source}",
            f"make a new one that may write at {endpoint}/settings/tokens, then {hub_errors.LOGIN}",
        )
    if status == 403:
        return SourceError(
            what,
            f"the hub forbids to write there ({used})",
            f"use a token that may write to {organisation}: {endpoint}/settings/tokens",
        )
    if isinstance(error, BadRequestError) or type(error) is ValueError:
        said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300]
        return SourceError(what, f"the hub refuses it: {said}", "correct README.md, run it again")
    if status is not None and status < 500 and status not in (408, 409, 429):
        return SourceError(what, f"{endpoint} answered HTTP {status}", "check HF_ENDPOINT")
    if status is not None:
        return SourceError(what, f"{endpoint} answered HTTP {status}", again)
    if (trouble := hub_errors.network_trouble(error, request)) is not None:
        why, fix = trouble
        return SourceError(what, why, fix or again)
    if isinstance(error, OSError) and error.errno is not None:
        why = (error.strerror or os.strerror(error.errno)).lower()
        return SourceError(what, why, "check the disk, and run this again")
    name = type(error).__name__
    why = f"{endpoint} does not answer like a Hugging Face hub ({name})"
    return SourceError(what, why, "check HF_ENDPOINT")
