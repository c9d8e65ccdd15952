"""What an answer looks like: on a terminal, and in a pipe."""

from __future__ import annotations

import contextlib
import io

import pytest

from runner.chat import AnswerWriter
from runner.limit import Piece


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, *pieces: tuple[str, str]) -> str:
    with AnswerWriter(stream) as writer:
        for kind, text in pieces:
            writer.write(Piece(text, kind))  # type: ignore[arg-type]
    return stream.getvalue()


A, T = "answer", "thought"


@pytest.mark.parametrize(
    ("pieces", "in_pipe", "on_terminal"),
    [
        ([], "", ""),
        ([(A, "Hi"), (A, " you")], "Hi you\n", "Hi you\n"),
        ([(A, "Hi\n"), (A, "\n")], "Hi\n", "Hi\n"),
        ([(A, "a\n"), (A, "\nb")], "a\n\nb\n", "a\n\nb\n"),
        ([(A, "\n  indented")], "\n  indented\n", "\n  indented\n"),
        ([(A, "a\x1b[31m\r\x07\tb\x9b\x7f")], "a\x1b[31m\r\x07\tb\x9b\x7f\n", "a[31m\tb\n"),
        ([(A, "cut \ufffd")], "cut \n", "cut \n"),
        ([(A, "odd \ufffd"), (A, "!")], "odd \ufffd!\n", "odd \ufffd!\n"),
        (
            [(T, "\nHm"), (T, "m.\n"), (A, "\n\n"), (A, "Yes")],
            "<think>\nHmm.\n</think>\nYes\n",
            "\x1b[2mHmm.\x1b[0m\n\nYes\n",
        ),
        ([(T, "\n"), (A, "\n\nYes")], "Yes\n", "Yes\n"),
        ([(T, "Hm")], "<think>\nHm\n</think>\n", "\x1b[2mHm\x1b[0m\n"),
        (
            [(A, "a"), (T, "t"), (A, "b")],
            "a\n<think>\nt\n</think>\nb\n",
            "a\n\x1b[2mt\x1b[0m\n\nb\n",
        ),
    ],
)
def test_writes_pieces(pieces: list[tuple[str, str]], in_pipe: str, on_terminal: str) -> None:
    assert written(io.StringIO(), *pieces) == in_pipe
    assert written(FakeTerminal(), *pieces) == on_terminal


def test_an_interrupt_ends_dimming() -> None:
    stream = FakeTerminal()
    with contextlib.suppress(KeyboardInterrupt), AnswerWriter(stream) as writer:
        writer.write(Piece("Hm", "thought"))
        raise KeyboardInterrupt
    assert stream.getvalue() == "\x1b[2mHm\x1b[0m\n"
