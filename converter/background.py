"""Work beside the main thread that Python's lock would otherwise make wait."""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start(function: Callable[[], T]) -> Callable[[], T]:
    """Start `function` in a forked copy of this process; what is returned waits for its result.

    For work that holds Python's lock: threads would stand still beside it. The result must be
    picklable. A failure is not carried over: the function then runs again in this process and
    raises here, with its own traceback. It also runs here where a fork is not safe (macOS: system
    libraries may hold threads) or does not exist.
    """
    if sys.platform != "linux":
        return functools.cache(function)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        receiver.close()  # else sending would wait for ever once the parent is gone
        try:
            sender.send(function())
        except BaseException:  # the parent finds the pipe closed
            return

    process = context.Process(target=work, daemon=True)
    process.start()
    sender.close()

    def result() -> T:
        try:
            value: T = receiver.recv()
        except EOFError:
            value = function()
        except BaseException:  # an interrupt
            process.kill()
            raise
        finally:
            receiver.close()
            process.join()
        return value

    return functools.cache(result)
