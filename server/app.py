"""The routes: HTTP to questions, and answers to HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from converter.version import __version__
from server import fields, ollama, openai, page, responses, wire
from server.engine_process import EngineProcess, WorkerDiedError
from server.errors import RequestError
from server.guard import Guard, Rules
from server.host import Host, NoSuchModelError, QueueFullError
from server.metrics import Metrics
from server.record import Note, Record

_PING_SECONDS = 15.0
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Handler = Callable[[Request, "Note"], Awaitable[Response]]


class Reply(Protocol):
    """What is said back to one request, in a client's own words."""

    media_type: str

    def begin(self) -> None: ...
    def take(self, said: wire.FromWorker) -> list[str]: ...
    def end(self) -> list[str]: ...
    def broken(self, error: RequestError) -> str: ...
    def whole(self) -> dict[str, Any]: ...


class Asked(Protocol):
    """A request, understood."""

    @property
    def model(self) -> str: ...
    @property
    def ask(self) -> wire.Ask: ...
    @property
    def is_stream(self) -> bool: ...
    @property
    def answers(self) -> int: ...
    @property
    def keep_alive(self) -> float | None: ...
    def reply(self) -> Reply: ...


def _as_openai(error: RequestError) -> Response:
    return JSONResponse(error.as_openai(), error.status, error.headers)


def _as_ollama(error: RequestError) -> Response:
    return JSONResponse({"error": str(error)}, error.status, error.headers)


@dataclass
class Service:
    """The server's parts, and its routes."""

    host: Host
    rules: Rules
    log: bool = True
    metrics: Metrics = field(default_factory=Metrics)

    def app(self) -> ASGIApp:
        """As an ASGI server takes it."""
        guarded = Guard(Starlette(routes=self.routes()), self.rules)
        return Record(guarded, self.metrics, self.log)

    def routes(self) -> list[Route]:
        """Every path, and who answers it."""
        return [
            Route("/", self._route(self.page)),
            Route("/page/{file:path}", self._route(self.page)),
            Route("/health", self._route(self.health)),
            Route("/metrics", self._route(self.show_metrics)),
            Route("/v1/models", self._route(self.models)),
            Route("/v1/models/{model:path}", self._route(self.model)),
            Route("/v1/chat/completions", self._route(self.chat), methods=["POST"]),
            Route("/v1/completions", self._route(self.complete), methods=["POST"]),
            Route("/v1/responses", self._route(self.respond), methods=["POST"]),
            Route("/v1/embeddings", self._route(self.embed), methods=["POST"]),
            Route("/api/version", self._route(self.ollama_version, _as_ollama)),
            Route("/api/tags", self._route(self.ollama_tags, _as_ollama)),
            Route("/api/ps", self._route(self.ollama_ps, _as_ollama)),
            Route("/api/show", self._route(self.ollama_show, _as_ollama), methods=["POST"]),
            Route("/api/chat", self._route(self.ollama_chat, _as_ollama), methods=["POST"]),
            Route("/api/generate", self._route(self.ollama_generate, _as_ollama), methods=["POST"]),
            Route("/api/embed", self._route(self.embed, _as_ollama), methods=["POST"]),
            Route("/api/embeddings", self._route(self.embed, _as_ollama), methods=["POST"]),
        ]

    def _route(
        self, handler: Handler, told: Callable[[RequestError], Response] = _as_openai
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handled(request: Request) -> Response:
            try:
                return await handler(request, request.scope["note"])
            except Exception as error:
                return told(as_request_error(error))

        return handled

    # What there is -------------------------------------------------------------------------------

    async def page(self, request: Request, _: Note) -> Response:
        found = page.response(request.url.path, request.headers.get("if-none-match"))
        if found is None:
            raise RequestError("the page has no such file", status=404)
        return found

    async def health(self, _: Request, __: Note) -> Response:
        now = {"loaded": self.host.loaded, "engines": self.host.engines}
        return JSONResponse({"status": "ok", "version": __version__, **now})

    async def show_metrics(self, _: Request, __: Note) -> Response:
        host = self.host
        now = {"waiting": host.waiting, "loaded": host.loaded is not None, "engines": host.engines}
        return PlainTextResponse(self.metrics.text(host.crashes, now))

    async def models(self, _: Request, __: Note) -> Response:
        data = [_described(name) for name in self.host.offered]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request, _: Note) -> Response:
        name = self.host.find(request.path_params["model"])
        context = await asyncio.to_thread(_context_length, self.host.offered[name])
        return JSONResponse(_described(name) | {"max_model_len": context})

    async def embed(self, _: Request, __: Note) -> Response:
        raise RequestError(
            "embeddings are not made here: these are models that write text", status=400
        )

    # Answers -------------------------------------------------------------------------------------

    async def chat(self, request: Request, note: Note) -> Response:
        return await self._answered(request, openai.chat_request(await _body(request)), note)

    async def complete(self, request: Request, note: Note) -> Response:
        return await self._answered(request, openai.completion_request(await _body(request)), note)

    async def respond(self, request: Request, note: Note) -> Response:
        return await self._answered(request, responses.request(await _body(request)), note)

    async def ollama_chat(self, request: Request, note: Note) -> Response:
        return await self._answered(request, ollama.chat_request(await _body(request)), note)

    async def ollama_generate(self, request: Request, note: Note) -> Response:
        body = await _body(request)
        asked = ollama.generate_request(body)
        if asked is not None:
            return await self._answered(request, asked, note)
        name = self.host.find(body.get("model"))  # an empty prompt loads the model, or unloads it
        async with self.host.turn(name, keep_alive=ollama.keep_alive(body)):
            return JSONResponse(ollama.loaded(name, ollama.keep_alive(body)))

    async def ollama_version(self, _: Request, __: Note) -> Response:
        return JSONResponse({"version": ollama.VERSION})

    async def ollama_tags(self, _: Request, __: Note) -> Response:
        models = [ollama.described(name, path) for name, path in self.host.offered.items()]
        return JSONResponse({"models": models})

    async def ollama_ps(self, _: Request, __: Note) -> Response:
        name = self.host.loaded
        if name is None:
            return JSONResponse({"models": []})
        running = ollama.running(name, self.host.offered[name], self.host.expires_at)
        return JSONResponse({"models": [running]})

    async def ollama_show(self, request: Request, _: Note) -> Response:
        body = await _body(request)
        name = self.host.find(body.get("model") or body.get("name"))
        return JSONResponse(await asyncio.to_thread(ollama.shown, self.host.offered[name]))

    async def _answered(self, request: Request, asked: Asked, note: Note) -> Response:
        note.model = name = self.host.find(asked.model)
        if not asked.is_stream:
            work = asyncio.ensure_future(self._whole(name, asked, note))
            return JSONResponse(await _unless_left(request, work))
        reply = asked.reply()
        events = self._events(name, asked, reply, note)
        # An error before the first event has a status of its own.
        first = await _unless_left(request, asyncio.ensure_future(anext(events)))
        pinged = _with_pings(first, events, reply.media_type == openai.Reply.media_type)
        return StreamingResponse(pinged, headers=_STREAM_HEADERS, media_type=reply.media_type)

    async def _whole(self, name: str, asked: Asked, note: Note) -> dict[str, Any]:
        reply = asked.reply()
        async with self.host.turn(name, asked.ask, asked.keep_alive) as engine:
            for index in range(asked.answers):
                reply.begin()
                async with contextlib.aclosing(self._say(engine, asked, index, note)) as pieces:
                    async for said in pieces:
                        reply.take(said)
        return reply.whole()

    async def _events(
        self, name: str, asked: Asked, reply: Reply, note: Note
    ) -> AsyncGenerator[str, None]:
        """What a stream says."""
        has_begun = False
        reply.begin()
        try:
            async with (
                self.host.turn(name, asked.ask, asked.keep_alive) as engine,
                contextlib.aclosing(self._say(engine, asked, 0, note)) as pieces,
            ):
                async for said in pieces:
                    for event in reply.take(said):
                        has_begun = True
                        yield event
            for event in reply.end():
                yield event
        except (RequestError, WorkerDiedError) as error:
            if not has_begun:
                raise
            yield reply.broken(as_request_error(error))

    async def _say(
        self, engine: EngineProcess, asked: Asked, index: int, note: Note
    ) -> AsyncGenerator[wire.FromWorker, None]:
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
            if said.drafted_pieces:
                metrics.drafted_answers += 1
                metrics.drafted_tokens += said.completion_tokens
                metrics.drafted_pieces += said.drafted_pieces
            note.completion_tokens += said.completion_tokens
            note.finish = said.finish
        elif isinstance(said, wire.Failed):
            note.finish = "failed"


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "litert-lm-cli"}


