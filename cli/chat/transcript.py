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
        messages: as the engine takes them, the system's first.
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
    try:
        turns = _of_openai(messages)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(what, "holds a call of a tool that cannot be read", _FIX) from error
    return Transcript(model if isinstance(model, str) else "", turns, Chosen(**numbers))


def text_of(message: dict[str, Any]) -> str:
    """A message's content; what tools said is JSON."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return False
    content = message.get("content")
    if message["role"] == "tool":
        return isinstance(content, str | list)
    return isinstance(content, str) or (content is None and "tool_calls" in message)


def _json(transcript: Transcript) -> str:
    chosen = {name: value for name, value in asdict(transcript.chosen).items() if value is not None}
    body = {"model": transcript.model, "messages": _as_openai(transcript.messages), **chosen}
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def _markdown(transcript: Transcript) -> str:
    name = PurePath(transcript.model).name.removesuffix(".litertlm")
    titles = {"system": "System", "user": "You", "assistant": name, "tool": "Tool"}
    parts = [f"# Chat with {name}"]
    for message in _as_openai(transcript.messages):
        calls = message.get("tool_calls")
        shown = f"```json\n{json.dumps(calls, ensure_ascii=False, indent=2)}\n```" if calls else ""
        content = "\n\n".join(filter(None, (text_of(message), shown)))
        parts.append(f"## {titles[message['role']]}\n\n{content}")
    return "\n\n".join(parts) + "\n"


def _as_openai(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls with ids and arguments as text, and each result as a message of its own."""
    made: list[dict[str, Any]] = []
    ids: list[str] = []  # of the last turn's calls
    count = 0
    for message in messages:
        if message["role"] == "tool":
            made += [
                {"role": "tool", "tool_call_id": name, "content": part["response"]}
                for name, part in zip(ids, message["content"], strict=True)
            ]
            continue
        if "tool_calls" in message:
            calls = [call["function"] for call in message["tool_calls"]]
            ids = [f"call_{count + i}" for i in range(len(calls))]
            count += len(calls)
            message = {"role": message["role"], "content": message.get("content")} | {
                "tool_calls": [
                    {
                        "id": name,
                        "type": "function",
                        "function": {
                            "name": call["name"],
                            "arguments": json.dumps(call.get("arguments") or {}),
                        },
                    }
                    for name, call in zip(ids, calls, strict=True)
                ]
            }
        made.append(message)
    return made


def _of_openai(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The other way round.

    Raises:
        KeyError, TypeError, ValueError: a call, or the call of a result, is none.
    """
    made: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of tools, by the id of a call
    for message in messages:
        if message["role"] == "tool":
            name = names[message["tool_call_id"]]
            part = {"type": "tool_response", "name": name, "response": message["content"]}
            if made[-1]["role"] == "tool":
                made[-1]["content"].append(part)
            else:
                made.append({"role": "tool", "content": [part]})
        elif "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                function = call["function"]
                names[call["id"]] = function["name"]
                arguments = json.loads(function["arguments"])
                calls.append({"name": function["name"], "arguments": arguments})
            turn = {"role": message["role"], "content": message.get("content")}
            made.append(
                {key: value for key, value in turn.items() if value}
                | {"tool_calls": [{"type": "function", "function": call} for call in calls]}
            )
        else:
            made.append(message)
    return made
