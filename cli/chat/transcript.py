"""A chat in a file: as the request that OpenAI's interface takes, or as Markdown to read.

The JSON is `{"model": ..., "messages": [...], "temperature": ..., ...}`: what was chosen and no
more, so that the server and its clients take the file as it is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from cli.limits import parsed_numbers
from converter.errors import LiteRTLMError, OptionError, OutputError, SourceError
from converter.output.atomic_file import AtomicFile

_MOST_BYTES = 1 << 26
_ROLES = ("system", "user", "assistant", "tool")
_FIX = "name a file that /save wrote"


@dataclass(frozen=True)
class Chosen:
    """How answers are chosen, under OpenAI's names; None was left to the model."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Transcript:
    """A chat.

    Attributes:
        model: as the user named it.
        messages: in OpenAI's form, the system's first.
    """

    model: str
    messages: list[dict[str, Any]]
    chosen: Chosen


def write(path: Path, transcript: Transcript) -> None:
    """Write a chat, whole or not at all: Markdown where the name ends in .md, else JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    text = _markdown(transcript) if path.suffix.lower() == ".md" else _json(transcript)
    try:
        with AtomicFile(path) as file:
            file.write_at(0, text.encode("utf-8", "replace"))
            file.commit()
    except OutputError as error:
        raise OutputError(error.what, error.why, "choose another file") from error


def read(path: Path) -> Transcript:
    """Read what `write` wrote as JSON, or a request to OpenAI's interface that holds only text.

    Raises:
        SourceError: the file cannot be read, or holds no chat.
        OptionError: a number in it is out of its range.
    """
    what = str(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SourceError(what, "is too large for a chat", _FIX)
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(what, error.strerror or str(error), "check the path") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(what, "is not JSON", _FIX) from error
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise SourceError(what, "holds no list of messages", _FIX)
    messages = found["messages"]
    for number, message in enumerate(messages, 1):
        if not _is_message(message) or (message["role"] == "system" and number > 1):
            raise SourceError(what, f"its message {number} cannot be part of a chat", _FIX)
    model = found.get("model")
    try:
        numbers = parsed_numbers({field.name: found.get(field.name) for field in fields(Chosen)})
    except LiteRTLMError as error:
        raise OptionError(what, f"{error.what}: {error.why}", _FIX) from error
    return Transcript(model if isinstance(model, str) else "", messages, Chosen(**numbers))


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return False
    content = message.get("content")
    return isinstance(content, str) or (content is None and "tool_calls" in message)


def _json(transcript: Transcript) -> str:
    chosen = {name: value for name, value in asdict(transcript.chosen).items() if value is not None}
    body = {"model": transcript.model, "messages": transcript.messages, **chosen}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def _markdown(transcript: Transcript) -> str:
    name = PurePath(transcript.model).name.removesuffix(".litertlm")
    titles = {"system": "System", "user": "You", "assistant": name, "tool": "Tool"}
    parts = [f"# Chat with {name}"]
    for message in transcript.messages:
        calls = message.get("tool_calls")
        shown = f"```json\n{json.dumps(calls, ensure_ascii=False, indent=2)}\n```" if calls else ""
        content = "\n\n".join(filter(None, (message.get("content"), shown)))
        parts.append(f"## {titles[message['role']]}\n\n{content}")
    return "\n\n".join(parts) + "\n"
