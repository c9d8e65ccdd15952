"""What the server and the process that holds an engine say to each other.

    server -> worker    Ask, Cancel                        one question at a time
    worker -> server    Ready, Started, Piece, Done, Failed

Each message is msgpack behind its length, four bytes, big-endian. Nothing here knows an interface
such as OpenAI's: `openai` and `ollama` translate.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Literal

import msgspec

LENGTH_BYTES = 4
# A message of a broken peer must not make this one ask for any amount of memory.
MOST_BYTES = 64 << 20

Finish = Literal["stop", "length", "context", "stop_string", "tool_calls", "cancelled"]
Fault = Literal["bad_request", "context", "engine"]


class Sampler(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request chose; None leaves the bundle's own value."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None


class Constraint(msgspec.Struct, frozen=True):
    """What the answer's text must be: it matches a regex, or is JSON of a schema."""

    kind: Literal["regex", "json_schema"]
    text: str


class Ask(msgspec.Struct, tag=True):
    """One answer, please.

    Attributes:
        messages: as the engine takes them, the last one is to be answered; empty for a completion.
        prompt: a text to be continued as it stands, where there are no messages.
        tools: as OpenAI writes them.
        thinking: None leaves it to the template.
        max_tokens: the most of an answer, its thoughts included; None for what the context holds.
        stop: strings before which the answer ends.
        keep: whether the conversation may be kept for the request that goes on with it.
    """

    number: int
    messages: list[dict[str, Any]] = []
    prompt: str | None = None
    tools: list[dict[str, Any]] = []
    sampler: Sampler = Sampler()
    thinking: bool | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    constraint: Constraint | None = None
    keep: bool = True


class Cancel(msgspec.Struct, tag=True):
    """Nobody waits for this answer any more."""

    number: int


class Ready(msgspec.Struct, tag=True):
    """The engine is loaded.

    Attributes:
        context: tokens that history, prompt and answer may fill together; None where not told.
        is_chat: whether there is a chat template.
    """

    context: int | None
    is_chat: bool
    can_think: bool
    has_thoughts: bool
    has_tools: bool


class Started(msgspec.Struct, tag=True):
    """The prompt has been measured, and is being read.

    Attributes:
        prompt_tokens: all that the answer follows; `cached_tokens` of them are known already.
    """

    number: int
    prompt_tokens: int
    cached_tokens: int


class Piece(msgspec.Struct, tag=True):
    """A part of the answer."""

    number: int
    kind: Literal["answer", "thought"]
    text: str


class Done(msgspec.Struct, tag=True):
    """The answer has ended.

    Attributes:
        calls: of tools, `{"name": ..., "arguments": {...}}`.
        completion_tokens: what was generated, marks and thoughts included.
        first_seconds: until the first token; `seconds` until the last.
        drafted_pieces: in which the answer came; 0 where nothing was drafted.
    """

    number: int
    finish: Finish
    completion_tokens: int
    first_seconds: float
    seconds: float
    calls: list[dict[str, Any]] = []
    drafted_pieces: int = 0


class Failed(msgspec.Struct, tag=True):
    """There is no answer, or no more of it."""

    number: int
    fault: Fault
    message: str


ToWorker = Ask | Cancel
FromWorker = Ready | Started | Piece | Done | Failed


def copied(ask: Ask) -> Ask:
    """The same question, for another time."""
    return msgspec.structs.replace(ask)


def with_seed(sampler: Sampler, seed: int) -> Sampler:
    """The same choices with another seed."""
    return msgspec.structs.replace(sampler, seed=seed)


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def packed(message: ToWorker | FromWorker) -> bytes:
    """A message as it is sent."""
    content = _encoder.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def unpacked(content: bytes) -> FromWorker:
    """What a worker said, without its length.

    Raises:
        msgspec.DecodeError: it is no such message.
    """
    return _from_worker.decode(content)


def read(stream: BinaryIO) -> ToWorker | None:
    """The next message to a worker; None at the end of the stream.

    Raises:
        msgspec.DecodeError: it is no such message.
    """
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    size = int.from_bytes(head, "big")
    content = stream.read(size)
    return _to_worker.decode(content) if len(content) == size else None
