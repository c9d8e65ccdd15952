"""Ollama's interface: requests into questions to a worker, and what it says into Ollama's answers.

As `openai`, which reads messages and tools for both. Source: Ollama's docs/api.md.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import fields, openai, wire
from server.errors import RequestError

VERSION = "0.12.0"  # clients look at it; what they need of that version is here
_COMMON = ("model", "stream", "options", "keep_alive", "format", "think")
_CHAT = (*_COMMON, "messages", "tools")
_GENERATE = (*_COMMON, "prompt", "system", "raw")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "images": ([],), "context": ([],), "suffix": ("",), "template": ("",), "logprobs": (False,),
    "truncate": (), "shift": (), "options": ({},),
}  # fmt: skip
_OPTIONS = ("temperature", "top_k", "top_p", "seed", "num_predict", "stop", "repeat_penalty",
            "presence_penalty", "frequency_penalty")  # fmt: skip
# Of loading, where a worker is as it is; and what is done anyway.
_NEUTRAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_ctx": (), "num_batch": (), "num_gpu": (), "main_gpu": (), "num_thread": (),
    "num_keep": (), "use_mmap": (), "low_vram": (), "numa": (), "repeat_last_n": (64, -1),
    "min_p": (0, 0.0), "typical_p": (1, 1.0), "tfs_z": (1, 1.0), "mirostat": (0,),
    "penalize_newline": (), "mirostat_tau": (), "mirostat_eta": (),
}  # fmt: skip
_DONE = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length",
         "tool_calls": "stop", "cancelled": "stop"}  # fmt: skip
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Request:
    """One request, understood; see `openai.Request`."""

    model: str
    ask: wire.Ask
    is_chat: bool
    is_stream: bool
    keep_alive: float | None
    answers: int = 1
    begin: float = field(default_factory=time.monotonic)

    def reply(self) -> Reply:
        """To be filled with the answer."""
        return Reply(self)


def chat_request(body: Mapping[str, Any]) -> Request:
    """A request for /api/chat.

    Raises:
        RequestError: it cannot be honoured.
    """
    fields.refuse_unknown(body, _CHAT, _NEUTRAL)
    given = body.get("messages")
    if not isinstance(given, list):
        raise RequestError("messages is not a list", "messages")
    messages = openai.messages_of({"messages": [_message(message) for message in given]})
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise RequestError("tools is not a list", "tools")
    return _request(body, wire.Ask(0, messages=messages, tools=tools), is_chat=True)


def generate_request(body: Mapping[str, Any]) -> Request | None:
    """A request for /api/generate; None where it only loads the model."""
    fields.refuse_unknown(body, _GENERATE, _NEUTRAL)
    prompt = fields.text(body, "prompt")
    if not prompt:
        return None
    if fields.flag(body, "raw"):
        return _request(body, wire.Ask(0, prompt=prompt, keep=False), is_chat=False)
    messages = [{"role": "user", "content": prompt}]
    if system := fields.text(body, "system"):
        messages.insert(0, {"role": "system", "content": system})
    return _request(body, wire.Ask(0, messages=list(messages)), is_chat=False)


def keep_alive(body: Mapping[str, Any]) -> float | None:
    """Seconds for which the model stays; None for ever, -1 for the server's own."""
    value = body.get("keep_alive")
    if value is None:
        return -1
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if value < 0 else float(value)
    text = value if isinstance(value, str) else ""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        raise RequestError("keep_alive is no time", "keep_alive") from None
    return None if seconds < 0 else seconds


def _request(body: Mapping[str, Any], ask: wire.Ask, is_chat: bool) -> Request:
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("model is missing", "model")
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise RequestError("options is not an object", "options")
    fields.refuse_unknown(options, _OPTIONS, _NEUTRAL_OPTIONS)
    most = fields.number(options, "num_predict", -2, 2**31 - 1, whole=True)
    think = body.get("think")
    if think is not None and not isinstance(think, bool):
        if think not in ("low", "medium", "high"):
            raise RequestError("think is neither true nor false", "think")
        think = True
    ask.sampler = wire.Sampler(
        temperature=fields.number(options, "temperature", 0, 100),
        top_k=fields.count(options, "top_k", 0) or None,
        top_p=fields.number(options, "top_p", 0, 1),
        seed=fields.number(options, "seed", 0, 2**31 - 1, whole=True),
        frequency_penalty=fields.number(options, "frequency_penalty", -2, 2),
        presence_penalty=fields.number(options, "presence_penalty", -2, 2),
        repeat_penalty=fields.number(options, "repeat_penalty", 0, 10),
    )
    ask.max_tokens = most if most is not None and most > 0 else None
    ask.stop = fields.texts(options, "stop", 16)
    ask.thinking = think
    ask.constraint = _format(body)
    is_stream = fields.flag(body, "stream", default=True)
    return Request(model, ask, is_chat, is_stream, keep_alive(body))


