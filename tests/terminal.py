"""A command on a pseudo-terminal, as its user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`litert-lm-cli run` on a pseudo-terminal; a context manager that ends the process.

    Args:
        kind: what TERM says.
        state: the folder for the user's state, None for one of its own.
    """

    def __init__(
        self,
        *arguments: str,
        kind: str = "xterm",
        state: Path | None = None,
        cwd: Path = ROOT,
        **redirected: int,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 500, 0, 0))
        self._own_state = tempfile.TemporaryDirectory()
        home = state or Path(self._own_state.name)
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | redirected

        def take_terminal() -> None:
            os.setsid()  # Ctrl-C reaches the processes of the terminal's own session
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", *arguments],
            cwd=cwd,
            env=os.environ
            | {"TERM": kind, "INPUTRC": os.devnull, "COLUMNS": "500", "XDG_STATE_HOME": str(home)}
            | {"PYTHONPATH": str(ROOT)},
            preexec_fn=take_terminal,
            **streams,
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        self._own_state.cleanup()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, pattern: str, seconds: float = 60) -> str:
        """What appears up to the first match of `pattern` in what is new."""
        new = ""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, _shown(new)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {new!r} after {self.seen!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    data = os.read(self._master, 4096)
                except OSError:  # the other end is closed
                    data = b""
                assert data, f"no {pattern!r} in {new!r} after {self.seen!r}"
                new += data.decode("utf-8", "replace")
        self.seen += new
        return _shown(new)

    @property
    def shown(self) -> str:
        """All of it, as it would stand on one long screen."""
        return _shown(self.seen)

    @property
    def modes(self) -> list[object]:
        """Of the terminal: whether it echoes, sends lines or keys, ..."""
        return termios.tcgetattr(self._master)

    def exit_code(self) -> int:
        self.process.wait(30)
        while select.select([self._master], [], [], 0)[0]:
            try:
                data = os.read(self._master, 4096)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode("utf-8", "replace")
        return self.process.returncode


def worker_of(supervisor: int) -> int:
    """The process that does the work."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    deadline = time.monotonic() + 10
    while not children.read_text().split():
        assert time.monotonic() < deadline
    return int(children.read_text().split()[0])


_CODES = re.compile(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])|\x1b\][^\x07]*\x07|.", re.DOTALL)


def _shown(text: str) -> str:
    """What stands on a screen that was empty: lines, and where they are dim."""
    lines: list[list[str]] = [[]]
    row = column = 0
    style = ""  # of what comes next
    is_styled = False
    for code in _CODES.finditer(text):
        count, order, what = int(code[1] or 1), code[2], code[0]
        if order == "m":
            if count:
                style = what
            elif is_styled:
                lines[row][column - 1 : column] = [lines[row][column - 1] + what]
            is_styled = bool(count)
        elif order in ("A", "B"):
            row = max(0, row + (count if order == "B" else -count))
        elif order in ("C", "D"):
            column = max(0, column + (count if order == "C" else -count))
        elif order in ("J", "K"):
            del lines[row][column:]
            del lines[row + 1 if order == "J" else len(lines) :]
        elif what == "\r":
            column = 0
        elif what == "\b":
            column = max(0, column - 1)
        elif what == "\n":
            row += 1
        elif len(what) == 1:
            lines[row][len(lines[row]) :] = [" "] * (column - len(lines[row]))
            lines[row][column : column + 1] = [style + what]
            style, column = "", column + 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    lines[row][len(lines[row]) :] = [" "] * (column - len(lines[row]))
    return "\n".join(map("".join, lines))
