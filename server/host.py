"""The models that are offered: one is loaded at a time, whoever came first is served first.

A model's memory is its engines'; a second model would double it. So a request for another model
waits until those before it are answered, the loaded one is ended, and the other one is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from server import wire
from server.engine_process import EngineProcess, WorkerDiedError
from server.pool import Pool, Seat, Trail, trail_of

_MOST_CRASHES = 3
_CRASH_PAUSE_SECONDS = 10.0
_MOST_THREADS = 4  # unasked; what the engine itself takes, on however few cores


class QueueFullError(Exception):
    """As many wait as may; try again after so many seconds."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests wait; try again in {seconds} seconds")
        self.seconds = seconds


class NoSuchModelError(Exception):
    """Nothing is offered under this name."""


def usable_threads() -> int:
    """As many as there are cores for this process, and no more than the engine takes by itself."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, _MOST_THREADS)


@dataclass
class Limits:
    """What a host may use.

    Attributes:
        queue: how many requests may wait.
        keep_alive: seconds after which an idle model is unloaded; None for never.
        threads: that a model's engines share.
        keep_bytes: of conversations that are kept, see `Pool`; an engine keeps one in any case.
        keep_packed: leave packed weights beside the model, for later starts.
        spare_seconds: after which an idle engine beside the first one is ended.
    """

    queue: int = 32
    keep_alive: float | None = 300.0
    threads: int = field(default_factory=usable_threads)
    keep_bytes: int = 256 << 20
    keep_packed: bool = False
    spare_seconds: float = 60.0


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A request in the queue, and the engine that it gets."""

    name: str
    trail: Trail
    seat: asyncio.Future[Seat]


