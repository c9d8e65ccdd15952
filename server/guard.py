"""Who may ask, and what: the first thing that every request meets.

- The Host header must be one of ours, on every request: a page of another site can make its own
  name point here (DNS rebinding), and its requests then come from this machine.
- An Origin must be allowed: a page of another site may send, if not read, without asking.
- Where there is a key, all but `/health` and the page's own files need it; compared in constant
  time.
- Bodies are bounded, in size and in time.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestError

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
# A browser sends at least one of these with every form, whoever's page it is on.
_OF_BROWSERS = (b"origin", b"sec-fetch-site", b"referer")


@dataclass(frozen=True)
class Rules:
    """
    Attributes:
        hosts: names without ports under which this server may be called.
        origins: pages that may ask; `*` for all.
        key: what a client has to know; None where nothing.
        open_paths: what needs no key.
    """

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    key: str | None = None
    open_paths: Collection[str] = ()
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0


def hosts_of(address: str) -> frozenset[str]:
    """The names under which a server at this address may be called."""
    bound = f"[{address}]" if ":" in address else address
    return frozenset((*_LOOPBACK, bound))


class Guard:
    """Middleware: lets through what the rules allow."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        origin = headers.get(b"origin", [b""])[0].decode("latin-1")
        try:
            self._check_host(headers)
            may_read = self._check_origin(origin, headers)
            if scope["method"] == "OPTIONS" and may_read:
                await _preflight(origin, scope, receive, send)
                return
            self._check_key(scope["path"], headers)
            self._check_type(scope["method"], headers)
        except RequestError as error:
            response = JSONResponse(error.as_openai(), error.status, error.headers)
            await response(scope, receive, send)
            return
        answer = _with_origin(send, origin) if may_read else send
        await self._app(scope, self._bounded(receive), answer)

    def _check_host(self, headers: dict[bytes, list[bytes]]) -> None:
        given = headers.get(b"host", [])
        host = given[0].decode("latin-1").lower() if len(given) == 1 else ""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in self._rules.hosts:
            raise RequestError("this server is not called so", status=403, code="wrong_host")

    def _check_origin(self, origin: str, headers: dict[bytes, list[bytes]]) -> bool:
        """Whether a page elsewhere asks, and may read the answer."""
        if not origin:
            return False
        host = headers[b"host"][0].decode("latin-1")
        if origin in (f"http://{host}", f"https://{host}"):
            return False  # our own page, under a name that has been checked
        if origin in self._rules.origins or "*" in self._rules.origins:
            return True
        raise RequestError(
            "pages of this origin may not ask: see --cors", status=403, code="wrong_origin"
        )

    def _check_key(self, path: str, headers: dict[bytes, list[bytes]]) -> None:
        key = self._rules.key
        if key is None or path in self._rules.open_paths:
            return
        given = headers.get(b"authorization", [b""])[0]
        given = (
            given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", [b""])[0]
        )
        if not hmac.compare_digest(given, key.encode()):
            raise RequestError(
                "the API key is missing or wrong",
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_type(self, method: str, headers: dict[bytes, list[bytes]]) -> None:
        """A form or a plain text could be sent by any page without asking.

        `curl -d` calls what it sends a form; without a browser's headers it is taken for JSON.
        """
        if method != "POST":
            return
        kind = headers.get(b"content-type", [b""])[0].decode("latin-1").partition(";")[0]
        kind = kind.strip().lower()
        is_of_curl = kind == _FORM and not any(name in headers for name in _OF_BROWSERS)
        if kind != _JSON and not is_of_curl:
            raise RequestError(f"Content-Type must be {_JSON}", status=415)
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > self._rules.body_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """The body, while it is short enough and comes soon enough."""
        taken = 0
        is_whole = False

        async def bounded() -> Message:
            nonlocal taken, is_whole
            if is_whole:  # what comes now is that the client has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._rules.body_seconds)
            except TimeoutError:
                raise RequestError("the body does not come", status=408) from None
            taken += len(message.get("body", b""))
            if taken > self._rules.body_bytes:
                raise self._too_large()
            is_whole = not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self) -> RequestError:
        return RequestError(f"the body has more than {self._rules.body_bytes} bytes", status=413)


def _with_origin(send: Send, origin: str) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            more: list[Any] = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return answer


async def _preflight(origin: str, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
    await JSONResponse({}, 200, headers)(scope, receive, send)