def _context_length(path: Path) -> int | None:
    """How many tokens a model's context holds, as its file says: vLLM's `max_model_len`."""
    from converter.litertlm.inspection import read_bundle

    return read_bundle(path).metadata.max_num_tokens or None


def as_request_error(error: Exception) -> RequestError:
    """An error in words and numbers that a client understands."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, NoSuchModelError):
        return RequestError(str(error), "model", 404, code="model_not_found")
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(error.seconds)}
        return RequestError(
            str(error), status=429, kind="rate_limit_error", code="queue_full", headers=headers
        )
    if isinstance(error, WorkerDiedError):
        message = f"the engine ended ({error}); it is started again for the next request"
        return RequestError(message, status=500, kind="server_error", code="engine_died")
    if isinstance(error, ClientDisconnect):
        return RequestError("the client left", status=499)
    print(f"litert-lm-cli: {type(error).__name__} in a request", file=sys.stderr, flush=True)
    message = f"unexpected {type(error).__name__}, this is a bug"
    return RequestError(message, status=500, kind="server_error")


async def _body(request: Request) -> dict[str, Any]:
    return fields.decoded(await request.body())


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


async def _with_pings(
    first: str, events: AsyncGenerator[str, None], has_comments: bool
) -> AsyncIterator[str]:
    """Events, and a comment now and then: a proxy closes what is silent."""
    yield first
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=_PING_SECONDS)
            if not done:
                if has_comments:
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
        await events.aclose()
