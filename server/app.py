"""The routes: HTTP to questions, and answers to HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from converter.version import __version__
from server import fields, openai, wire
from server.engine_process import EngineProcess, WorkerDiedError
from server.errors import RequestError
from server.guard import Guard, Rules
from server.host import Host, NoSuchModelError, QueueFullError
from server.metrics import Metrics

_PING_SECONDS = 15.0
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Handler = Callable[[Request, "Note"], Awaitable[Response]]


@dataclass
class Note:
    """What the log says of a request: nothing of its text."""

    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish: str = ""
    begin: float = field(default_factory=time.monotonic)


@dataclass
class Service:
    """The server's parts, and its routes."""

    host: Host
    rules: Rules
    log: bool = True
    metrics: Metrics = field(default_factory=Metrics)

    def app(self) -> ASGIApp:
        """As an ASGI server takes it."""
        routes = [
            Route("/health", self._route(self.health)),
            Route("/metrics", self._route(self.show_metrics)),
            Route("/v1/models", self._route(self.models)),
            Route("/v1/models/{model:path}", self._route(self.model)),
            Route("/v1/chat/completions", self._route(self.chat), methods=["POST"]),
            Route("/v1/completions", self._route(self.complete), methods=["POST"]),
            Route("/v1/embeddings", self._route(self.embed), methods=["POST"]),
        ]
        return Guard(Starlette(routes=routes), self.rules)

    def _route(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def handled(request: Request) -> Response:
            note = Note()
            try:
                response = await handler(request, note)
            except Exception as error:
                response = _told(error)
            path = request.scope["route"].path
            self.metrics.requests[path, response.status_code] += 1
            if not isinstance(response, StreamingResponse):
                self._write_log(request, response.status_code, note)
            return response

        return handled

    def _write_log(self, request: Request, status: int, note: Note) -> None:
        if not self.log:
            return
        line = {
            "time": round(time.time(), 3),
            "method": request.method,
            "path": request.scope["route"].path,
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

    # What there is -------------------------------------------------------------------------------

    async def health(self, _: Request, __: Note) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "loaded": self.host.loaded})

    async def show_metrics(self, _: Request, __: Note) -> Response:
        now = {"waiting": self.host.waiting, "loaded": float(self.host.loaded is not None)}
        return PlainTextResponse(self.metrics.text(now))

    async def models(self, _: Request, __: Note) -> Response:
        data = [_described(name) for name in self.host.offered]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request, _: Note) -> Response:
        return JSONResponse(_described(self.host.find(request.path_params["model"])))

    async def embed(self, _: Request, __: Note) -> Response:
        raise RequestError(
            "embeddings are not made here: these are models that write text", status=400
        )

    # Answers -------------------------------------------------------------------------------------

    async def chat(self, request: Request, note: Note) -> Response:
        asked = openai.chat_request(fields.decoded(await request.body()))
        return await self._answered(request, asked, note)

    async def complete(self, request: Request, note: Note) -> Response:
        asked = openai.completion_request(fields.decoded(await request.body()))
        return await self._answered(request, asked, note)

    async def _answered(self, request: Request, asked: openai.Request, note: Note) -> Response:
        note.model = name = self.host.find(asked.model)
        if not asked.is_stream:
            work = asyncio.ensure_future(self._whole(name, asked, note))
            return JSONResponse(await _unless_left(request, work))
        events = self._events(request, name, asked, note)
        first = await anext(events)  # an error before the first event has a status of its own
        return StreamingResponse(
            _with_pings(first, events), headers=_STREAM_HEADERS, media_type="text/event-stream"
        )

    async def _whole(self, name: str, asked: openai.Request, note: Note) -> dict[str, Any]:
        answers = []
        async with self.host.turn(name) as engine:
            for index in range(asked.answers):
                answer = openai.Answer(asked, index)
                async with contextlib.aclosing(self._say(engine, asked, index, note)) as pieces:
                    async for said in pieces:
                        answer.take(said)
                answers.append(answer)
        return openai.completion(asked, answers)

    async def _events(
        self, request: Request, name: str, asked: openai.Request, note: Note
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        answer = openai.Answer(asked)
        status = 200
        try:
            async with self.host.turn(name) as engine:
                async with contextlib.aclosing(self._say(engine, asked, 0, note)) as pieces:
                    async for said in pieces:
                        for choice in answer.take(said):
                            yield _event(openai.chunk(asked, [choice]))
            if asked.with_usage:
                yield _event(openai.chunk(asked, [], usage=openai.usage([answer])))
            yield "data: [DONE]\n\n"
        except (RequestError, WorkerDiedError, QueueFullError) as error:
            status = _told(error).status_code
            if not answer.prompt_tokens:
                raise
            yield f"data: {_told(error).body.decode()}\n\n"
        finally:
            self._write_log(request, status, note)

    async def _say(
        self, engine: EngineProcess, asked: openai.Request, index: int, note: Note
    ) -> AsyncIterator[wire.FromWorker]:
        """What the worker says, counted."""
        ask = wire.copied(asked.ask)
        if index and ask.sampler.seed is not None:
            ask.sampler = wire.with_seed(ask.sampler, ask.sampler.seed + index)
        note.finish = "cancelled"
        try:
            async with contextlib.aclosing(engine.ask(ask)) as pieces:
                async for said in pieces:
                    self._count(said, note)
                    yield said
        except WorkerDiedError:
            self.metrics.crashes += 1
            note.finish = "crashed"
            raise
        finally:
            if note.finish == "cancelled":
                self.metrics.cancelled += 1

    def _count(self, said: wire.FromWorker, note: Note) -> None:
        metrics = self.metrics
        if isinstance(said, wire.Started):
            metrics.prompt_tokens += said.prompt_tokens
            metrics.cached_tokens += said.cached_tokens
            note.prompt_tokens, note.cached_tokens = said.prompt_tokens, said.cached_tokens
        elif isinstance(said, wire.Done):
            metrics.answers += 1
            metrics.completion_tokens += said.completion_tokens
            metrics.first_token_seconds += said.first_seconds
            metrics.decode_seconds += said.seconds - said.first_seconds
            note.completion_tokens += said.completion_tokens
            note.finish = said.finish
        elif isinstance(said, wire.Failed):
            note.finish = "failed"


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "litert-lm-cli"}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _told(error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    if isinstance(error, RequestError):
        known = error
    elif isinstance(error, NoSuchModelError):
        known = RequestError(str(error), "model", 404, code="model_not_found")
    elif isinstance(error, QueueFullError):
        headers = {"Retry-After": str(error.seconds)}
        known = RequestError(
            str(error), status=429, kind="rate_limit_error", code="queue_full", headers=headers
        )
    elif isinstance(error, WorkerDiedError):
        known = RequestError(
            f"the engine ended: {error}; it is started again for the next request",
            status=500,
            kind="server_error",
            code="engine_died",
        )
    elif isinstance(error, ClientDisconnect):
        known = RequestError("the client left", status=499)
    else:
        known = RequestError(
            f"unexpected {type(error).__name__}, this is a bug", status=500, kind="server_error"
        )
        print(f"litert-lm-cli: {type(error).__name__} in a request", file=sys.stderr, flush=True)
    return JSONResponse(known.as_openai(), known.status, known.headers)


async def _unless_left(request: Request, work: asyncio.Future[Any]) -> Any:
    """What work comes to, unless the client leaves before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(left())
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work


async def _with_pings(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Events, and a comment now and then: a proxy closes what is silent."""
    yield first
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=_PING_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            event = coming.result()
            if event is None:
                return
            yield event
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
            await coming
        await events.aclose()  # type: ignore[attr-defined]
