"""One answer: text streams out while it is generated.

Only the answer goes to stdout; hints, notes and statistics go to stderr.
"""

from __future__ import annotations

import contextlib
import re
from typing import Literal, TextIO

from runner.conversation import Conversation, Statistics
from runner.limit import Piece

BASE_MODEL_NOTE = "note: this model has no chat template: it continues each text as it stands"
KEPT_NOTE = "note: packed weights are kept beside the model: the next start is quicker"

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_THOUGHT_BEGIN, _THOUGHT_END = "<think>\n", "\n</think>\n"
# A terminal obeys these; newline and tab are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class AnswerWriter:
    """Writes the pieces of one answer; a context manager that ends the line.

    On a terminal thoughts are dim and control characters are dropped. Elsewhere thoughts stand
    between lines of their own, and every character of the answer is kept, but newlines at its end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._section: Literal["answer", "thought"] | None = None
        self._after_thought = False  # also after one that was empty
        self._held = ""  # newlines, or half a character, that may turn out to be the end

    def __enter__(self) -> AnswerWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None and issubclass(error_type, BrokenPipeError):
            return
        self._end_line()

    def _end_line(self) -> None:
        if self._section == "thought":
            self._stream.write(_RESET if self._is_terminal else _THOUGHT_END.rstrip("\n"))
        if self._section is not None:
            self._stream.write("\n")
        self._stream.flush()
        self._section, self._held = None, ""

    def write(self, piece: Piece) -> None:
        """Write and flush one piece; a call is shown by who runs it, on a line of its own."""
        if piece.kind == "call":
            self._end_line()
            return
        text = piece.text
        if self._is_terminal:
            text = _CONTROL.sub("", text)
        self._after_thought |= piece.kind == "thought"
        if piece.kind != self._section:
            if self._after_thought:
                text = text.lstrip("\n")  # what separates the two in the model's own format
            if not text:
                return
            self._switch(piece.kind)
        text = self._held + text
        # The engine sends U+FFFD where an answer was cut inside a character.
        kept = text.rstrip("\n\ufffd")
        self._held = text[len(kept) :]
        self._stream.write(kept)
        self._stream.flush()

    def _switch(self, kind: Literal["answer", "thought"]) -> None:
        self._held = ""
        if kind == "thought":
            if self._section == "answer":
                self._stream.write("\n")
            self._stream.write(_DIM if self._is_terminal else _THOUGHT_BEGIN)
        else:
            if self._section == "thought":
                self._stream.write(_RESET + "\n\n" if self._is_terminal else _THOUGHT_END)
            self._after_thought = False
        self._section = kind


def answer(
    conversation: Conversation,
    prompt: str,
    stdout: TextIO,
    stderr: TextIO,
    *,
    show_statistics: bool = False,
) -> None:
    """Stream the answer to one prompt."""
    with AnswerWriter(stdout) as writer, contextlib.closing(conversation.ask(prompt)) as pieces:
        for piece in pieces:
            writer.write(piece)
    if conversation.finish == "context":
        print("note: the answer ends here because the context is full", file=stderr)
    if show_statistics and conversation.statistics is not None:
        print(describe(conversation.statistics), file=stderr)


def describe(statistics: Statistics) -> str:
    """One line of it."""
    drafted = ""
    if statistics.drafted_pieces:
        at_a_time = statistics.decode_tokens / statistics.drafted_pieces
        drafted = f", {at_a_time:.1f} at a time with drafts"
    return (
        f"prefill: {statistics.prefill_tokens} tokens at {statistics.prefill_rate:.1f} tok/s, "
        f"first token after {statistics.first_token_seconds:.2f} s; "
        f"decode: {statistics.decode_tokens} tokens at {statistics.decode_rate:.1f} tok/s"
        f"{drafted}"
    )
