"""A command on a pseudo-terminal, as its user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`litert-lm-cli run` on a pseudo-terminal; a context manager that ends the process."""

    def __init__(self, *arguments: str, **redirected: int) -> None:
        self._master, slave = pty.openpty()
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | redirected

        def take_terminal() -> None:
            os.setsid()  # Ctrl-C reaches the processes of the terminal's own session
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", *arguments],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm", "INPUTRC": os.devnull, "COLUMNS": "500"},
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


def _shown(text: str) -> str:
    """Without what readline adds around its prompt."""
    return text.replace("\x1b[?2004h", "").replace("\x1b[?2004l\r", "").replace("\r\n", "\n")
