"""What the system is asked for processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1  # prctl(2)
# What ends a process, and what else may raise, by cli.main's handler: those that this system has.
_ENDING = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]
_RAISING = [one for one in signal.Signals if one in _ENDING or one.name == "SIGALRM"]


def end_with(parent: int) -> None:
    """Have the system kill this process when its parent, a process id, is gone (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def born_quiet() -> Iterator[None]:
    """For the start of a forked process: no signal meets it before it has called `end_quietly`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_quietly() -> None:
    """Let signals end this process at once; Python's handlers would print where they ended it."""
    for number in _ENDING:
        if callable(signal.getsignal(number)):  # not where it is ignored, as under nohup
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Let signals raise when this is over, not within.

    Python raises between any two steps of the main thread. Within threading's own methods, which
    are Python's too, a lock would stay taken, and whoever waits for it would wait for ever: threads
    are started and woken in here. What takes long, as waiting does, must stay outside.
    """
    if threading.current_thread() is not threading.main_thread():  # others hear no signals
        yield
        return
    came: list[signal.Signals] = []
    before = {}
    try:
        for number in _RAISING:
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, lambda number, _: came.append(signal.Signals(number)))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)