def _message(message: Any) -> Any:
    """As OpenAI writes it: a tool's answer is found by the tool's name here."""
    if not isinstance(message, dict):
        return message
    if message.get("images"):
        raise RequestError("images cannot be looked at here", "messages")
    made = {
        key: value for key, value in message.items() if key in ("role", "content", "tool_calls")
    }
    if message.get("role") == "tool":
        made["name"] = message.get("tool_name", message.get("name"))
    return made


def _format(body: Mapping[str, Any]) -> wire.Constraint | None:
    given = body.get("format")
    if given in (None, ""):
        return None
    if given == "json":
        return wire.Constraint("json_schema", '{"type":"object"}')
    if isinstance(given, dict):
        return openai.schema_constraint(given, "format")
    raise RequestError("format is neither json nor a schema", "format")


# Answers -----------------------------------------------------------------------------------------


class Reply:
    """Everything that is said back to one request."""

    media_type = "application/x-ndjson"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.text = self.thoughts = ""
        self.calls: list[dict[str, Any]] = []
        self.started = wire.Started(0, 0, 0)
        self.done = wire.Done(0, "stop", 0, 0.0, 0.0)

    def begin(self) -> None:
        """There is one answer."""

    def take(self, said: wire.FromWorker) -> list[str]:
        """Take in what a worker says; what a stream says of it."""
        if isinstance(said, wire.Started):
            self.started = said
        elif isinstance(said, wire.Failed):
            raise openai.failed(said)
        elif isinstance(said, wire.Piece):
            if said.kind == "thought":
                self.thoughts += said.text
                return [_line(self._part("", said.text))]
            self.text += said.text
            return [_line(self._part(said.text))]
        elif isinstance(said, wire.Done):
            self.done = said
            self.calls = [{"function": call} for call in said.calls]
            if self.calls:
                return [_line(self._part("", calls=self.calls))]
        return []

    def end(self) -> list[str]:
        """What ends a stream."""
        return [_line(self._part("") | self._figures())]

    def broken(self, error: RequestError) -> str:
        """What ends a stream that cannot go on."""
        return _line({"error": str(error)})

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        return self._part(self.text, self.thoughts, self.calls) | self._figures()

    def _part(
        self, text: str, thoughts: str = "", calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        part: dict[str, Any] = {"model": self.request.model, "created_at": _now()}
        if not self.request.is_chat:
            part["response"] = text
            return part | ({"thinking": thoughts} if thoughts else {}) | {"done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = calls
        return part | {"message": message, "done": False}

    def _figures(self) -> dict[str, Any]:
        total = time.monotonic() - self.request.begin
        return {
            "done": True,
            "done_reason": _DONE[self.done.finish],
            "total_duration": _nanoseconds(total),
            "load_duration": _nanoseconds(max(total - self.done.seconds, 0.0)),
            "prompt_eval_count": self.started.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(self.done.first_seconds),
            "eval_count": self.done.completion_tokens,
            "eval_duration": _nanoseconds(self.done.seconds - self.done.first_seconds),
        }


def loaded(name: str, seconds: float | None) -> dict[str, Any]:
    """What an empty prompt is answered with."""
    reason = "unload" if seconds == 0 else "load"
    return {"model": name, "created_at": _now(), "response": "", "done": True,
            "done_reason": reason}  # fmt: skip


# Models ------------------------------------------------------------------------------------------


def described(name: str, path: Path) -> dict[str, Any]:
    """A model in /api/tags."""
    stat = path.stat()
    modified = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC).isoformat()
    return {"name": name, "model": name, "modified_at": modified, "size": stat.st_size,
            "digest": "", "details": _details({})}  # fmt: skip


def running(name: str, path: Path, expires_at: float | None) -> dict[str, Any]:
    """A model in /api/ps."""
    until = expires_at or time.time() + 365 * 86400
    expires = datetime.datetime.fromtimestamp(until, datetime.UTC).isoformat()
    return described(name, path) | {"expires_at": expires, "size_vram": 0}


def shown(path: Path) -> dict[str, Any]:
    """A model in /api/show."""
    from converter.litertlm.inspection import read_bundle

    bundle = read_bundle(path)
    metadata = bundle.metadata
    abilities = {
        "completion": True,
        "tools": bool(metadata.supports_function_calling),
        "thinking": bool(metadata.supports_thinking),
    }
    family = str(bundle.system.get("family", ""))
    return {
        "modelfile": "",
        "parameters": "",
        "template": metadata.jinja_prompt_template,
        "details": _details(bundle.system),
        "model_info": {
            "general.architecture": family,
            f"{family}.context_length": metadata.max_num_tokens,
        },
        "capabilities": [name for name, has_it in abilities.items() if has_it],
    }


def _details(system: Mapping[str, Any]) -> dict[str, Any]:
    family = str(system.get("family", ""))
    return {"parent_model": "", "format": "litertlm", "family": family, "families": [family],
            "parameter_size": "",
            "quantization_level": str(system.get("quantization", ""))}  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
