"""Messages and answers in turns, until the user leaves."""

from __future__ import annotations

import os
from typing import TextIO

from cli.chat import commands
from cli.chat.commands import LeaveError
from cli.chat.reading import Lines, Reader
from cli.chat.session import Session
from converter.errors import LiteRTLMError, OptionError, one_line

WELCOME = "Enter your prompt:"
HINT = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."


# Windows has no TERM, and a console that can draw.
_DUMB = ("dumb",) if os.name == "nt" else ("dumb", "", None)


def reader_of(stdin: TextIO, stdout: TextIO, stderr: TextIO) -> Reader:
    """What the user types with: an editor where the terminal can draw one."""
    if stdin.isatty() and stderr.isatty() and os.environ.get("TERM") not in _DUMB:
        from cli.chat.editor import Editor

        return Editor(stderr)
    return Lines(stdin, stdout, stderr)


def chat(session: Session, reader: Reader) -> None:
    """Answer what is read; what goes wrong with one message is said, and the chat goes on."""
    session.note(f"{HINT}\n{WELCOME}")
    while True:
        try:
            message = reader.read()
        except KeyboardInterrupt:
            session.note(HINT)
            continue
        if message is None:
            return
        try:
            _obey(session, message)
        except LeaveError:
            return
        except KeyboardInterrupt:
            session.note("(stopped)")


def _obey(session: Session, message: str) -> None:
    if not message.strip():
        return
    try:
        if commands.run(session, message):
            return
    except LiteRTLMError as error:
        if not session.is_open:  # a model was to be changed, and neither could be loaded
            raise
        session.note(f"error: {one_line(str(error))}")
        return
    try:
        session.say(commands.text_of(message))
    except OptionError as error:  # too long, for example: the next one may fit
        session.note(f"error: {one_line(str(error))}")
