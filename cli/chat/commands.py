"""The commands of a chat: one table, of which help, completion and documentation are made."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.limits import LIMITS
from converter.errors import OptionError

if TYPE_CHECKING:
    from cli.chat.session import Session

# /usr/bin/env, /* and // are no commands, so that such text can be sent as it is.
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?\s*", re.DOTALL)
_ESCAPED = re.compile(r"/(/\w+(?:\s.*)?)", re.DOTALL)
KEYS = """\
Alt+Enter begins a new line, as does Enter behind \\ or after \"\"\" until they are closed.
@FILE puts a file's text into a message. Tab completes commands, models and files.
What begins like a command and is none is sent with a second slash: //help
Ctrl-C stops an answer, Ctrl-D leaves."""


class LeaveError(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """What can be typed instead of a message.

    Attributes:
        argument: as help shows it, in brackets where it may be left out.
        help: one line.
        run: does it, with the argument or "".
    """

    name: str
    argument: str
    help: str
    run: Callable[[Session, str], None]
    aliases: tuple[str, ...] = ()


def run(session: Session, message: str) -> bool:
    """Do what a message commands; False for one that is no command.

    Raises:
        LeaveError: it is the command to leave.
        LiteRTLMError: there is no such command, or it could not be done.
    """
    match = _COMMAND.fullmatch(message)
    if match is None:
        return False
    name, argument = match[1], (match[2] or "").strip()
    command = _NAMES.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _NAMES, cutoff=0.5)
        meant = " or ".join(f"/{other}" for other in near) or "/help"
        raise OptionError(f"/{name}", "there is no such command", f"try {meant} (//{name} is text)")
    if command.argument and not command.argument.startswith("[") and not argument:
        raise OptionError(f"/{name}", "lacks a name", f"write /{name} {command.argument}")
    if argument and not command.argument:
        raise OptionError(f"/{name}", "takes nothing behind it", f"write /{name} alone")
    command.run(session, argument)
    return True


def text_of(message: str) -> str:
    """What is sent: `//help` -> `/help`."""
    match = _ESCAPED.fullmatch(message)
    return match[1] if match else message


def _help(session: Session, _: str) -> None:
    width = max(len(f"/{command.name} {command.argument}") for command in COMMANDS)
    for command in COMMANDS:
        called = f"/{command.name} {command.argument}"
        session.note(f"  {called:<{width}}  {command.help}")
    session.note(KEYS)


def _system(session: Session, text: str) -> None:
    if text:
        session.change(system=None if text in ('""', "''") else text)
    session.note(f"system message: {session.options.system or 'none'}")


def _model(session: Session, name: str) -> None:
    from converter.checkpoint.sources import models_by_name, models_dir

    if name:
        session.switch(name)
    session.note(f"model: {session.name}")
    if not name and (names := models_by_name(models_dir())):
        session.note(f"in models/: {', '.join(names)}")


def _temperature(session: Session, text: str) -> None:
    if text:
        try:
            value = LIMITS["temperature"](text)
        except argparse.ArgumentTypeError as error:
            raise OptionError("/temperature", str(error), "choose another one") from None
        session.change(temperature=value)
    value = session.options.temperature
    session.note(f"temperature: {'as the model has it' if value is None else f'{value:g}'}")


def _clear(session: Session, _: str) -> None:
    session.clear()
    session.note("everything said so far is forgotten")


def _save(session: Session, file: str) -> None:
    session.note(f"saved {session.save(file)}")


def _load(session: Session, file: str) -> None:
    found = session.load(file)
    session.note(f"loaded {len(found.messages)} messages; the chat goes on from there")
    if found.model and found.model != session.name:
        session.note(f"note: they were said with {found.model} (/model {found.model})")


def _leave(_session: Session, _: str) -> None:
    raise LeaveError


COMMANDS = (
    Command("help", "", "list the commands and keys", _help),
    Command("system", "[TEXT]", 'show the system message, or set it ("" for none)', _system),
    Command("model", "[MODEL]", "show the model, or go on with another one", _model),
    Command("temperature", "[T]", "show the temperature, or set it for what follows", _temperature),
    Command("clear", "", "forget what was said", _clear),
    Command("save", "FILE", "write the chat to a file: JSON, or Markdown for .md", _save),
    Command("load", "FILE", "go on with a chat that was saved as JSON", _load),
    Command(
        "retry", "", "answer the last message again", lambda session, _: session.retry()
    ),
    Command("copy", "", "put the last answer on the clipboard", lambda session, _: session.copy()),
    Command(
        "stats", "", "how full the context is, and how fast the last answer was",
        lambda session, _: session.note(session.statistics),
    ),
    Command("exit", "", "leave (as /bye, /quit and Ctrl-D do)", _leave, ("bye", "quit")),
)  # fmt: skip
_NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
