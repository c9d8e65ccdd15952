"""OpenAI's interface: requests into questions to a worker, and what it says into OpenAI's answers.

Pure functions: no engine, no HTTP. A field that cannot be honoured is an error and never ignored.
Source: OpenAI's API reference, chat completions, completions, models.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server import fields, wire
from server.errors import RequestError

_MOST_MESSAGES = 2048
_MOST_STOPS = 16
_MOST_ANSWERS = 16
_MOST_SCHEMA_BYTES = 1 << 16
# Which values of fields that nobody honours change nothing; () for all.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "user": (), "metadata": (), "store": (), "service_tier": (), "safety_identifier": (),
    "prompt_cache_key": (), "prompt_cache_retention": (), "verbosity": (),
    "parallel_tool_calls": (), "logit_bias": ({},), "logprobs": (False,), "top_logprobs": (0,),
    "modalities": (["text"],), "min_p": (0, 0.0), "best_of": (1,), "suffix": ("",),
    "echo": (False,), "functions": ([],), "function_call": ("none",),
}  # fmt: skip
_CHAT = (
    "model", "messages", "stream", "stream_options", "stop", "seed", "temperature", "top_p",
    "top_k", "max_tokens", "max_completion_tokens", "n", "tools", "tool_choice", "response_format",
    "frequency_penalty", "presence_penalty", "reasoning_effort", "chat_template_kwargs",
)  # fmt: skip
_COMPLETION = (
    "model", "prompt", "stream", "stream_options", "stop", "seed", "temperature", "top_p",
    "top_k", "max_tokens", "n", "frequency_penalty", "presence_penalty",
)  # fmt: skip
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant",
          "tool": "tool", "function": "tool"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request, understood.

    Attributes:
        ask: what a worker is asked; once for each of `answers`.
        forced: the answer is a call of one of these tools, made by a constraint.
    """

    model: str
    ask: wire.Ask
    is_chat: bool
    is_stream: bool
    with_usage: bool
    answers: int = 1
    keep_alive: float | None = -1  # what the server's is
    forced: tuple[str, ...] = ()
    identifier: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def reply(self) -> Reply:
        """To be filled with answers."""
        return Reply(self)


def chat_request(body: Mapping[str, Any]) -> Request:
    """A request for /v1/chat/completions.

    Raises:
        RequestError: it cannot be honoured.
    """
    fields.refuse_unknown(body, _CHAT, _NEUTRAL)
    messages = messages_of(body)
    tools, forced = _tools(body)
    constraint = _response_format(body)
    if forced:
        if constraint is not None:
            raise RequestError("tool_choice and response_format exclude each other", "tool_choice")
        constraint = wire.Constraint("json_schema", json.dumps(_call_schema(tools, forced)))
        messages = _with_told_tools(messages, tools, forced)
        tools = []
    most = fields.count(body, "max_completion_tokens")
    ask = wire.Ask(
        0,
        messages=messages,
        tools=tools,
        sampler=_sampler(body),
        thinking=_thinking(body),
        max_tokens=fields.count(body, "max_tokens") if most is None else most,
        stop=fields.texts(body, "stop", _MOST_STOPS),
        constraint=constraint,
    )
    return _request(body, ask, is_chat=True, forced=forced)


def completion_request(body: Mapping[str, Any]) -> Request:
    """A request for /v1/completions; see `chat_request`."""
    fields.refuse_unknown(body, _COMPLETION, _NEUTRAL)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("prompt is not a text", "prompt")
    ask = wire.Ask(
        0,
        prompt=fields.checked_text(prompt, "prompt"),
        sampler=_sampler(body),
        max_tokens=fields.count(body, "max_tokens") or 16,  # OpenAI's default
        stop=fields.texts(body, "stop", _MOST_STOPS),
        keep=False,
    )
    return _request(body, ask, is_chat=False)


