"""The command line: parses arguments, and is the only place that prints errors and exits."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from cli import (
    check,
    completion,
    convert,
    eval,
    inspect,
    list,
    package,
    preflight,
    push,
    rm,
    run,
    serve,
    upload,
    verify,
)
from converter.errors import LiteRTLMError, OptionError, one_line
from converter.version import __version__

_COMMANDS = (
    run,
    serve,
    convert,
    check,
    preflight,
    eval,
    package,
    upload,
    push,
    inspect,
    list,
    rm,
    verify,
    completion,
)
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a process that SIGINT ended
EXIT_BROKEN_PIPE = 141  # the same for SIGPIPE


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors look like all others."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(self.prog, message, f"see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    """Leaves room for the longest command, which argparse takes to be less indented than it is."""

    def add_argument(self, action: Any) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="litert-lm-cli",
        description="Any open language model into .litertlm in seconds, and straight into a chat.",
        formatter_class=_Help,
        epilog="Try: litert-lm-cli run demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        subparser = command.add_parser(subparsers)
        subparser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        subparser.set_defaults(handler=command.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # Closed by the caller, as in `2>&-`: print would take the other one instead.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    debug = "--debug" in arguments
    try:
        if hasattr(signal, "pthread_sigmask"):  # the supervisor blocks it until here
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        parser = build_parser()
        if completion.ASKED in os.environ:
            completion.answer_the_shell(parser)
        args = parser.parse_args(arguments)
        debug = args.debug  # argparse takes --deb, too
        with _endings():
            args.handler(args)
            sys.stdout.flush()
    except LiteRTLMError as error:
        sys.stdout.flush()  # verify has said what differs
        return _fail(
            str(error), EXIT_USAGE if isinstance(error, OptionError) else EXIT_FAILURE, debug
        )
    except KeyboardInterrupt:
        return _fail("interrupted, at your request, run it again", EXIT_INTERRUPTED, debug)
    except _Ended as ended:
        name = signal.Signals(ended.number).name
        return _fail(f"interrupted, by {name}, run it again", 128 + ended.number, debug)
    except BrokenPipeError:
        # The reader of our stdout left; give the interpreter's last flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # where nobody could say more: stdout on a full disk, for example
        return _fail(
            f"{error.filename or 'reading or writing'}, {error.strerror or error}, "
            "check the disk and its permissions (--debug shows what was done)",
            EXIT_FAILURE,
            debug,
        )
    except Exception as error:
        return _fail(
            f"unexpected {type(error).__name__}, {error}, "
            "this is a bug: run again with --debug and report what it prints",
            EXIT_FAILURE,
            debug,
        )
    return 0


class _Ended(BaseException):
    """A signal that ends the process, as an exception: so that nothing half-written stays."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _endings() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind, as SIGINT does; what was ignored (nohup) stays so."""
    if threading.current_thread() is not threading.main_thread():  # others hear no signals
        yield
        return
    before: dict[int, Any] = {}

    def end(number: int, _frame: FrameType | None) -> None:
        for later in before:  # a closed terminal says it to every process, and so do supervisors
            signal.signal(later, signal.SIG_IGN)
        raise _Ended(number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        with _raised_again():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raised_again() -> Iterator[None]:
    """Raise once more, a moment later, what a signal raised where Python drops exceptions.

    Callbacks are such places: of a weak reference (imports have some), or of a fork.
    """
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    report = sys.unraisablehook
    lost: BaseException = KeyboardInterrupt()

    def hear(dropped: Any) -> None:
        nonlocal lost
        if isinstance(dropped.exc_value, KeyboardInterrupt | _Ended):
            lost = dropped.exc_value
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            report(dropped)

    def raise_again(_number: int, _frame: FrameType | None) -> None:
        raise lost

    sys.unraisablehook, alarm = hear, signal.signal(signal.SIGALRM, raise_again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report
        signal.signal(signal.SIGALRM, alarm)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
