"""What Tab offers, where a message ends, and what is remembered."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from cli.chat.editor import ChatCompleter
from cli.chat.history import MOST, KeptHistory, history_file
from cli.chat.reading import is_open, message_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    model = tmp_path / "models/org/tiny/tiny.litertlm"
    model.parent.mkdir(parents=True)
    model.touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").touch()
    (tmp_path / "my notes.txt").touch()
    (tmp_path / ".hidden").touch()
    return tmp_path


def offered(typed: str) -> list[str]:
    """The whole lines that Tab would make of it."""
    document = Document(typed)
    return [
        typed[: len(typed) + completion.start_position] + completion.text
        for completion in ChatCompleter().get_completions(document, CompleteEvent())
    ]


@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ("/s", ["/system", "/save", "/stats"]),
        ("/x", []),
        ("/model ", ["/model demo", "/model org/tiny", "/model docs/", "/model models/",
                     "/model my notes.txt"]),
        ("/model o", ["/model org/tiny"]),
        ("/load docs/", ["/load docs/page.md"]),
        ("/save my", ["/save my notes.txt"]),
        ("see @do", ["see @docs/"]),
        ("see @docs/p", ["see @docs/page.md"]),
        ("see @my", ['see @"my notes.txt"']),
        ('see @"my n', ['see @"my notes.txt"']),
        ("@.h", ["@.hidden"]),
        ("me@do", []),
        ("hello", []),
        ("@gone/", []),
    ],
)  # fmt: skip
def test_tab(typed: str, lines: list[str]) -> None:
    assert offered(typed) == lines


@pytest.mark.parametrize(
    ("typed", "goes_on", "sent"),
    [
        ("a", False, "a"),
        ("a\\", True, None),
        ('"""a', True, None),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\na\n"""', False, "a"),
        ('"""Doc."""\nimport os', False, '"""Doc."""\nimport os'),
        ('"""A."""\n"""B."""', False, '"""A."""\n"""B."""'),
        ("#define A \\\n  1", False, "#define A \\\n  1"),  # pasted
    ],
)
def test_where_a_message_ends(typed: str, goes_on: bool, sent: str | None) -> None:
    assert is_open(typed) == goes_on
    assert sent is None or message_of(typed) == sent


def test_history_is_the_owner_s_alone_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "state/history"
    history = KeptHistory(path)
    for number in range(MOST + 5):
        history.store_string(f"{number}\nline")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = list(KeptHistory(path).load_history_strings())
    assert again == [f"{number}\nline" for number in reversed(range(5, MOST + 5))]
    assert len(path.read_bytes().splitlines()) == MOST
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["history"]


def test_history_is_bounded_in_bytes_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text(f"{json.dumps('x' * (1 << 20))}\n{json.dumps('kept')}\n{{cut")
    assert list(KeptHistory(path).load_history_strings()) == ["kept"]
    assert path.stat().st_size < 100


def test_a_chat_does_without_a_history(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = KeptHistory(tmp_path / "file/history")
    history.store_string("a")
    assert list(history.load_history_strings()) == []


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "litert-lm-cli/history"
