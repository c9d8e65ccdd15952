"""The models that are offered: one is loaded at a time, whoever came first is served first.

A worker's memory is a model's; a second one would double it. So a request for another model waits
until those before it are answered, the loaded one is ended, and the other one is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.engine_process import EngineProcess, WorkerDiedError

_MOST_CRASHES = 3
_CRASH_PAUSE_SECONDS = 10.0


class QueueFullError(Exception):
    """As many wait as may; try again after so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests wait; try again in {seconds} seconds")
        self.seconds = seconds


class NoSuchModelError(Exception):
    """Nothing is offered under this name."""


@dataclass
class Limits:
    """What a host may use.

    Attributes:
        queue: how many requests may wait.
        keep_alive: seconds after which an idle model is unloaded; None for never.
        keep_bytes: of kept conversations; one is kept in any case.
    """

    queue: int = 32
    keep_alive: float | None = 300.0
    threads: int | None = None
    keep_bytes: int = 256 << 20


@dataclass
class Host:
    """The models by name, and the worker of the one that is loaded.

    Attributes:
        called: other names of some, such as that under which the user asked for one.
        waiting: requests that wait for their turn.
        crashes: of workers, while they were asked or loaded.
    """

    offered: Mapping[str, Path]
    limits: Limits
    called: Mapping[str, str] = field(default_factory=dict)
    waiting: int = 0
    crashes: int = 0
    loaded: str | None = None
    loaded_at: float = 0.0
    expires_at: float | None = None
    _engine: EngineProcess | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _unloading: asyncio.TimerHandle | None = None
    _answer_seconds: float = 2.0
    _crashes_in_a_row: int = 0

    def find(self, name: str | None) -> str:
        """The name under which a model is offered.

        One of Ollama's names may end with `:latest`. Where one model is offered, any name that no
        model has would be a mistake all the same.

        Raises:
            NoSuchModelError: there is none.
        """
        for plain in (name or "", (name or "").removesuffix(":latest")):
            found = self.called.get(plain, plain)
            if found in self.offered:
                return found
        raise NoSuchModelError(
            f"no model is called {name!r} here; there are: {', '.join(self.offered) or 'none'}"
        )

    @contextlib.asynccontextmanager
    async def turn(self, name: str, keep_alive: float | None = -1) -> AsyncIterator[EngineProcess]:
        """The worker of a model, for one request, in order of arrival.

        Args:
            keep_alive: seconds for which the model stays afterwards, other than the host's.

        Raises:
            QueueFullError: too many wait.
            WorkerDiedError: the model cannot be loaded.
        """
        if self.waiting >= self.limits.queue:
            raise QueueFullError(max(1, round(self.waiting * self._answer_seconds)))
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        begin = time.monotonic()
        try:
            yield await self._ready(name)
            self._crashes_in_a_row = 0
        except WorkerDiedError:
            self.crashes += 1
            self._crashes_in_a_row += 1
            await self.unload()
            raise
        finally:
            self._answer_seconds += 0.2 * (time.monotonic() - begin - self._answer_seconds)
            self._turn.release()
            self._expire(self.limits.keep_alive if keep_alive == -1 else keep_alive)

    async def unload(self) -> None:
        """End the worker."""
        self._stay()
        engine, self._engine, self.loaded = self._engine, None, None
        if engine is not None:
            await engine.stop()

    async def close(self, seconds: float) -> None:
        """End the worker when the answers under way are given, or time is up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._turn.acquire(), seconds)
        await self.unload()

    async def _ready(self, name: str) -> EngineProcess:
        self._stay()
        if self._engine is not None and (self.loaded != name or not self._engine.is_alive):
            await self.unload()
        if self._engine is None:
            if (
                self._crashes_in_a_row >= _MOST_CRASHES
            ):  # a file that cannot be loaded must not busy us
                await asyncio.sleep(_CRASH_PAUSE_SECONDS)
            engine = EngineProcess(self.offered[name], self.limits.threads, self.limits.keep_bytes)
            await engine.start()
            self._engine, self.loaded, self.loaded_at = engine, name, time.time()
        return self._engine

    def _stay(self) -> None:
        if self._unloading is not None:
            self._unloading.cancel()
        self._unloading = self.expires_at = None

    def _expire(self, seconds: float | None) -> None:
        """Unload what is idle for so long."""
        self._stay()
        if self._engine is None or seconds is None:
            return
        self.expires_at = time.time() + seconds
        loop = asyncio.get_running_loop()
        self._unloading = loop.call_later(seconds, lambda: loop.create_task(self._unload_idle()))

    async def _unload_idle(self) -> None:
        if not self._turn.locked():
            async with self._turn:
                await self.unload()
