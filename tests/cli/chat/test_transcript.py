"""Chats in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.chat.transcript import Chosen, Transcript, read, write
from converter.errors import LiteRTLMError, OutputError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi ✓"},
    {"role": "assistant", "content": "Hello.\n"},
]
CHAT = Transcript("models/demo.litertlm", MESSAGES, Chosen(max_tokens=9, temperature=0.0))


def test_json_is_a_request_to_openai_s_interface(tmp_path: Path) -> None:
    write(tmp_path / "a.json", CHAT)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {
        "model": "models/demo.litertlm",
        "messages": MESSAGES,
        "max_tokens": 9,
        "temperature": 0.0,
    }
    assert read(tmp_path / "a.json") == CHAT
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_markdown_is_to_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.md", CHAT)
    assert (tmp_path / "a.md").read_text("utf-8") == (
        "# Chat with demo\n\n## System\n\nBe brief.\n\n## You\n\nHi ✓\n\n## demo\n\nHello.\n\n"
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory, choose another file"):
        write(tmp_path / "file" / "a.json", CHAT)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no list of messages"),
        ('{"messages": "x"}', "holds no list of messages"),
        ('{"messages": [{"role": "user"}]}', "its message 1 cannot be part of a chat"),
        ('{"messages": [{"role": "x", "content": ""}]}', "its message 1 cannot be part of a chat"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "its message 1 cannot be part"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
            "its message 2 cannot be part of a chat",
        ),
        ('{"messages": [], "temperature": -1}', "--temperature: '-1' is not a number of at least"),
    ],
)
def test_what_is_no_chat(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(LiteRTLMError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {why}")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LiteRTLMError, match="No such file or directory, check the path"):
        read(tmp_path / "a.json")
