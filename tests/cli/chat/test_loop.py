"""A chat as its user sees it, on a real terminal."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.chat.loop import HINT
from tests.edited_bundle import always_thinks, completes_text, edited_bundle, small_context
from tests.terminal import CTRL_C, CTRL_D, Terminal, worker_of
from tests.tiny_models import make_checkpoint

LOADED = "Loading the model ...\r\x1b[K"  # and gone again
GREETING = f"{HINT}\nEnter your prompt:\n> "


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
        assert terminal.read_until(r"\n> $") == GREETING
        assert terminal.seen.startswith(LOADED)

        terminal.type("Say hi.\n")
        first = terminal.read_until(r"\n> $")
        assert first.startswith("> Say hi.\n")  # as it was typed
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

        terminal.type(CTRL_C)
        assert HINT in terminal.read_until(r"\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.shown.endswith("\n")
        assert terminal.seen.count("Enter your prompt:") == 1


@pytest.mark.parametrize("option", ["--quiet", "--verbose"])
def test_nothing_is_said_of_loading_where_it_is_not_wanted(
    smollm2_bundle: Path, option: str
) -> None:
    with Terminal(str(smollm2_bundle), option) as terminal:
        seen = terminal.read_until(r"\n> $")
        assert seen.endswith(GREETING)
        assert "Loading" not in terminal.seen
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
        terminal.read_until(r"\n> $")
        assert "\x1b[0m\n(stopped)\n> " in terminal.shown
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
        assert terminal.read_until(r"> $") == GREETING
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


# The editor


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "notes.txt").write_text("The launch is on Tuesday.\n")
    return folder


def test_lines_commands_files_and_history(
    smollm2_bundle: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one user does in one chat, and what the next chat still knows."""
    monkeypatch.setenv("LITERT_LM_MODELS", str(work / "models"))
    make_checkpoint("llama", work / "tiny")
    state = work / "state"
    arguments = (str(smollm2_bundle), "--temperature", "0", "--max-tokens", "4")
    with Terminal(*arguments, state=state, cwd=work) as terminal:
        terminal.read_until(r"\n> $")

        def shown(typed: str, until: str = r"\n> $") -> str:
            terminal.type(typed)
            return terminal.read_until(until)

        assert shown("one \\\n", r"\n  $").endswith("> one\n  ")
        assert shown("two\n").startswith("> one\n  two\n")
        assert shown('"""a\n', r"\n  $")
        shown('b"""\n')
        assert shown("left\x1b\rright\n").startswith("> left\n  right\n")
        assert shown("\x1b[200~pasted\rlines\x1b[201~\n").startswith("> pasted\n  lines\n")
        assert "notes.txt" in shown("When? @no\t", r"notes\.txt")
        shown("\n")
        assert "/stats" in shown("/sta\t", r"/stats")
        assert re.search(r"\ncontext: .*\d+ of 1280 tokens\nprefill: \d+ tokens at ", shown("\n"))
        assert "error: /hlep, there is no such command, try /help" in shown("/hlep\n")
        assert "error: @./gone, there is no such file, check the path\n" in shown("@./gone\n")
        assert "error: @., is a folder" not in shown("@. is text\n")
        assert "\x1b]52;c;" not in terminal.seen
        shown("/copy\n")
        copied = re.search(r"\x1b\]52;c;([A-Za-z0-9+/=]+)\x07", terminal.seen)
        assert copied
        assert base64.b64decode(copied[1])
        assert "saved chat.json\n" in shown("/save chat.json\n")
        assert shown("/model tiny\n").endswith("\nmodel: tiny\n> ")  # converted first
        assert "model: tiny\nin models/: local/tiny\n" in shown("/model\n")
        terminal.type("half a thought")
        terminal.type(CTRL_C)  # drops it
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0

    said = json.loads((work / "chat.json").read_text())["messages"]
    asked = [message["content"] for message in said if message["role"] == "user"]
    assert asked == [
        "one \ntwo",
        "a\nb",
        "left\nright",
        "pasted\nlines",
        "notes.txt:\n```\nThe launch is on Tuesday.\n```\n\nWhen? notes.txt",
        "@. is text",
    ]
    with Terminal(*arguments, state=state, cwd=work) as terminal:
        terminal.read_until(r"\n> $")
        terminal.type("\x1b[A" * 4)
        terminal.read_until("/save chat.json")
        terminal.type(CTRL_C + CTRL_D)
        assert terminal.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_terminal_is_left_as_it_was(qwen3_bundle: Path, number: int) -> None:
    """Also by a process that is ended while it edits a line, for which keys come one by one."""
    with Terminal(str(qwen3_bundle)) as terminal:
        before = terminal.modes
        terminal.read_until(r"\n> $")
        assert terminal.modes != before
        os.kill(worker_of(terminal.process.pid), number)
        assert terminal.exit_code() == 128 + number
        assert terminal.modes == before
        assert "Traceback" not in terminal.seen


def test_a_dumb_terminal_has_plain_lines(smollm2_bundle: Path) -> None:
    arguments = (str(smollm2_bundle), "--temperature", "0", "--max-tokens", "2")
    with Terminal(*arguments, kind="dumb") as terminal:
        terminal.read_until(r"\n> $")
        assert "\x1b" not in terminal.seen
        terminal.type("Say \\\n")
        terminal.read_until(r"\n  $")
        terminal.type("hi.\n")
        terminal.read_until(r"\n> $")
        terminal.type("/stats\n")
        assert "of 1280 tokens" in terminal.read_until(r"\n> $")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0
