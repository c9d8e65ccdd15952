"""Work beside the main thread that Python's lock would otherwise make wait."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

from converter.errors import LiteRTLMError, SourceError
from converter.output.process import born_quiet, end_quietly, end_with

T = TypeVar("T")
# Gemma's tokenizer, the largest that we know, is proved in 3 s and less than 1 GiB.
_MOST_SECONDS, _MOST_MEMORY = 120, 3 << 29
_OUT_OF_MEMORY = 66


class Work(Generic[T]):
    """Work that goes on elsewhere, or is done where its result is first asked for.

    Raises (from a call): what the work raised.
    """

    def __init__(self, result: Callable[[], T], wait: Callable[[float], bool]) -> None:
        self._result, self._wait = functools.cache(result), wait
        self._asking = threading.Lock()
        self._is_done = False
        self._error: BaseException | None = None

    def __call__(self) -> T:
        """Its result, waited for."""
        with self._asking:
            if self._error is not None:
                raise self._error
            try:
                return self._result()
            except BaseException as error:
                self._error = error
                raise
            finally:
                self._is_done = True

    def is_done(self, within: float = 0.0) -> bool:
        """Whether a call returns or raises at once, now or within so many seconds.

        Not while another thread waits for it, which will say so.
        """
        if self._is_done:
            return True
        if not self._asking.acquire(blocking=False):
            return False
        try:
            return self._is_done or self._wait(within)
        finally:
            self._asking.release()


def start(function: Callable[[], T], what: str, is_bounded: bool = True) -> Work[T]:
    """Start `function` in a forked copy of this process; what is returned waits for its result.

    For work that holds Python's lock: threads would stand still beside it. And for work on what
    strangers wrote, a tokenizer and a template: it may take so much time and memory, and its death
    in native code is an error of ours. The result must be picklable. An error of ours is raised
    here as it is; for any other exception the function runs again in this process, and raises here
    with its own traceback. It also runs here where a fork is not safe (macOS: system libraries may
    hold threads) or does not exist.

    Args:
        what: named in the error.
        is_bounded: whether the copy may take so much time and memory only.

    Raises (from what is returned):
        SourceError: it took too long or too much, or died.
    """
    guarded = functools.partial(_without_panics, function, what)
    if sys.platform != "linux":
        return Work(guarded, lambda _: False)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    parent = os.getpid()

    def work() -> None:
        end_quietly()
        receiver.close()  # else sending would wait for ever once the parent is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native code says when it dies
        end_with(parent)
        if is_bounded:
            _limit()
        try:
            sender.send(guarded())
        except LiteRTLMError as error:  # not again where nothing is bounded
            sender.send(_Refusal(type(error), (error.what, error.why, error.fix)))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except BaseException:  # the parent finds the pipe closed
            return

    process = context.Process(target=work, daemon=True)
    with born_quiet():
        process.start()
    sender.close()

    def result() -> T:
        try:
            value = receiver.recv()
        except EOFError:
            process.join()
            # One that was killed, for memory that others took or at somebody's request, says
            # nothing of the work.
            killed = (-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
            if process.exitcode not in (0, *killed):
                assert process.exitcode is not None
                raise SourceError(what, _why(process.exitcode), "do not use these files") from None
            value = guarded()
        except BaseException:  # an interrupt
            process.kill()
            raise
        finally:
            receiver.close()
            process.join()
        if isinstance(value, _Refusal):
            raise value.kind(*value.parts)
        return cast(T, value)

    return Work(result, receiver.poll)


def _without_panics(function: Callable[[], T], what: str) -> T:
    """`function()`; a panic of the Rust code behind it, which is no Exception, as an error."""
    try:
        return function()
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:
        why = f"their reader gave up ({panic})"
        raise SourceError(what, why, "do not use these files") from panic


class _Refusal(NamedTuple):
    """An error of ours on its way from the copy."""

    kind: type[LiteRTLMError]
    parts: tuple[str, str, str]


def _limit() -> None:
    """Bound this process: the memory beyond what it inherited, and its time."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + _MOST_MEMORY
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, _MOST_SECONDS)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(kind, (most, hard))


def _why(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"they take more than {_MOST_SECONDS} s to read"
    if code in (_OUT_OF_MEMORY, -signal.SIGABRT):
        most = f"{_MOST_MEMORY / (1 << 30):g} GiB"
        return f"they take more than {most} of memory, or crash what reads them"
    return f"their reader died (exit code {code})"
