"""The engines of one loaded model, each in a process of its own.

One has all threads, for the request that comes alone. Where several come at once, engines with one
thread each say more in the same time than any that share the cores (docs/server.md has figures), so
they are started as the queue calls for them and memory allows, and ended when they have had nothing
to do for a while. The packed weights are in memory once for all.

A kept conversation is in one engine's memory. Which one may have it is told from what each has been
asked: a hint, which the engine itself makes sure of.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from converter.memory import free_memory
from runner.packed_weights import PackedWeights
from server import wire
from server.engine_process import EngineProcess, WorkerDiedError
from server.kept import key_of

_MOST_HEARD = 32
# Of what an engine holds, its kept conversations included, so much must be free for another one.
_ROOM = 2

Trail = tuple[bytes, ...]


def trail_of(ask: wire.Ask | None) -> Trail:
    """A mark for each message, which all before it and the settings go into.

    Empty for what goes on with no conversation, and lets none be gone on with.
    """
    if ask is None or not ask.keep or ask.prompt is not None or ask.sampler.seed is not None:
        return ()
    if ask.constraint is not None:
        return ()
    mark, trail = key_of(ask.sampler, ask.tools, ask.thinking), []
    for message in ask.messages:
        content = msgspec.json.encode(message, order="deterministic")
        mark = hashlib.sha256(mark + content).digest()
        trail.append(mark)
    return tuple(trail)


class Asking(Protocol):
    """A request that waits."""

    @property
    def trail(self) -> Trail: ...


AskingT = TypeVar("AskingT", bound=Asking)


@dataclass(eq=False)
class Seat:
    """An engine, and what there is to know of it.

    Attributes:
        has_all: all threads, and not one.
        heard: the last marks of what it has answered.
        free_since: when its last answer ended.
    """

    engine: EngineProcess
    has_all: bool
    is_busy: bool = False
    free_since: float = field(default_factory=time.monotonic)
    heard: deque[bytes] = field(default_factory=lambda: deque(maxlen=_MOST_HEARD))

    def known(self, trail: Trail) -> int:
        """How many of these messages it has been asked before, if it may have kept them."""
        return max((i for i, mark in enumerate(trail[:-1], 1) if mark in self.heard), default=0)


class Pool:
    """The engines of the model in this bundle.

    Args:
        threads: that all of them share.
        keep_bytes: of conversations that the first one keeps, and the others together.
        keep_packed: leave packed weights beside the model, for later starts.
    """

    def __init__(
        self, name: str, bundle: Path, threads: int, keep_bytes: int, keep_packed: bool = False
    ) -> None:
        self.name = name
        self._bundle = bundle
        self._threads = threads
        self._keep_bytes = keep_bytes
        self._seats: list[Seat] = []
        self._keep_packed = keep_packed
        self._folder = contextlib.ExitStack()
        self._packed_weights: PackedWeights | None = None

    @property
    def engines(self) -> int:
        """How many there are."""
        return sum(seat.engine.is_alive for seat in self._seats)

    @property
    def is_at_work(self) -> bool:
        """Whether a request has one."""
        return any(seat.is_busy for seat in self._seats)

    def choice(self, waiting: Sequence[AskingT]) -> tuple[AskingT, Seat] | None:
        """Who gets an engine now, and which one.

        The first of those that wait; but whoever goes on with a chat that a busy engine may have
        kept lets others pass to the free ones, until that one is free. No engine is idle meanwhile.
        """
        at_work = sum(seat.is_busy for seat in self._seats)
        free = [seat for seat in self._seats if not seat.is_busy and seat.engine.is_alive]
        with_one = [seat for seat in free if not seat.has_all]
        if at_work:  # all threads beside another one would be more than there are
            free = with_one or free
        else:
            free.sort(key=lambda seat: not seat.has_all)
        if not waiting or not free or at_work >= self._threads:
            return None
        for one in waiting:
            home = max(self._seats, key=lambda seat: seat.known(one.trail))
            if not home.known(one.trail):
                return one, free[0]
            if home in free:
                return one, home
        return waiting[0], free[0]

    def lacks(self, is_awaited: bool) -> bool:
        """Whether one more is to be started.

        Args:
            is_awaited: requests wait.
        """
        alive = [seat for seat in self._seats if seat.engine.is_alive]
        with_one = [seat for seat in alive if not seat.has_all]
        if len(with_one) == len(alive):
            return True
        most = self._threads if self._threads > 1 else 0
        return is_awaited and len(with_one) < most and _has_room(alive)

    async def add(self) -> None:
        """Start one: with all threads, if there is none such.

        Raises:
            WorkerDiedError: it does not start.
            OSError: there can be no process.
        """
        for seat in [one for one in self._seats if not one.is_busy and not one.engine.is_alive]:
            await self.drop(seat)
        has_all = not any(seat.has_all for seat in self._seats)
        if self._packed_weights is None:
            packed = PackedWeights(self._bundle, self._keep_packed)
            self._packed_weights = self._folder.enter_context(packed)
        threads = self._threads if has_all else 1
        keep_bytes = self._keep_bytes if has_all else self._keep_bytes // self._threads
        folder = self._packed_weights.folder
        engine = EngineProcess(self._bundle, threads, keep_bytes, folder)
        try:
            await engine.start()
        except WorkerDiedError:
            if not self._seats:  # it may have left half a file
                self._forget_packed_weights()
            raise
        self._packed_weights.loaded()
        self._seats.append(Seat(engine, has_all))

    async def drop(self, seat: Seat) -> None:
        """End one."""
        if seat in self._seats:
            self._seats.remove(seat)
        await seat.engine.stop()

    async def shrink(self, seconds: float) -> None:
        """End those with one thread that have had nothing to do for so long."""
        before = time.monotonic() - seconds
        for seat in list(self._seats):
            if not seat.has_all and not seat.is_busy and seat.free_since <= before:
                await self.drop(seat)

    async def close(self) -> None:
        """End all."""
        while self._seats:
            await self.drop(self._seats[-1])
        self._forget_packed_weights()

    def _forget_packed_weights(self) -> None:
        self._folder.close()
        self._packed_weights = None


def _has_room(seats: Sequence[Seat]) -> bool:
    """Whether memory is free for one more; where nobody can say, there is none."""
    free = free_memory()
    held = [seat.engine.resident_bytes for seat in seats]
    return free is not None and free > _ROOM * max((size or 0 for size in held), default=0)
