"""Runs a command in a process of its own, so that its death becomes an error of ours.

Native code (the engine, tokenizers, our kernels) can end a process without a word, and so does the
system when memory runs out. This process does nothing but wait for the other one: it says what
became of it, passes signals on, and can end it where native code does not listen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from converter.output.process import end_with

_MARK = "LITERT_LM_SUPERVISOR"  # the supervisor's process id, for the process that it starts
_LOG = "LITERT_LM_LOG"  # as in runner.native_log, which a supervisor need not import
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")
# So many Ctrl-C that found nobody listening end the process.
_MOST_UNHEARD = 3
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")


def supervised(command: Callable[[], int]) -> int:
    """Run this program once more, which comes here again and then runs `command()`.

    Where no process can be started this way (Windows), `command()` runs in this one.

    Returns:
        The exit code: the command's, or 128 and the number of the signal that ended it.
    """
    if os.environ.pop(_MARK, None) == str(os.getppid()):
        end_with(os.getppid())
        _tell_what_is_heard(os.getppid())
        return command()
    if not (hasattr(os, "posix_spawn") and sys.executable):
        return command()
    log = _make_log()
    signals = [getattr(signal, name) for name in _PASSED_ON]
    # Until they can be passed on, and understood.
    signal.pthread_sigmask(signal.SIG_BLOCK, [*signals, signal.SIGUSR1])
    if sys.platform == "linux":
        # One start of Python less: nothing is loaded yet that a copy could not use.
        supervisor = os.getpid()
        child = os.fork()
        if child == 0:
            os.environ[_LOG] = str(log)
            end_with(supervisor)
            _tell_what_is_heard(supervisor)
            # SIGINT is taken off where it can be answered, in cli.main.
            signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGINT])
            return command()
    else:
        child = os.posix_spawn(
            sys.executable,
            sys.orig_argv,
            os.environ | {_MARK: str(os.getpid()), _LOG: str(log)},
            setsigmask=[signal.SIGINT],
        )
    return _wait(child, signals, log)


def _wait(child: int, signals: Sequence[signal.Signals], log: int) -> int:
    """Wait for a process, pass (blocked) signals on to it, and report its death; its exit code."""
    unheard = 0
    give_back = _terminal_as_it_is()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal unheard
        if number == signal.SIGINT:
            unheard += 1
            if unheard >= _MOST_UNHEARD:
                number = signal.SIGKILL
            elif _is_in_foreground():
                return  # the terminal has told every process of the group
        with contextlib.suppress(ProcessLookupError):  # it may have ended just now
            os.kill(child, number)

    def be_told(_number: int, _frame: FrameType | None) -> None:
        nonlocal unheard
        unheard = 0

    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, pass_on)
    signal.signal(signal.SIGUSR1, be_told)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [*signals, signal.SIGUSR1])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    give_back()  # whoever edits a line has it send keys one by one
    if -code == signal.SIGKILL and unheard >= _MOST_UNHEARD:
        code = -signal.SIGINT
    _report(-code, log)
    return 128 - code


def _terminal_as_it_is() -> Callable[[], None]:
    """What puts the terminal's modes back to what they are now."""
    import termios  # no Windows comes here

    try:
        modes = termios.tcgetattr(0)
    except termios.error:  # stdin is no terminal
        return lambda: None

    def give_back() -> None:
        if _is_in_foreground():  # the system stops a job in the background that tries
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, modes)

    return give_back


def _make_log() -> int:
    """A file in memory for the engine's log, which outlives it; -1 where there is none."""
    if not hasattr(os, "memfd_create"):  # Linux has it
        return -1
    log = os.memfd_create("litert-lm-log")
    os.set_inheritable(log, True)
    return log


def _report(number: int, log: int) -> None:
    name = signal.Signals(number).name
    if name in _CRASHES:
        said = _reason(log)
        why = f"native code crashed ({name}{': ' if said else ''}{said})"
        fix = (
            "the file may be damaged (see verify), or the disk: else report it, with what "
            "run --verbose shows"
        )
    elif name == "SIGKILL":
        why = "it was killed (SIGKILL), by somebody or because memory ran out"
        fix = "close other programs, or take a smaller model or context"
    else:
        why, fix = f"interrupted by {name}", "run it again"
    line = "".join(c if c.isprintable() else " " for c in f"error: litert-lm-cli, {why}, {fix}")
    if sys.stderr is not None:  # nobody may read it
        with contextlib.suppress(OSError):
            print(("\x1b[0m" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)


def _reason(log: int) -> str:
    from runner.native_log import find_reason

    content = os.pread(log, 1 << 20, 0) if log >= 0 else b""
    return find_reason(content.decode("utf-8", "replace")) or ""


def _is_in_foreground() -> bool:
    """Whether what is typed on the terminal, Ctrl-C too, goes to this process and its child."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _tell_what_is_heard(supervisor: int) -> None:
    """Have Ctrl-C tell the supervisor that it was heard: native code lets it wait."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # it is gone (macOS, where nothing ends this one)
            os.kill(supervisor, signal.SIGUSR1)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
