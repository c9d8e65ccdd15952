"""What the hub's errors mean to a user: one table, from the client's exceptions to ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from converter.checkpoint.hub_network import ProxyFailed
from converter.errors import LiteRTLMError, OutputError, SourceError

LOGIN = "set HF_TOKEN, put a file HF_TOKEN here, or run `hf auth login`"


@dataclass(frozen=True)
class Request:
    """What was asked of which hub. The access token itself is deliberately not here."""

    repo_id: str
    revision: str | None
    endpoint: str
    token_source: str | None


class RateLimited(httpx.HTTPError):
    """Too many requests. `seconds` is how long the hub asks to wait, 0 where it does not say."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many requests")
        self.seconds = seconds


def is_unknown(error: Exception) -> bool:
    """Tell whether the hub does not know the model, or says so."""
    return isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)


def is_unreachable(error: Exception) -> bool:
    """Tell whether the hub gave no answer about the model: no network, overload, its own fault."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, OfflineModeIsEnabled, RateLimited))


def not_here(request: Request) -> LiteRTLMError:
    """The error for a model that is not complete on disk, where `--offline` forbids to ask."""
    return _no_network(
        request.repo_id,
        "it is not complete on this disk, and --offline forbids to use the network",
        "leave --offline out",
    )


def explain(error: Exception, request: Request, near: Sequence[str] = ()) -> LiteRTLMError:
    """Return our error for one that the client raised while it served `request`.

    Args:
        near: models that the hub does have, where it does not have this one.

    The client's own text is not repeated where a token or a signed address could stand in it.
    """
    # Order matters: GatedRepoError is a RepositoryNotFoundError, which is an HfHubHTTPError, and
    # that is both an httpx.HTTPError and an OSError.
    used = (
        f"with the token from {request.token_source}" if request.token_source else "with no token"
    )
    what, page = request.repo_id, f"{request.endpoint}/{request.repo_id}"
    if isinstance(error, GatedRepoError):
        return SourceError(
            what,
            f"it is gated: its owner asks you to agree to terms ({used})",
            f"1) open {page} and log in, 2) agree to the terms, 3) wait for the approval (often at "
            f"once), 4) {'' if request.token_source else LOGIN + ' and '}run this again",
        )
    if isinstance(error, RepositoryNotFoundError):
        return SourceError(
            what,
            f"there is no such model on {request.endpoint}, or it is private (asked {used})",
            f"{f'did you mean {_either(near)}? if not, ' if near else ''}check the spelling; "
            f"if it is private, {LOGIN} with an account that may read it",
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceError(
            what,
            f"it has no revision {request.revision!a}",
            f"see {page}/commits/main for its branches, tags and commits",
        )
    if isinstance(error, DisabledRepoError):
        return SourceError(what, "the hub has disabled this model", "choose another model")
    if isinstance(error, EntryNotFoundError):
        return SourceError(what, "a file that the hub listed is not there", "run this again")
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error.response.status_code, request, used)
    if isinstance(error, RateLimited):
        hint = "wait some minutes and run this again"
        return SourceError(
            what,
            f"too many requests to {request.endpoint} ({used})",
            hint if request.token_source else f"{hint}, or {LOGIN}: the limit is higher",
        )
    if (trouble := network_trouble(error, request)) is not None:
        why, fix = trouble
        return _no_network(what, why, fix or "run this again later")
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
        return SourceError(
            what,
            f"{request.endpoint} cannot be asked ({type(error).__name__})",
            "check HF_ENDPOINT",
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        why = f"{(error.strerror or os.strerror(error.errno)).lower()}{where}"
        return OutputError(f"downloading {what}", why, "free some space or set LITERT_LM_MODELS")
    if isinstance(error, OSError):  # the client's word for a body of the wrong length
        return SourceError(what, "a file ended early", "run this again: it continues where it was")
    return SourceError(
        what, f"{request.endpoint} does not answer like a Hugging Face hub", "check HF_ENDPOINT"
    )


def network_trouble(error: Exception, request: Request) -> tuple[str, str | None] | None:
    """Why the hub could not be asked, and what helps where that is known; None of other errors."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to use the network", "unset it"
    if isinstance(error, ProxyFailed):
        said = "".join(c for c in str(error)[:60] if c.isprintable())
        does = f"does not let the request through ({said})" if error.refused else "does not answer"
        hint = f"correct {error.proxy.variable} or unset it, or list the host in NO_PROXY"
        return f"{error.proxy} {does}", hint
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"the certificate of {request.endpoint} is signed by nobody that is known here",
            "if a company's proxy signs it, set SSL_CERT_FILE to the file of its certificates",
        )
    if isinstance(error, httpx.TimeoutException):
        return f"{request.endpoint} did not answer in time", None
    if isinstance(error, httpx.TransportError):
        return f"{request.endpoint} cannot be reached", None
    return None


def _explain_status(status: int, request: Request, used: str) -> LiteRTLMError:
    what = request.repo_id
    if status == 401 and request.token_source:
        return SourceError(
            what,
            f"the hub does not accept the access token from {request.token_source}",
            f"make a new one at {request.endpoint}/settings/tokens, then {LOGIN}",
        )
    if status == 401:
        return SourceError(what, "the hub asks for an access token and none is set", LOGIN)
    if status == 403:
        why = f"the hub forbids to read it ({used})"
        return SourceError(what, why, "use a token with read access to this model")
    if status >= 500:
        return _no_network(what, f"{request.endpoint} has a fault of its own (HTTP {status})")
    return SourceError(what, f"{request.endpoint} answered HTTP {status}", "check HF_ENDPOINT")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _no_network(what: str, why: str, fix: str = "run this again later") -> SourceError:
    still = "without it, local folders, .gguf files and what is in models/ still work"
    return SourceError(what, why, f"{fix}; {still}")
