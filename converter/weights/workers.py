"""Threads for a pile of work, some of which somebody waits for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

Task = Callable[[], None]


class Workers:
    """Threads that do the tasks that are waited for first, and others where there are none.

    Raises (from `do` and `finish`): what a task raised; the others are dropped then.
    """

    def __init__(self, threads: int) -> None:
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        # Interrupts come to the thread that calls `do`. Inside Condition's own methods, which are
        # Python's, they would leave a lock taken: that thread takes locks themselves, and waits
        # for one.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._done = threading.Lock()  # taken until no urgent task is left
        self._urgent: deque[Task] = deque()
        self._others: deque[Task] = deque()
        self._awaited = 0  # urgent tasks that are not done
        self._ended = False  # nothing will be added
        self._error: BaseException | None = None

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

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
        with self._lock:
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
        with self._lock:
            self._others.extend(tasks)
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when everything is done; nothing can be added from then on."""
        self._join()
        self._check()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except BaseException as error:
                self.fail(error)

    def _next(self) -> Task | None:
        """Something to do; None at the end."""
        with self._lock:
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
            with self._lock:
                self._awaited -= 1
                if not self._awaited:
                    self._wake()

        return counted

    def fail(self, error: BaseException) -> None:
        """Begin nothing more; `do` and `finish` raise the first error that came here."""
        with self._lock:
            self._error = self._error or error
            self._changed.notify_all()
            self._wake()

    def _wake(self) -> None:
        if self._done.locked():
            self._done.release()

    def _join(self) -> None:
        with self._lock:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
