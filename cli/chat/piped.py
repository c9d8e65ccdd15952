"""What comes on stdin besides, or instead of, `--prompt`."""

from __future__ import annotations

import io
import os
import select
import stat
from typing import IO, BinaryIO, TextIO

from converter.errors import OptionError

# An open pipe on which nobody writes (`ssh HOST` without -n, a service's child) is like a slow one.
_SECONDS_UNTIL_NOTE = 1.0
_MOST_SECONDS = 60.0
_FIX = "add < /dev/null to answer --prompt alone, or put the input into a file first"


def read_prompt(stream: BinaryIO) -> str:
    """All of a pipe as one prompt, without the newline at its end.

    Raises:
        OptionError: it is empty or not UTF-8.
    """
    text = _read(stream)
    if not text.strip():
        raise OptionError(
            "the prompt on stdin", "is empty", "pipe a text in, or run on a terminal to chat"
        )
    return text


def joined_prompt(
    prompt: str, stdin: TextIO | None, stderr: TextIO, most_seconds: float = _MOST_SECONDS
) -> str:
    """`--prompt` behind what is piped in, as others have it: `cat diff | run M --prompt "review"`.

    A pipe, a file and a socket are read; a terminal and /dev/null are not.

    Raises:
        OptionError: it is not UTF-8, or nothing came for a long time.
    """
    if stdin is None or not _is_input(stdin):
        return prompt
    _wait(stdin.buffer, stderr, most_seconds)
    text = _read(stdin.buffer)
    return f"{text}\n\n{prompt}" if text.strip() else prompt


def _is_input(stdin: TextIO) -> bool:
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, io.UnsupportedOperation):  # closed, or a program's own stream
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _wait(stream: IO[bytes], stderr: TextIO, most_seconds: float) -> None:
    """Until something is there, be it the end."""
    if os.name == "nt":  # which cannot ask a pipe
        return
    if select.select([stream], [], [], min(_SECONDS_UNTIL_NOTE, most_seconds))[0]:
        return
    print(f"litert-lm-cli: waiting for stdin ({_FIX})", file=stderr, flush=True)
    if not select.select([stream], [], [], max(most_seconds - _SECONDS_UNTIL_NOTE, 0))[0]:
        raise OptionError("stdin", f"is open, but nothing came in {most_seconds:g} s", _FIX)


def _read(stream: IO[bytes]) -> str:
    try:
        text = stream.read().decode("utf-8-sig")  # Windows' tools put a mark before it
    except UnicodeDecodeError as error:
        raise OptionError(
            "the prompt on stdin", "is not UTF-8", "convert it, as iconv does"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")
