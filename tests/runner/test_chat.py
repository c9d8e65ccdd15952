"""What the user of a chat sees: on a real terminal, and in a pipe."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converter.errors import OptionError
from runner.chat import AnswerWriter, read_prompt
from runner.conversation import Piece
from tests.edited_bundle import always_thinks, completes_text, edited_bundle, small_context
from tests.terminal import CTRL_C, CTRL_D, Terminal

LOADED = "Loading the model ...\r\x1b[K"  # and gone again
GREETING = "Ctrl-C stops an answer, Ctrl-D leaves.\nEnter your prompt:\n> "


@pytest.fixture(scope="module")
def smollm2_variant(
    smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    folder = tmp_path_factory.mktemp("variants")

    def make(edit: Callable[[object], None]) -> str:
        path = folder / f"{edit.__name__}.litertlm"
        return str(path if path.exists() else edited_bundle(smollm2_bundle, path, edit))

    yield make
    shutil.rmtree(folder)


# On a terminal


def test_a_chat_from_greeting_to_ctrl_d(smollm2_bundle: Path) -> None:
    with Terminal(str(smollm2_bundle), "--temperature", "0", "--stats") as terminal:
        assert terminal.read_until(r"\n> $") == LOADED + GREETING

        terminal.type("Say hi.\n")
        first = terminal.read_until(r"\n> $")
        assert first.startswith("Say hi.\n")  # the terminal's own echo
        first_statistics = re.search(r"\nprefill: (\d+) tokens at [\d.]+ tok/s, ", first)
        assert first_statistics
        assert re.search(r"first token after [\d.]+ s; decode: \d+ tokens at [\d.]+ tok/s\n", first)

        terminal.type("\n")  # an empty line asks again
        terminal.read_until(r"\n> $")

        terminal.type("Tell me a very long story about the sea.\n")
        terminal.read_until(r"\n.{20}")  # it streams: this is no whole answer
        terminal.type(CTRL_C)
        assert "(stopped)\n> " in terminal.read_until(r"\n> $")

        terminal.type("Say hi.\n")
        later = terminal.read_until(r"\n> $")
        later_statistics = re.search(r"\nprefill: (\d+) tokens", later)
        assert later_statistics
        # The stopped turn and the one before it are read again: the history is whole.
        assert int(later_statistics[1]) > 2 * int(first_statistics[1]) - 10

        time.sleep(0.5)  # readline shows its prompt before it listens, and nobody types so fast
        terminal.type(CTRL_C)
        assert "Ctrl-C stops an answer, Ctrl-D leaves." in terminal.read_until(r"\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.seen.endswith("\r\n")
        assert terminal.seen.count("Enter your prompt:") == 1


@pytest.mark.parametrize("option", ["--quiet", "--verbose"])
def test_nothing_is_said_of_loading_where_it_is_not_wanted(
    smollm2_bundle: Path, option: str
) -> None:
    with Terminal(str(smollm2_bundle), option) as terminal:
        seen = terminal.read_until(r"\n> $")
        assert seen.endswith(GREETING)
        assert "Loading" not in seen
        assert (seen == GREETING) == (option == "--quiet")


def test_thoughts_are_dim(smollm2_variant: Callable[..., str]) -> None:
    with Terminal(
        smollm2_variant(always_thinks), "--temperature", "0", "--max-tokens", "5"
    ) as terminal:
        terminal.read_until(r"\n> $")
        terminal.type("Tell me about Paris.\n")
        assert re.search(
            r"\n\x1b\[2m[^\x1b]+\x1b\[0m\n\n[^\x1b]+\n> $", terminal.read_until(r"\n> $")
        )
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_dim_ends_when_a_thought_is_stopped(smollm2_variant: Callable[..., str]) -> None:
    def thinks_for_ever(metadata: object) -> None:
        always_thinks(metadata)
        metadata.channels[0].end = "@@@"  # type: ignore[attr-defined]

    with Terminal(smollm2_variant(thinks_for_ever), "--temperature", "0") as terminal:
        terminal.read_until(r"\n> $")
        terminal.type("Tell me a very long story about the sea.\n")
        terminal.read_until(r"\x1b\[2m.{10}")
        terminal.type(CTRL_C)
        assert "\x1b[0m\n(stopped)\n> " in terminal.read_until(r"\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_the_end_of_the_context(smollm2_variant: Callable[..., str]) -> None:
    with Terminal(smollm2_variant(small_context), "--temperature", "0") as terminal:
        terminal.read_until(r"\n> $")
        terminal.type("Tell me a very long story about the sea.\n")
        told = terminal.read_until(r"\n> $")
        assert "\nnote: the answer ends here because the context is full\n" in told
        terminal.type("Go on.\n")
        refused = terminal.read_until(r"\n> $")
        assert re.search(r"\nerror: the prompt, is \d+ tokens long .* context of 64 must", refused)
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_a_base_model_says_so(smollm2_variant: Callable[..., str]) -> None:
    with Terminal(
        smollm2_variant(completes_text), "--temperature", "0", "--max-tokens", "3"
    ) as terminal:
        assert "note: this model has no chat template" in terminal.read_until(r"\n> $")
        terminal.type("The capital of France is\n")
        assert "\n Paris" in terminal.read_until(r"\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_prompts_keep_out_of_a_redirected_answer(smollm2_bundle: Path, tmp_path: Path) -> None:
    with (
        (tmp_path / "answers").open("wb") as out,
        Terminal(str(smollm2_bundle), "--max-tokens", "3", stdout=out.fileno()) as terminal,
    ):
        assert terminal.read_until(r"> $") == LOADED + GREETING
        terminal.type("Say hi.\n")
        terminal.read_until(r"\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
    answers = (tmp_path / "answers").read_text()
    assert answers.count("\n") == 1
    assert ">" not in answers


def test_ctrl_c_ends_a_single_answer(smollm2_bundle: Path) -> None:
    with Terminal(str(smollm2_bundle), "--prompt", "Tell me a very long story.") as terminal:
        terminal.read_until(r".{20}")
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 130
        assert "error: interrupted" in terminal.seen


# Without one: the pieces alone


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
