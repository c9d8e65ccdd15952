"""`@FILE`: what is a file, and what stays as it was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.chat.attachments import expanded
from converter.errors import OptionError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("Tuesday.\n")
    (tmp_path / "my notes.txt").write_text("Monday.")
    (tmp_path / "README").write_text("\ufeffRead.\n\n", encoding="utf-8")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.md").write_text("```py\nx\n````\n")
    return tmp_path


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("When? @notes.txt", "notes.txt:\n```\nTuesday.\n```\n\nWhen? notes.txt"),
        ("(@notes.txt).", "notes.txt:\n```\nTuesday.\n```\n\n(notes.txt)."),
        ('@"my notes.txt"?', "my notes.txt:\n```\nMonday.\n```\n\nmy notes.txt?"),
        ("@README", "README:\n```\nRead.\n\n```\n\nREADME"),
        ("@~/notes.txt", "~/notes.txt:\n```\nTuesday.\n```\n\n~/notes.txt"),
        ("@src/code.md", "src/code.md:\n`````\n```py\nx\n````\n`````\n\nsrc/code.md"),
        (
            "@notes.txt @README @notes.txt",
            "notes.txt:\n```\nTuesday.\n```\n\nREADME:\n```\nRead.\n\n```\n\n"
            "notes.txt README notes.txt",
        ),
    ],
)
def test_a_file_comes_before_the_message(message: str, sent: str) -> None:
    assert expanded(message) == sent


@pytest.mark.parametrize(
    "message",
    [
        "write to me@notes.txt",
        "ask @anna, @property and @pytest.fixture",
        "npm i @types/node",
        "@@ -1,2 +3 @@ and @",
        "look into @src",
        "@~nobody-of-this-name",
        "@" + "x" * 5000,
    ],
)
def test_other_names_stay(message: str) -> None:
    assert expanded(message) == message


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("@gone.txt!", "@gone.txt, there is no such file, check the path"),
        ("@gone.rs", "@gone.rs, there is no such file, check the path"),
        ("@src/gone", "@src/gone, there is no such file, check the path"),
        ("@/gone", "@/gone, there is no such file, check the path"),
        ('@"gone away"', "@gone away, there is no such file, check the path"),
        ("@src/", "@src/, is a folder, name a file in it"),
        ("@./pipe", "@./pipe, is no regular file, check the path"),
        ("@image.png", "@image.png, is not text (UTF-8), name a text file"),
        ("@utf16.txt", "@utf16.txt, is not text (UTF-8), name a text file"),
        (
            "@large.txt",
            "@large.txt, is 9.0 MB large, more than any context holds, name a smaller one",
        ),
    ],
)
def test_what_cannot_be_read(folder: Path, message: str, line: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n")
    (folder / "utf16.txt").write_bytes("a".encode("utf-16-le"))
    with (folder / "large.txt").open("wb") as large:
        large.truncate(9_000_000)
    with pytest.raises(OptionError) as caught:
        expanded(message)
    assert str(caught.value) == line
