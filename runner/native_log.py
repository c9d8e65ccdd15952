"""Keeps what native code writes to file descriptor 2 away from the user.

A healthy run is silent at the severity ERROR, but a failing one writes stack traces and lines of
other libraries past every severity. They go to a temporary file, from which an error takes its
reason.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import threading
from types import TracebackType
from typing import IO, TextIO

# Holds the descriptor of a file for the log, which cli.supervisor reads after a crash.
_VARIABLE = "LITERT_LM_LOG"
_STDERR = 2
_GLOG_PREFIX = re.compile(r"^[IWEF]\d{4} [^\]]*\] ")
_SOURCE_PLACE = re.compile(r":?\s*ERROR: \[[^\]]*\]")
_HOLLOW = re.compile(r"^Failed to [a-z ]+: [A-Z_]+$")  # it failed, and that is all
_NO_REASON = re.compile(
    r"^(INFO: |WARNING: |===|\*\*\* |third_party/|@ +0x|0x[0-9a-f]+ |[IW]\d{4} |"
    r"ERROR: .*weight.cache|"  # it goes on without that file, which a drafter finds no folder for
    r"thread '.*' panicked at |fatal runtime error: failed to initiate panic|$)"
)


class NativeLog:
    """While open, fd 2 is a temporary file and `sys.stderr` writes to the real one.

    Logs may be open side by side and end in any order: fd 2 is the real one again after the last.

    Args:
        hidden: False leaves everything as it is.
    """

    def __init__(self, hidden: bool = True) -> None:
        self._hidden = hidden
        self._begin: int | None = None

    def __enter__(self) -> NativeLog:
        if self._hidden:
            self._begin = _redirection.enter()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._begin is not None:
            self._begin = None
            _redirection.leave()

    def reason(self) -> str | None:
        """The last line since the beginning that says what went wrong, or None."""
        return None if self._begin is None else find_reason(_redirection.read(self._begin))


class _Redirection:
    """Of fd 2, which a process has once, whoever wants it elsewhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._file: IO[bytes] | None = None
        self._python_stderr: TextIO | None = None
        self._real = -1

    def enter(self) -> int:
        """Redirect it for one more; the length of the log so far."""
        with self._lock:
            if self._users == 0:
                self._redirect()
            self._users += 1
            assert self._file is not None
            # Every time: a notebook or a test runner may have pointed it elsewhere since the first.
            os.dup2(self._file.fileno(), _STDERR)
            return os.fstat(self._file.fileno()).st_size

    def leave(self) -> None:
        """For one less."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore()

    def read(self, begin: int) -> str:
        """The log from there on."""
        assert self._file is not None
        fd = self._file.fileno()
        # Not with read: fd 2 shares the position at which it writes.
        return os.pread(fd, os.fstat(fd).st_size - begin, begin).decode("utf-8", "replace")

    def _redirect(self) -> None:
        self._file = _open_log()
        self._real = os.dup(_STDERR)
        if _writes_to_stderr(sys.stderr):
            sys.stderr.flush()
            self._python_stderr = sys.stderr
            sys.stderr = open(  # noqa: SIM115 - closed in _restore
                self._real,
                "w",
                buffering=1,
                encoding=sys.stderr.encoding,
                errors="backslashreplace",
                closefd=False,
            )

    def _restore(self) -> None:
        assert self._file is not None
        os.dup2(self._real, _STDERR)
        if self._python_stderr is not None:
            sys.stderr.close()
            sys.stderr = self._python_stderr
            self._python_stderr = None
        os.close(self._real)
        self._file.close()
        self._file = None


_redirection = _Redirection()


def find_reason(log: str) -> str | None:
    """The last line of an engine log that says what went wrong.

    >>> find_reason("E0000 00:00:1.2  7 engine.cc:854] Failed: INTERNAL: ERROR: [a.cc:1]\\n"
    ...             "└ Invalid flatbuffer\\n=== Source Location Trace: ===\\na.cc:460")
    'Invalid flatbuffer'
    """
    reason = None
    in_trace = False  # after its heading, a trace names source files up to the next message
    for raw in log.splitlines():
        line = raw.strip()
        starts_message = bool(_GLOG_PREFIX.match(line)) or line.startswith("└")
        in_trace = not starts_message and (in_trace or line.startswith("==="))
        if in_trace or _NO_REASON.match(line):
            continue
        text = _SOURCE_PLACE.sub("", _GLOG_PREFIX.sub("", line)).lstrip("└ ").strip()
        if text and not (reason and _HOLLOW.match(text)):
            reason = text
    return reason


def _open_log() -> IO[bytes]:
    fd = int(os.environ.get(_VARIABLE, -1))
    try:  # another program may have inherited the variable, but not the file
        is_ours = os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:litert-lm-log")
    except OSError:
        is_ours = False
    if not is_ours:
        return tempfile.TemporaryFile()
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return open(fd, "w+b", closefd=False)


def _writes_to_stderr(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == _STDERR
    except (OSError, ValueError, io.UnsupportedOperation):
        return False
