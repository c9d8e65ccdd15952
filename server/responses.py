"""OpenAI's /v1/responses: text and tools, without memory of earlier responses.

Rewritten into chat requests of `openai`. Source: OpenAI's API reference, responses.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server import fields, openai, wire
from server.errors import RequestError

_KNOWN = (
    "model", "input", "instructions", "stream", "temperature", "top_p", "max_output_tokens",
    "tools", "tool_choice", "text", "reasoning",
)  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (), "metadata": (), "user": (), "service_tier": (), "safety_identifier": (),
    "prompt_cache_key": (), "parallel_tool_calls": (), "include": ([],), "background": (False,),
    "truncation": ("disabled",), "top_logprobs": (0,), "stream_options": ({},),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request: that of a chat, answered in other words."""

    chat: openai.Request
    identifier: str

    @property
    def model(self) -> str:
        return self.chat.model

    @property
    def ask(self) -> wire.Ask:
        return self.chat.ask

    @property
    def is_stream(self) -> bool:
        return self.chat.is_stream

    @property
    def answers(self) -> int:
        return 1

    @property
    def keep_alive(self) -> float | None:
        return self.chat.keep_alive

    def reply(self) -> Reply:
        """To be filled with the answer."""
        return Reply(self)


def request(body: Mapping[str, Any]) -> Request:
    """A request for /v1/responses.

    Raises:
        RequestError: it cannot be honoured.
    """
    if body.get("previous_response_id") is not None or body.get("conversation") is not None:
        raise RequestError(
            "earlier responses are not stored here: send their items again", "previous_response_id"
        )
    fields.refuse_unknown(body, _KNOWN, _NEUTRAL)
    chat: dict[str, Any] = {
        "model": body.get("model"),
        "messages": _messages(body),
        "stream": body.get("stream"),
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "max_tokens": body.get("max_output_tokens"),
        "tools": [_tool(tool) for tool in _listed(body, "tools")],
        "tool_choice": body.get("tool_choice"),
        "response_format": _format(body),
        "reasoning_effort": (_object(body, "reasoning")).get("effort"),
    }
    made = openai.chat_request({key: value for key, value in chat.items() if value})
    return Request(made, f"resp_{uuid.uuid4().hex}")


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Items into messages: a call and what comes of it are items of their own here."""
    messages: list[dict[str, Any]] = []
    if instructions := fields.text(body, "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise RequestError("input is neither a text nor a list of items", "input")
    for i, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            called = item.get("call_id")
            messages.append({"role": "tool", "tool_call_id": called, "content": text})
        elif kind != "reasoning":  # which a template drops in any case
            raise RequestError(f"input[{i}] is of a type that is not read here", f"input[{i}]")
    return messages


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise RequestError("only tools of type function are honoured", "tools")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    given = _object(body, "text").get("format")
    if isinstance(given, dict) and given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": given}
    return given


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise RequestError(f"{name} is not an object", name)
    return value


def _listed(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name) or []
    if not isinstance(value, list):
        raise RequestError(f"{name} is not a list", name)
    return value


class Reply:
    """Everything that is said back to one request."""

    media_type = openai.Reply.media_type

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer = openai.Answer(request.chat)
        self._message = f"msg_{uuid.uuid4().hex}"
        self._number = 0

    def begin(self) -> None:
        """There is one answer."""

    def take(self, said: wire.FromWorker) -> list[str]:
        """Take in what a worker says; what a stream says of it."""
        choices = self.answer.take(said)
        if isinstance(said, wire.Started):
            item = self._item([], "in_progress")
            part = {"type": "output_text", "text": "", "annotations": []}
            return [
                self._event("response.created", response=self._response("in_progress")),
                self._event("response.in_progress", response=self._response("in_progress")),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place(), part=part),
            ]
        texts = (choice.get("delta", {}).get("content") for choice in choices)
        return [
            self._event("response.output_text.delta", **self._place(), delta=text)
            for text in texts
            if text
        ]

    def end(self) -> list[str]:
        """What ends a stream."""
        text = self.answer.text
        part = {"type": "output_text", "text": text, "annotations": []}
        events = [
            self._event("response.output_text.done", **self._place(), text=text),
            self._event("response.content_part.done", **self._place(), part=part),
        ]
        for index, item in enumerate(self._output()):
            if item["type"] == "function_call":
                begun = {**item, "arguments": "", "status": "in_progress"}
                place = {"item_id": item["id"], "output_index": index}
                events += [
                    self._event("response.output_item.added", output_index=index, item=begun),
                    self._event(
                        "response.function_call_arguments.delta", **place, delta=item["arguments"]
                    ),
                    self._event(
                        "response.function_call_arguments.done",
                        **place,
                        name=item["name"],
                        arguments=item["arguments"],
                    ),
                ]
            events.append(self._event("response.output_item.done", output_index=index, item=item))
        status = self.whole()["status"]
        return [*events, self._event(f"response.{status}", response=self.whole())]

    def broken(self, error: RequestError) -> str:
        """What ends a stream that cannot go on."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        is_cut = self.answer.finish == "length"
        response = self._response("incomplete" if is_cut else "completed")
        answer = self.answer
        return response | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._output(),
            "usage": {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answer.cached_tokens},
                "output_tokens": answer.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            },
        }

    def _output(self) -> list[dict[str, Any]]:
        part = {"type": "output_text", "text": self.answer.text, "annotations": []}
        calls = [
            {
                "id": f"fc_{call['id']}",
                "type": "function_call",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
                "status": "completed",
            }
            for call in self.answer.calls
        ]
        return [self._item([part], "completed"), *calls]

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self._message, "type": "message", "role": "assistant", "status": status,
                "content": content}  # fmt: skip

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _response(self, status: str) -> dict[str, Any]:
        chat = self.request.chat
        return {
            "id": self.request.identifier,
            "object": "response",
            "created_at": chat.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": chat.model,
            "output": [],
            "parallel_tool_calls": True,
            "temperature": chat.ask.sampler.temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_p": chat.ask.sampler.top_p,
        }

    def _event(self, kind: str, **values: Any) -> str:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
