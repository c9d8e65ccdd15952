"""Answers that are JSON of a schema: the file that says which, and the answer as it may be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import OptionError

MOST_BYTES = 1 << 16  # of a schema; the engine makes a grammar of it
_MOST_SHOWN = 200


@dataclass(frozen=True)
class Schema:
    """A JSON schema.

    Attributes:
        name: what it is called in errors.
        text: as the engine takes it.
    """

    name: str
    text: str


def read_schema(path: Path) -> Schema:
    """A JSON schema from a file; whether the engine can keep to it, `Model.conversation` finds out.

    Raises:
        OptionError: the file cannot be read, or is no JSON object.
    """
    what = f"--schema {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OptionError(what, error.strerror or str(error), "name a readable file") from error
    if len(content) > MOST_BYTES:
        raise OptionError(what, f"is larger than {MOST_BYTES} bytes", "give it a smaller one")
    try:
        schema = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise OptionError(what, f"is not JSON: {error}", "correct it there") from error
    if not isinstance(schema, dict):
        raise OptionError(
            what,
            "is not a JSON object",
            'a schema begins like {"type": "object", "properties": ...',
        )
    return Schema(what, json.dumps(schema))


def settings() -> dict[str, Any]:
    """What a conversation of the engine is made with, so that its answers can be constrained."""
    import litert_lm

    return {
        "constrained_decoding_config": litert_lm.ConstrainedDecodingConfig(
            enable=True, provider=litert_lm.LiteRtLmConstraintProviderType.LL_GUIDANCE
        )
    }


def constraint(text: str, is_regex: bool = False) -> dict[str, Any]:
    """What is said with a message, so that its answer is JSON of a schema, or matches a regex."""
    import litert_lm

    kinds = litert_lm.ResponseFormat.Type
    kind = kinds.REGEX if is_regex else kinds.JSON_OBJECT
    return {"response_format": litert_lm.ResponseFormat(type=kind, schema_or_pattern=text)}


class JsonEscaper:
    """JSON that comes in pieces, with what may not stand in a string as it is escaped there.

    To the engine a line break inside a string is a letter of the vocabularies of Llama, Qwen and
    SmolLM (byte-level BPE), and goes through a constraint as it is.
    """

    def __init__(self) -> None:
        self._in_string = self._is_escaped = False

    def feed(self, text: str) -> str:
        """The same piece, escaped."""
        return "".join(map(self._letter, text))

    def _letter(self, letter: str) -> str:
        if self._in_string and letter < " ":
            return json.dumps(letter)[1:-1]
        if self._is_escaped:
            self._is_escaped = False
        elif letter == '"':
            self._in_string = not self._in_string
        else:
            self._is_escaped = self._in_string and letter == "\\"
        return letter


def as_json(text: str) -> str | None:
    """An answer that a schema held; None where it is not whole."""
    text = JsonEscaper().feed(text).strip()
    try:
        json.loads(text)
    except ValueError:
        return None
    return text


def refused(schema: Schema, reason: str) -> OptionError:
    """What the engine says of a schema that it cannot keep to; `reason` is its own."""
    _, _, told = reason.rpartition("LLGuidance constraint: ")
    return OptionError(
        schema.name,
        f"the engine cannot keep to it: {told.strip()[:_MOST_SHOWN]}",
        "correct the schema, or ask for less",
    )


def is_spelling_failure(reason: str) -> bool:
    """Whether the engine failed over a fixed text, as `spelling_error` says."""
    return "doesn't satisfy the grammar" in reason


def spelling_error() -> OptionError:
    """The engine takes tokens of byte-level BPE as they are spelt: "\u0120York" is not " York"."""
    return OptionError(
        "--schema",
        "the engine cannot keep this model's tokenizer to fixed texts with blanks or letters "
        "beyond ASCII",
        "choose names and values without them",
    )
