"""Where a message ends, and how it is read where the terminal can do no more than lines."""

from __future__ import annotations

import contextlib
import importlib
from typing import Protocol, TextIO

PROMPT = "> "
GOES_ON = "  "  # before the further lines of a message
_QUOTES = '"""'


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str | None:
        """The next message; None at the end. Ctrl-C where nothing is typed is KeyboardInterrupt."""


def is_open(text: str) -> bool:
    """Whether what was typed goes on behind a line break."""
    if text.lstrip().startswith(_QUOTES):
        return text.count(_QUOTES) == 1
    return text.endswith("\\")


def with_line_break(text: str) -> str:
    """An open message, ready for its next line."""
    return text.removesuffix("\\") + "\n"


def message_of(text: str) -> str:
    """What was typed, without the quotes around its lines."""
    inner = text.strip()
    is_quoted = inner.startswith(_QUOTES) and inner.endswith(_QUOTES) and len(inner) >= 6
    if is_quoted and inner.count(_QUOTES) == 2:
        return inner.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text


class Lines:
    """Reads lines: from a terminal that can do no more, or with the prompt out of a file's way."""

    def __init__(self, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # gives input() editing and history

    def read(self) -> str | None:
        text = self._line(PROMPT)
        while text is not None and is_open(text):
            line = self._line(GOES_ON)
            text = None if line is None else with_line_break(text) + line
        return text if text is None else message_of(text)

    def _line(self, prompt: str) -> str | None:
        """One line without its newline; None at the end of the input."""
        screen = self._stdout if self._stdout.isatty() else self._stderr
        try:
            if screen is self._stdout:
                return input(prompt)  # readline draws the prompt on stdout
            print(prompt, end="", file=screen, flush=True)
            line = self._stdin.readline()
            if line:
                return line.removesuffix("\n")
        except EOFError:
            pass
        except UnicodeDecodeError:
            print("error: the line is not UTF-8", file=screen)
            return ""
        except KeyboardInterrupt:
            print(file=screen)  # behind the ^C
            raise
        print(file=screen)
        return None
