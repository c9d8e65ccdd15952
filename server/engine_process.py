"""A worker from the server's side: started, asked, and started again when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from server import wire

_LOADING_SECONDS = 600.0
_ENDING_SECONDS = 5.0
# glibc gives blocks of this size and more back when they are freed. Left to itself it raises the
# size with each that is freed, and the caches of closed conversations stay.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}


class WorkerDiedError(Exception):
    """The process of the engine ended while something was expected of it."""


class EngineProcess:
    """One loaded model.

    Args:
        keep_bytes: of kept conversations; one is kept in any case.
        packed_weights: a folder that the model's engines share.

    Attributes:
        ready: what the worker said of its model.
    """

    def __init__(self, bundle: Path, threads: int, keep_bytes: int, packed_weights: str) -> None:
        self.bundle = bundle
        self.ready: wire.Ready | None = None
        self._arguments = [str(bundle), "--threads", str(threads)]
        self._arguments += ["--keep-bytes", str(keep_bytes), "--packed-weights", packed_weights]
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._giving_up: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process is not None and self._process.returncode is None

    @property
    def resident_bytes(self) -> int | None:
        """What the process has in memory; None where the system does not say, or it has ended."""
        if self._process is None:
            return None
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def start(self) -> wire.Ready:
        """Load the model.

        Raises:
            WorkerDiedError: the engine refuses it, or takes too long.
            OSError: there can be no process.
        """
        # -I: as for the server itself, nothing in the current folder may replace our modules.
        command = [sys.executable, "-I", "-m", "server.worker", *self._arguments]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **_ALLOCATION},
            start_new_session=True,  # Ctrl-C is for the server, which ends its workers
            limit=wire.MOST_BYTES,
        )
        try:
            said = await asyncio.wait_for(self._hear(), _LOADING_SECONDS)
        except TimeoutError:
            await self.stop()
            raise WorkerDiedError(f"{self.bundle.name} did not load in time") from None
        except WorkerDiedError:
            await self.stop()
            raise WorkerDiedError(f"the engine could not load {self.bundle.name}") from None
        except asyncio.CancelledError:
            await self.stop()
            raise
        assert isinstance(said, wire.Ready)
        self.ready = said
        return said

    async def ask(self, ask: wire.Ask) -> AsyncGenerator[wire.FromWorker, None]:
        """What is said about an answer, `Done` or `Failed` last; closing it cancels.

        One at a time: the caller waits its turn.

        Raises:
            WorkerDiedError: there will be no more.
        """
        ask.number = next(self._numbers)
        is_over = False
        if self._giving_up is not None:  # the rest of an answer that nobody wants
            await asyncio.shield(self._giving_up)
        try:
            await self._say(ask)
            while not is_over:
                said = await self._hear()
                if getattr(said, "number", None) != ask.number:
                    continue
                is_over = isinstance(said, wire.Done | wire.Failed)
                yield said
        finally:
            # Whoever leaves is cancelled, and does not wait for that; the next one to ask does.
            if not is_over and self.is_alive:
                self._giving_up = asyncio.create_task(self._give_up(ask.number))

    async def stop(self) -> None:
        """End the process; its memory is free then."""
        if self._process is None:
            return
        process, self._process, self.ready = self._process, None, None
        if process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _ENDING_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _give_up(self, number: int) -> None:
        """Cancel, and hear the rest out, so that the next answer begins with its own."""
        try:
            await self._say(wire.Cancel(number))
            while True:
                said = await self._hear()
                if isinstance(said, wire.Done | wire.Failed) and said.number == number:
                    return
        except WorkerDiedError:
            return

    async def _say(self, message: wire.ToWorker) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerDiedError("it is not running")
        try:
            process.stdin.write(wire.packed(message))
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDiedError("it has ended") from error

    async def _hear(self) -> wire.FromWorker:
        process = self._process
        if process is None or process.stdout is None:
            raise WorkerDiedError("it is not running")
        try:
            head = await process.stdout.readexactly(wire.LENGTH_BYTES)
            size = int.from_bytes(head, "big")
            if size > wire.MOST_BYTES:
                raise WorkerDiedError("it says what makes no sense")
            return wire.unpacked(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            raise WorkerDiedError("it has ended") from error
        except msgspec.DecodeError as error:
            raise WorkerDiedError("it says what makes no sense") from error