@dataclass
class Host:
    """The models by name, and the engines of the one that is loaded.

    Attributes:
        called: other names of some, such as that under which the user asked for one.
        crashes: of engines, while they were asked or loaded.
    """

    offered: Mapping[str, Path]
    limits: Limits
    called: Mapping[str, str] = field(default_factory=dict)
    crashes: int = 0
    expires_at: float | None = None
    _pool: Pool | None = None
    _queue: list[_Waiting] = field(default_factory=list)
    _changing: asyncio.Task[None] | None = None  # an engine is started, or all are ended
    _unloading: asyncio.TimerHandle | None = None
    _answer_seconds: float = 2.0
    _crashes_in_a_row: int = 0

    @property
    def waiting(self) -> int:
        """Requests that have no engine yet."""
        return len(self._queue)

    @property
    def engines(self) -> int:
        """That are loaded."""
        return 0 if self._pool is None else self._pool.engines

    @property
    def loaded(self) -> str | None:
        """The model that is."""
        return self._pool.name if self._pool is not None and self.engines else None

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
    async def turn(
        self, name: str, ask: wire.Ask | None = None, keep_alive: float | None = -1
    ) -> AsyncIterator[EngineProcess]:
        """An engine of a model, for one request, in order of arrival.

        Args:
            ask: what it will be asked.
            keep_alive: seconds for which the model stays afterwards, other than the host's.

        Raises:
            QueueFullError: too many wait.
            WorkerDiedError: the model cannot be loaded.
        """
        self._stay()
        seat = await self._seat(name, trail := trail_of(ask))
        begin = time.monotonic()
        try:
            yield seat.engine
            seat.heard.extend(trail[-1:])
            self._crashes_in_a_row = 0
        except WorkerDiedError:
            if self._pool is not None:
                await self._pool.drop(seat)
            self._count_crash()
            raise
        finally:
            self._answer_seconds += 0.2 * (time.monotonic() - begin - self._answer_seconds)
            self._free(seat, self.limits.keep_alive if keep_alive == -1 else keep_alive)

    async def close(self, seconds: float) -> None:
        """End the engines when the answers under way are given, or time is up."""
        end = time.monotonic() + seconds
        while self._is_at_work and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
        await self._unload()

    # Who gets which engine ------------------------------------------------------------------------

    @property
    def _is_at_work(self) -> bool:
        return self._pool is not None and self._pool.is_at_work

    async def _seat(self, name: str, trail: Trail) -> Seat:
        one = _Waiting(name, trail, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        self._dispatch()
        # Whoever an engine is being started for does not wait for others.
        most = self.limits.queue + (self._changing is not None)
        if one in self._queue and len(self._queue) > most:
            self._queue.remove(one)
            engines = max(min(self.engines, self.limits.threads), 1)
            raise QueueFullError(max(1, round(self.waiting * self._answer_seconds / engines)))
        try:
            return await one.seat
        except asyncio.CancelledError:  # the client has left
            if one in self._queue:
                self._queue.remove(one)
                self._dispatch()
            elif not one.seat.cancelled() and one.seat.exception() is None:
                self._free(one.seat.result(), self.limits.keep_alive)
            raise

    def _free(self, seat: Seat, keep_alive: float | None) -> None:
        seat.is_busy, seat.free_since = False, time.monotonic()
        self._dispatch()
        self._expire(keep_alive)
        if not seat.has_all:
            self._later(self.limits.spare_seconds, self._shrink)

    def _dispatch(self) -> None:
        """Give free engines to those that wait, and start another one if that helps."""
        while self._pool is not None:
            ready = takewhile(lambda one: one.name == self.loaded, self._queue)
            choice = self._pool.choice(list(ready))
            if choice is None:
                break
            one, seat = choice
            self._queue.remove(one)
            if not one.seat.done():  # else its client has just left
                seat.is_busy = True
                one.seat.set_result(seat)
        if self._changing is None and self._is_short():
            self._changing = asyncio.create_task(self._start())

    def _is_short(self) -> bool:
        """Whether an engine is to be started; of another model, when no answer is under way."""
        if self._queue and (self._pool is None or self._queue[0].name != self._pool.name):
            return not self._is_at_work
        if self._pool is None or not (self._queue or self._is_at_work):
            return False
        return self._pool.lacks(is_awaited=bool(self._queue))

    async def _start(self) -> None:
        try:
            if self._crashes_in_a_row >= _MOST_CRASHES:
                await asyncio.sleep(_CRASH_PAUSE_SECONDS)  # what cannot be loaded may not busy us
            if self._is_short():
                await self._start_one()
        except (WorkerDiedError, OSError) as error:
            self._count_crash()
            if self.engines:  # they go on; there may be no room for one more
                await asyncio.sleep(_CRASH_PAUSE_SECONDS)
            elif self._queue:
                told = error if isinstance(error, WorkerDiedError) else WorkerDiedError(str(error))
                one = self._queue.pop(0)
                if not one.seat.done():
                    one.seat.set_exception(told)
        finally:
            self._changing = None
        self._dispatch()
        if self._unloading is None:
            self._expire(self.limits.keep_alive)

    async def _start_one(self) -> None:
        """Of the model that is asked for first."""
        if self._queue and (self._pool is None or self._queue[0].name != self._pool.name):
            name, limits = self._queue[0].name, self.limits
            await self._unload()
            self._pool = Pool(
                name, self.offered[name], limits.threads, limits.keep_bytes, limits.keep_packed
            )
        assert self._pool is not None
        await self._pool.add()

    def _count_crash(self) -> None:
        self.crashes += 1
        if not self.engines:
            self._crashes_in_a_row += 1

    # What is idle ---------------------------------------------------------------------------------

    def _stay(self) -> None:
        if self._unloading is not None:
            self._unloading.cancel()
        self._unloading = self.expires_at = None

    def _expire(self, seconds: float | None) -> None:
        """Unload what is idle for so long."""
        self._stay()
        if self._pool is None or seconds is None or self._is_at_work or self._queue:
            return
        self.expires_at = time.time() + seconds
        self._unloading = self._later(seconds, self._unload_idle)

    def _later(
        self, seconds: float, action: Callable[[], Coroutine[None, None, None]]
    ) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, lambda: loop.create_task(action()))

    async def _unload_idle(self) -> None:
        self._unloading = None
        if self._is_at_work or self._queue or self._changing is not None:
            return
        self._changing = asyncio.current_task()
        try:
            await self._unload()
        finally:
            self._changing = None
        self._dispatch()

    async def _unload(self) -> None:
        self._stay()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _shrink(self) -> None:
        if self._pool is not None:
            await self._pool.shrink(self.limits.spare_seconds)
