"""Progress of a conversion on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_SECONDS_TO_A_LINE = 2.0
_MOST_SECONDS_BETWEEN_LINES = 60.0
_LEAST_TELLING = 1e-4  # of all bytes
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


@contextmanager
def byte_progress(
    total: int,
    quiet: bool,
    listener: Callable[[int, int], None] | None = None,
    what: str = "Converting",
) -> Iterator[Callable[[int], None]]:
    """Report work on `total` bytes: call what is yielded with the bytes of each finished piece.

    Args:
        listener: is told `(done, total)` instead of anybody at stderr, `quiet` or not.
        what: the work, in a bar's title, or before a line.
    """
    if listener is not None:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            listener(done, total)

        yield advance
    elif quiet:
        yield lambda _: None
    elif _redraws():
        from converter.checkpoint.progress import byte_bars

        with byte_bars(transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda count: bars.advance(task, count)
    else:
        yield Lines(total, what).advance


def step_progress(what: str, quiet: bool) -> Callable[[int, int], None]:
    """Report work of steps: call it as each begins, with how many are done and how many there are.

    On a terminal one line that is redrawn, elsewhere one now and then.
    """
    lines: Lines | None = None

    def tell(done: int, everything: int) -> None:
        nonlocal lines
        if quiet:
            return
        if _redraws():
            end = "\r" if done + 1 < everything else "\r\033[K"
            print(f"{what} {done + 1}/{everything}", end=end, file=sys.stderr, flush=True)
        elif lines is None:
            lines = Lines(everything, what, line=step_line)
        else:
            lines.advance(1)

    return tell


@contextmanager
def stage_progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the stage of slow work: call what is yielded with its name. Only on a terminal."""
    if quiet or not _redraws():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with ExitStack() as stack:
        status = console.status("")
        started = False

        def tell(stage: str) -> None:
            nonlocal started
            status.update(escape(stage))
            if not started:
                stack.enter_context(status)
                started = True

        yield tell


@contextmanager
def passing_line(text: str, quiet: bool) -> Iterator[None]:
    """Show `text` until something is done. Only on a terminal, which is left as it was."""
    if quiet or not _redraws():
        yield
        return
    # The cursor is left at its beginning, so that whatever comes instead is written over it.
    print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:  # looked up again: where a model is loaded, sys.stderr is another stream afterwards
        print("\x1b[K", end="", file=sys.stderr, flush=True)


def _redraws() -> bool:
    """Whether stderr can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Lines:
    """A line after a while, and another one whenever the work has taken twice as long since.

    So that a log of an hour has some, and one of a minute few; short work prints none.
    """

    def __init__(
        self,
        total: int,
        what: str,
        clock: Callable[[], float] = time.monotonic,
        line: Callable[[int, int, float], str] | None = None,
    ) -> None:
        """
        Args:
            line: of what is done, of how much and after how many seconds; None where these are
                bytes.
        """
        self._total = total
        self._what = what.lower()
        self._clock = clock
        self._line = line or progress_line
        self._done = 0
        self._begin = clock()
        self._due = self._begin + _SECONDS_TO_A_LINE

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = self._clock()
        if now < self._due:
            return
        seconds = now - self._begin
        self._due = now + min(seconds, _MOST_SECONDS_BETWEEN_LINES)
        line = self._line(self._done, self._total, seconds)
        print(f"litert-lm-cli: {self._what}: {line}", file=sys.stderr, flush=True)


def progress_line(done: int, total: int, seconds: float) -> str:
    """`1.2 of 4.0 GB, 800 MB/s, 4 s left`, after `seconds` of work, at the average rate so far.

    Of a very first beginning the rate says nothing yet.
    """
    scale, unit = _unit(total)
    rate = done / seconds
    rate_scale, rate_unit = _unit(rate)
    digits = 1 if rate_unit == "GB" else 0
    line = f"{done / scale:.1f} of {total / scale:.1f} {unit}"
    if done < _LEAST_TELLING * total:
        return line
    left = _duration(math.ceil((total - done) / rate))
    return f"{line}, {rate / rate_scale:.{digits}f} {rate_unit}/s, {left} left"


def step_line(done: int, total: int, seconds: float) -> str:
    """`12 of 40, 30 s left`, after `seconds` of work."""
    return f"{done} of {total}, {_duration(math.ceil((total - done) * seconds / done))} left"


def _unit(value: float) -> tuple[float, str]:
    return next((unit for unit in _UNITS if value >= unit[0]), _UNITS[-1])


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"
