"""Reads messages on a terminal: lines to edit, history, and Tab.

It draws on stderr, so that stdout is the answers alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from cli.chat.commands import COMMANDS
from cli.chat.history import KeptHistory, history_file
from cli.chat.reading import GOES_ON, PROMPT, is_open, message_of, with_line_break
from converter.checkpoint.sources import models_by_name, models_dir

_NAME = re.compile(r"/(\w*)")
_MODEL = re.compile(r"/model\s+(\S*)")
_FILE = re.compile(r"/(?:save|load)\s+(.*)")
_MENTION = re.compile(r'(?:^|[\s(\[])@("?)([^"\n]*)$')


class Editor:
    """A `cli.chat.reading.Reader`."""

    def __init__(self, stderr: TextIO) -> None:
        output = create_output(stderr)
        if isinstance(output, Vt100_Output):
            # Else it asks where the cursor is, and a late answer would be taken for typed text.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            output=output,
            history=KeptHistory(history_file()),
            completer=ChatCompleter(),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            multiline=True,
            prompt_continuation=GOES_ON,
            enable_open_in_editor=True,
            include_default_pygments_style=False,
        )

    def read(self) -> str | None:
        try:
            return message_of(self._session.prompt())
        except EOFError:
            return None


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer: Buffer = event.current_buffer
        at_end = buffer.document.is_cursor_at_the_end
        if at_end and is_open(buffer.text):
            buffer.document = Document(with_line_break(buffer.text))
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:  # what was typed is dropped, as in a shell
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


class ChatCompleter(Completer):
    """Commands, models behind `/model`, and files behind `/save`, `/load` and `@`."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if match := _NAME.fullmatch(text):
            for command in COMMANDS:
                if command.name.startswith(match[1]):
                    yield _completion(match[1], command.name, command.name, command.help)
        elif match := _MODEL.fullmatch(text):
            for name in ("demo", *models_by_name(models_dir())):
                if name.startswith(match[1]):
                    yield _completion(match[1], name, name)
            yield from _files(match[1])
        elif match := _FILE.fullmatch(text):
            yield from _files(match[1])
        elif match := _MENTION.search(text):
            yield from _files(match[2], quote=match[1])


def _files(typed: str, quote: str | None = None) -> Iterator[Completion]:
    """Names that begin with `typed`; within a message (`quote` given) quoted where they must be."""
    folder, _, prefix = typed.rpartition("/")
    home = Path(os.path.expanduser(f"{folder}/" if "/" in typed else "."))
    try:
        entries = sorted(os.scandir(home), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(prefix) or (entry.name.startswith(".") and not prefix):
            continue
        is_folder = entry.is_dir()
        name = typed.removesuffix(prefix) + entry.name + ("/" if is_folder else "")
        if quote is None:
            yield _completion(typed, name, entry.name)
        elif quote or re.search(r"\s", name):
            yield _completion(quote + typed, f'"{name}' + ("" if is_folder else '"'), entry.name)
        else:
            yield _completion(typed, name, entry.name)


def _completion(typed: str, text: str, shown: str, help: str = "") -> Completion:
    return Completion(text, start_position=-len(typed), display=shown, display_meta=help)
