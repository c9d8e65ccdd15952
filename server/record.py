"""The first and the last thing that a request meets: it is counted, and has its line in the log."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import Metrics

_NO_PATH = "other"  # refused before it was looked at, or nothing is there


@dataclass
class Note:
    """What the log says of a request: nothing of its text."""

    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish: str = ""
    begin: float = field(default_factory=time.monotonic)


class Record:
    """Middleware: counts every answer, and writes a line when it has ended.

    What is below finds its `Note` in `scope["note"]`. A path is told as the route that it is, so
    that nothing of a request's own is in the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = scope["note"] = Note()
        status, is_told = 0, not self._log

        async def counted(message: Message) -> None:
            nonlocal status, is_told
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.requests[_path(scope), status] += 1
            elif not message.get("more_body") and not is_told:
                is_told = True  # whoever has an answer finds it in the log
                self._write(scope, status, note)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            if not is_told:  # the client has left
                self._write(scope, status, note)

    def _write(self, scope: Scope, status: int, note: Note) -> None:
        line = {
            "time": round(time.time(), 3),
            "method": scope["method"],
            "path": _path(scope),
            "status": status,
            "seconds": round(time.monotonic() - note.begin, 3),
        }
        if note.model:
            line |= {
                "model": note.model,
                "prompt_tokens": note.prompt_tokens,
                "cached_tokens": note.cached_tokens,
                "completion_tokens": note.completion_tokens,
                "finish": note.finish,
            }
        print(json.dumps(line), file=sys.stderr, flush=True)


def _path(scope: Scope) -> str:
    return scope["route"].path if "route" in scope else _NO_PATH