def _request(
    body: Mapping[str, Any], ask: wire.Ask, is_chat: bool, forced: tuple[str, ...] = ()
) -> Request:
    model = body.get("model")
    if not isinstance(model, str):
        raise RequestError("model is missing", "model")
    is_stream = fields.flag(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError("stream_options is not an object", "stream_options")
    if options and not is_stream:
        raise RequestError("stream_options needs stream", "stream_options")
    answers = fields.number(body, "n", 1, _MOST_ANSWERS, whole=True) or 1
    if answers > 1 and is_stream:
        raise RequestError("n above 1 is given without stream alone", "n")
    prefix = "chatcmpl" if is_chat else "cmpl"
    return Request(
        model=model,
        ask=ask,
        is_chat=is_chat,
        is_stream=is_stream,
        with_usage=fields.flag(options, "include_usage"),
        answers=answers,
        forced=forced,
        identifier=f"{prefix}-{uuid.uuid4().hex}",
    )


# Parts of a request ------------------------------------------------------------------------------


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OpenAI's messages as the engine takes them; the last one is to be answered."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise RequestError("messages is not a list with messages", "messages")
    if len(given) > _MOST_MESSAGES:
        raise RequestError(f"messages has more than {_MOST_MESSAGES} messages", "messages")
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of called tools, by the call's id
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
        if role is None:
            raise RequestError(f"{where} has no role that is known here", f"{where}.role")
        content = content_of(message.get("content"), f"{where}.content")
        if role == "tool":
            name = names.get(message.get("tool_call_id", ""), message.get("name"))
            if not isinstance(name, str):
                raise RequestError(
                    f"{where} answers no tool call that is here", f"{where}.tool_call_id"
                )
            part = {"type": "tool_response", "name": name, "response": content}
            messages.append({"role": "tool", "content": [part]})
            continue
        made: dict[str, Any] = {"role": role, "content": content}
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [_call(call, f"{where}.tool_calls", names) for call in calls]
        messages.append(made)
    if messages[-1]["role"] not in ("user", "tool"):
        raise RequestError("the last message is neither a user's nor a tool's", "messages")
    return messages


def content_of(content: Any, name: str) -> str:
    """The text of a message; an image or a sound cannot be looked at here."""
    if content is None:
        return ""
    if isinstance(content, str):
        return fields.checked_text(content, name)
    if not isinstance(content, list):
        raise RequestError(f"{name} is neither a text nor a list of parts", name)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            raise RequestError(f"{name} has a part of type {kind!r}: only text is read", name)
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{name} has a part of text without text", name)
        parts.append(fields.checked_text(part["text"], name))
    return "".join(parts)


def _call(call: Any, name: str, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{name} has no function with a name", name)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            raise RequestError(f"{name} has arguments that are not JSON", name) from None
    if isinstance(call.get("id"), str):
        names[call["id"]] = function["name"]
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _sampler(body: Mapping[str, Any]) -> wire.Sampler:
    return wire.Sampler(
        temperature=fields.number(body, "temperature", 0, 2),
        top_k=fields.count(body, "top_k"),
        top_p=fields.number(body, "top_p", 0, 1),
        seed=fields.number(body, "seed", 0, 2**31 - 1, whole=True),
        frequency_penalty=fields.number(body, "frequency_penalty", -2, 2),
        presence_penalty=fields.number(body, "presence_penalty", -2, 2),
    )


def _thinking(body: Mapping[str, Any]) -> bool | None:
    """What `reasoning_effort`, or the template's own switch, says of thinking."""
    effort = body.get("reasoning_effort")
    if effort is not None:
        if effort not in ("none", "minimal", "low", "medium", "high", "xhigh"):
            raise RequestError(
                "reasoning_effort is none of those that there are", "reasoning_effort"
            )
        return bool(effort not in ("none", "minimal"))
    settings = body.get("chat_template_kwargs") or {}
    if not isinstance(settings, dict) or settings.keys() - {"enable_thinking"}:
        raise RequestError("only enable_thinking is honoured", "chat_template_kwargs")
    return fields.flag(settings, "enable_thinking") if settings else None


def _tools(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The tools that may be called, and those of which one must be."""
    tools = body.get("tools") or []
    choice = body.get("tool_choice", "auto")
    if not isinstance(tools, list):
        raise RequestError("tools is not a list", "tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(f"tools[{i}] is no function with a name", f"tools[{i}]")
    names = tuple(tool["function"]["name"] for tool in tools)
    if choice == "none":
        return [], ()
    if choice is None or choice == "auto":
        return tools, ()
    if not tools:
        raise RequestError("tool_choice needs tools", "tool_choice")
    if choice == "required":
        return tools, names
    wanted = choice.get("function", choice) if isinstance(choice, dict) else {}
    if wanted.get("name") not in names:
        raise RequestError("tool_choice names no tool that is there", "tool_choice")
    return tools, (wanted["name"],)


def _call_schema(tools: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A call of one of the tools, as JSON."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": _closed(tool["function"].get("parameters") or {"type": "object"}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if tool["function"]["name"] in names
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters beside which there are no others; a small model would make some up."""
    return (
        {"additionalProperties": False, **parameters} if "properties" in parameters else parameters
    )


def _with_told_tools(
    messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The messages, with the tools told in words: a template may have no place for them."""
    told = "\n".join(
        json.dumps(tool["function"], ensure_ascii=False)
        for tool in tools
        if tool["function"]["name"] in names
    )
    words = f'Answer with one call, {{"name": ..., "arguments": ...}}, of one of these:\n{told}'
    if messages[0]["role"] == "system":
        first, *others = messages
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *others]
    return [{"role": "system", "content": words}, *messages]


def _response_format(body: Mapping[str, Any]) -> wire.Constraint | None:
    given = body.get("response_format")
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return wire.Constraint("json_schema", '{"type":"object"}')
    if kind == "json_schema":
        holder = given.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            raise RequestError("response_format has no schema", "response_format")
        return schema_constraint(schema, "response_format")
    raise RequestError(f"response_format has the unknown type {kind!r}", "response_format")


def schema_constraint(schema: Mapping[str, Any], name: str) -> wire.Constraint:
    """A constraint to JSON of a schema."""
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > _MOST_SCHEMA_BYTES:
        raise RequestError(f"{name} has a schema of more than {_MOST_SCHEMA_BYTES} bytes", name)
    return wire.Constraint("json_schema", text)


# Answers -----------------------------------------------------------------------------------------

_FINISHES = {"stop": "stop", "stop_string": "stop", "length": "length", "context": "length",
             "tool_calls": "tool_calls", "cancelled": "stop"}  # fmt: skip


@dataclass
class Answer:
    """One answer, as it comes together.

    Attributes:
        error: why there is none.
    """

    request: Request
    index: int = 0
    text: str = ""
    thoughts: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def take(self, said: wire.FromWorker) -> list[dict[str, Any]]:
        """Take in what a worker says; what a stream says of it: `choices[0]`s.

        Raises:
            RequestError: the worker could not answer.
        """
        if isinstance(said, wire.Started):
            self.prompt_tokens, self.cached_tokens = said.prompt_tokens, said.cached_tokens
            return [self._choice({"role": "assistant", "content": ""})] if self._is_chat else []
        if isinstance(said, wire.Piece):
            return self._piece(said)
        if isinstance(said, wire.Failed):
            raise failed(said)
        if isinstance(said, wire.Done):
            return self._end(said)
        return []

    @property
    def _is_chat(self) -> bool:
        return self.request.is_chat

    def _piece(self, said: wire.Piece) -> list[dict[str, Any]]:
        if said.kind == "thought":
            self.thoughts += said.text
            return [self._choice({"reasoning_content": said.text})] if self._is_chat else []
        self.text += said.text
        if self.request.forced:
            return []
        if not self._is_chat:
            return [{"index": self.index, "text": said.text, "finish_reason": None}]
        return [self._choice({"content": said.text})]

    def _end(self, said: wire.Done) -> list[dict[str, Any]]:
        self.completion_tokens = said.completion_tokens
        self.finish = _FINISHES[said.finish]
        calls = said.calls
        if self.request.forced and said.finish == "stop":
            calls, self.text, self.finish = [msgspec.json.decode(self.text)], "", "tool_calls"
        self.calls = [
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call.get("arguments") or {}, ensure_ascii=False),
                },
            }
            for call in calls
        ]
        if not self._is_chat:
            return [{"index": self.index, "text": "", "finish_reason": self.finish}]
        chunks = []
        if self.calls:
            numbered = [{"index": i, **call} for i, call in enumerate(self.calls)]
            chunks.append(self._choice({"tool_calls": numbered}))
        return [*chunks, {**self._choice({}), "finish_reason": self.finish}]

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "finish_reason": None}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece, as one of `choices`."""
        if not self._is_chat:
            return {"index": self.index, "text": self.text, "logprobs": None,
                    "finish_reason": self.finish}  # fmt: skip
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.text or None
        return {"index": self.index, "message": message, "logprobs": None,
                "finish_reason": self.finish}  # fmt: skip


def failed(said: wire.Failed) -> RequestError:
    """What a worker's refusal is to a client."""
    if said.fault == "context":
        return RequestError(said.message, "messages", code="context_length_exceeded")
    if said.fault == "bad_request":
        return RequestError(said.message, "messages")
    return RequestError(said.message, status=500, kind="server_error", code="engine_error")


class Reply:
    """Everything that is said back to one request."""

    media_type = "text/event-stream"

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answers: list[Answer] = []

    def begin(self) -> None:
        """The next of the answers."""
        self.answers.append(Answer(self.request, len(self.answers)))

    def take(self, said: wire.FromWorker) -> list[str]:
        """Take in what a worker says; what a stream says of it."""
        choices = self.answers[-1].take(said)
        return [_event(self._envelope("chunk", [choice])) for choice in choices]

    def end(self) -> list[str]:
        """What ends a stream."""
        last = [_event(self._envelope("chunk", []) | {"usage": self._usage()})]
        return [*(last if self.request.with_usage else ()), "data: [DONE]\n\n"]

    def broken(self, error: RequestError) -> str:
        """What ends a stream that cannot go on."""
        return _event(error.as_openai())

    def whole(self) -> dict[str, Any]:
        """All answers in one piece."""
        choices = [answer.whole() for answer in self.answers]
        return self._envelope("whole", choices) | {"usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        first = self.answers[0]
        made = sum(answer.completion_tokens for answer in self.answers)
        return {
            "prompt_tokens": first.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": first.prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        }

    def _envelope(self, form: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        request = self.request
        kind = "text_completion"
        if request.is_chat:
            kind = "chat.completion.chunk" if form == "chunk" else "chat.completion"
        return {
            "id": request.identifier,
            "object": kind,
            "created": request.created,
            "model": request.model,
            "choices": choices,
        }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
