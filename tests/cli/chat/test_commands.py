"""What is a command, and what is text."""

from __future__ import annotations

import pytest

from cli.chat import commands
from cli.chat.commands import COMMANDS, LeaveError
from converter.errors import OptionError

NOBODY = None  # what is refused, or is text, touches no session


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ("hi /help", "hi /help"),
        ("//help", "/help"),
        ("//help me", "/help me"),
        ("// a comment", "// a comment"),
        ("/* C */", "/* C */"),
        ("/usr/bin/env python", "/usr/bin/env python"),
        ("/ and or", "/ and or"),
    ],
)
def test_text_is_sent(message: str, sent: str) -> None:
    assert commands.run(NOBODY, message) is False  # type: ignore[arg-type]
    assert commands.text_of(message) == sent


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("/stat", "/stat, there is no such command, try /stats or /save (//stat is text)"),
        ("/xyzzy", "/xyzzy, there is no such command, try /help (//xyzzy is text)"),
        ("/save", "/save, lacks a name, write /save FILE"),
        ("/load ", "/load, lacks a name, write /load FILE"),
        ("/retry now", "/retry, takes nothing behind it, write /retry alone"),
    ],
)
def test_what_cannot_be_obeyed(message: str, line: str) -> None:
    with pytest.raises(OptionError) as caught:
        commands.run(NOBODY, message)  # type: ignore[arg-type]
    assert str(caught.value) == line


@pytest.mark.parametrize("message", ["/exit", "/bye", "/quit", "/exit "])
def test_leaving(message: str) -> None:
    with pytest.raises(LeaveError):
        commands.run(NOBODY, message)  # type: ignore[arg-type]


def test_each_has_one_line_of_help() -> None:
    assert all(command.help and "\n" not in command.help for command in COMMANDS)
