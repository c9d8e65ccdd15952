"""What comes on stdin, in place of `--prompt` or before it."""

from __future__ import annotations

import io
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

import pytest

from cli.chat.piped import joined_prompt, read_prompt
from converter.errors import OptionError


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (b"Hi", "Hi"),
        (b"Hi\n", "Hi"),
        (b"Hi\r\n", "Hi"),
        (b"\xef\xbb\xbfHi\n", "Hi"),  # with Windows' byte order mark
        (b"  a\n\nb\n\n", "  a\n\nb\n"),
        ("\u4f60\u597d\n".encode(), "\u4f60\u597d"),
    ],
)
def test_reads_a_pipe_whole(data: bytes, prompt: str) -> None:
    assert read_prompt(io.BytesIO(data)) == prompt


@pytest.mark.parametrize(("data", "why"), [(b"", "empty"), (b" \n", "empty"), (b"\xff", "UTF-8")])
def test_refuses_a_pipe_without_text(data: bytes, why: str) -> None:
    with pytest.raises(OptionError, match=why):
        read_prompt(io.BytesIO(data))


# Beside --prompt


@contextmanager
def pipe(data: bytes) -> Iterator[int]:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    yield read


@contextmanager
def a_socket(data: bytes) -> Iterator[int]:  # what ksh and Node give their children
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.close()
        yield os.dup(theirs.fileno())


@contextmanager
def a_file(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield os.dup(file.fileno())


def opened(fd: int) -> TextIO:
    return open(fd, encoding="utf-8")


@pytest.mark.parametrize("kind", [pipe, a_socket, a_file])
def test_what_is_piped_in_comes_first(kind: Callable[[bytes], Iterator[int]]) -> None:
    with kind(b"+ a line\n") as fd, opened(fd) as stdin:  # type: ignore[attr-defined]
        assert joined_prompt("Review this.", stdin, io.StringIO()) == "+ a line\n\nReview this."


@pytest.mark.parametrize("kind", [pipe, a_socket, a_file])
def test_nothing_piped_in_is_no_error(kind: Callable[[bytes], Iterator[int]]) -> None:
    with kind(b"\n") as fd, opened(fd) as stdin:  # type: ignore[attr-defined]
        assert joined_prompt("Hi", stdin, io.StringIO()) == "Hi"


def test_devices_are_not_read() -> None:
    with open("/dev/zero", encoding="utf-8") as endless, open(os.devnull, encoding="utf-8") as null:
        assert joined_prompt("Hi", endless, io.StringIO()) == "Hi"
        assert joined_prompt("Hi", null, io.StringIO()) == "Hi"
    assert joined_prompt("Hi", None, io.StringIO()) == "Hi"  # closed, as in `<&-`


def test_a_terminal_is_not_read() -> None:
    master, slave = os.openpty()
    with opened(slave) as stdin:
        os.write(master, b"typed\n")
        assert joined_prompt("Hi", stdin, io.StringIO()) == "Hi"
    os.close(master)


def test_an_idle_pipe_is_named_and_not_waited_for_for_ever() -> None:
    read, write = os.pipe()
    stderr = io.StringIO()
    with opened(read) as stdin, pytest.raises(OptionError, match=r"nothing came in 0\.1 s"):
        joined_prompt("Hi", stdin, stderr, most_seconds=0.1)
    os.close(write)
    assert stderr.getvalue().startswith("litert-lm-cli: waiting for stdin (add < /dev/null ")


def test_a_slow_pipe_is_read_to_its_end() -> None:
    read, write = os.pipe()

    def tell() -> None:
        os.write(write, b"late\n")
        os.close(write)

    with ExitStack() as stack:
        stdin = stack.enter_context(opened(read))
        late = threading.Timer(1.2, tell)
        late.start()
        stderr = io.StringIO()
        assert joined_prompt("Hi", stdin, stderr) == "late\n\nHi"
        late.join()
    assert "waiting for stdin" in stderr.getvalue()
