"""Threads for a pile of work, some of which somebody waits for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

from converter.output.process import signals_later

T = TypeVar("T")
R = TypeVar("R")
Task = Callable[[], None]


class Workers:
    """Threads that do the tasks that are waited for first, and others where there are none.

    Raises (from `do` and `finish`): what a task raised; the others are dropped then.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._changed = threading.Condition()
        # Interrupts come to the thread that calls `do` and `finish`. It waits for locks: one that
        # comes in Condition's or Thread's own methods, which are Python's, would break those.
        self._done = threading.Lock()  # taken until no urgent task is left
        self._left = threading.Lock()  # taken until no thread is left
        self._urgent: deque[Task] = deque()
        self._others: deque[Task] = deque()
        self._awaited = 0  # urgent tasks that are not done
        self._ended = False  # nothing will be added
        self._error: BaseException | None = None

    def __enter__(self) -> Workers:
        try:
            with signals_later():
                self._left.acquire()
                for _ in range(self._threads):
                    threading.Thread(target=self._work).start()
            return self
        except BaseException as error:
            self.fail(error)
            raise

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None:  # an interrupt arrives here, not in the threads
            self.fail(error)
        self._join()

    def do(self, tasks: Iterable[Task]) -> None:
        """Do these next, and return when all are done."""
        with self._holding():
            before = len(self._urgent)
            self._urgent.extend(tasks)
            self._awaited += len(self._urgent) - before
            self._done = threading.Lock()
            if self._awaited and not self._error:
                self._done.acquire()
            self._changed.notify_all()
        self._done.acquire()
        self._check()

    def do_later(self, tasks: Iterable[Task]) -> None:
        """Do these when there is time; after an error they are not begun."""
        with self._holding():
            self._others.extend(tasks)
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when everything is done; nothing can be added from then on."""
        self._join()
        self._check()

    def fail(self, error: BaseException) -> None:
        """Begin nothing more; `do` and `finish` raise the first error that came here."""
        with self._holding():
            self._error = self._error or error
            self._changed.notify_all()
            self._wake()

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """What is counted here changes in one thread at a time."""
        with signals_later(), self._changed:
            yield

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except BaseException as error:
                self.fail(error)
        with self._holding():
            self._threads -= 1
            if not self._threads:
                self._left.release()

    def _next(self) -> Task | None:
        """Something to do; None at the end."""
        with self._holding():
            self._changed.wait_for(
                lambda: self._urgent or self._others or self._ended or self._error
            )
            if self._error:
                return None
            if self._urgent:
                return self._counted(self._urgent.popleft())
            return self._others.popleft() if self._others else None

    def _counted(self, task: Task) -> Task:
        def counted() -> None:
            task()
            with self._holding():
                self._awaited -= 1
                if not self._awaited:
                    self._wake()

        return counted

    def _wake(self) -> None:
        if self._done.locked():
            self._done.release()

    def _join(self) -> None:
        with self._holding():
            self._ended = True
            self._changed.notify_all()
        with self._left:
            pass

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def map_in_threads(function: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """`function` of every item, in their order.

    Raises: what one of them raised.
    """
    results: dict[int, R] = {}

    def at(place: int) -> None:
        results[place] = function(items[place])

    with Workers(max(1, min(threads, len(items)))) as workers:
        workers.do(partial(at, place) for place in range(len(items)))
    return [results[place] for place in range(len(items))]
