"""The process that holds an engine: `python -m server.worker BUNDLE --threads N`.

It is told what to answer on its stdin and says what comes on its stdout (`server.wire`). It ends
with its stdin. A crash of the engine is thus one process's end; unloading gives back all memory.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converter.errors import LiteRTLMError
from converter.litertlm.inspection import read_bundle
from runner import schema
from runner.conversation import uninterrupted
from runner.engine import Model, Sampling, completion_template, declared_tool
from runner.limit import Limit, Piece, reads_back
from runner.schema import JsonEscaper
from server import wire
from server.kept import Kept, Message, Pool, key_of
from server.stops import StopFinder


class Worker:
    """Answers one question after another."""

    def __init__(self, model: Model, out: BinaryIO, keep_bytes: int) -> None:
        self._model = model
        self._out = out
        self._pool = Pool(keep_bytes, _close)
        self._asked: queue.Queue[wire.Ask | None] = queue.Queue()
        self._lock = threading.Lock()
        self._running: tuple[int, Any] | None = None
        self._cancelled: set[int] = set()
        self._gives_back = model.give_back_unused()

    def ready(self) -> wire.Ready:
        """What there is to know of the model."""
        model = self._model
        return wire.Ready(
            context=model.context_length,
            is_chat=model.is_chat,
            can_think=model.supports_thinking,
            has_thoughts=model.has_thoughts,
            has_tools=bool(model.metadata.supports_function_calling),
        )

    def serve(self, asks: BinaryIO) -> None:
        """Answer until there is nothing more to come."""
        self._say(self.ready())
        threading.Thread(target=self._listen, args=(asks,), daemon=True).start()
        while (ask := self._asked.get()) is not None:
            try:
                self._answer(ask)
            except _CannotError as error:
                self._say(wire.Failed(ask.number, error.fault, str(error)))
            except LiteRTLMError as error:
                self._say(wire.Failed(ask.number, "engine", str(error)))
            except RuntimeError as error:
                failure = self._model.failure(self._model.path.name, error)
                self._say(wire.Failed(ask.number, "engine", str(failure)))
        self._pool.clear()

    def _listen(self, asks: BinaryIO) -> None:
        """Take in questions, and end those that nobody waits for."""
        while (message := wire.read(asks)) is not None:
            if isinstance(message, wire.Ask):
                self._asked.put(message)
                continue
            with self._lock:
                self._cancelled.add(message.number)
                if self._running is not None and self._running[0] == message.number:
                    self._running[1].cancel_process()
        self._asked.put(None)
        with self._lock:
            if self._running is not None:
                self._running[1].cancel_process()

    def _say(self, message: wire.FromWorker) -> None:
        self._out.write(wire.packed(message))
        self._out.flush()

    # One answer -----------------------------------------------------------------------------------

    def _answer(self, ask: wire.Ask) -> None:
        if ask.number in self._cancelled:
            self._say(wire.Done(ask.number, "cancelled", 0, 0.0, 0.0))
            return
        key = key_of(ask.sampler, ask.tools, ask.thinking, ask.constraint is not None)
        turn = self._begin(ask, key)
        ended_well = False
        try:
            with self._lock:
                self._running = ask.number, turn.conversation
                if ask.number in self._cancelled:
                    turn.conversation.cancel_process()
            said = self._stream(ask, turn)
            ended_well = said is not None
        finally:
            with self._lock:
                self._running = None
            # A cut answer lacks its end mark; with a seed, a second turn is another one's first.
            may_keep = ask.keep and ask.prompt is None and ask.sampler.seed is None
            if ended_well and may_keep and ask.constraint is None:
                assert said is not None
                self._keep(turn, key, [*ask.messages, said])
            else:
                _close(turn.conversation)

    def _keep(self, turn: _Turn, key: bytes, messages: list[Message]) -> None:
        """Keep its conversation, which takes memory for what is in it."""
        model, used = self._model, turn.conversation.token_count
        if self._gives_back:
            model.give_back_unused()
        nbytes = model.held_bytes(used) if self._gives_back else model.state_bytes
        self._pool.put(Kept(turn.conversation, key, messages, nbytes))

    def _begin(self, ask: wire.Ask, key: bytes) -> _Turn:
        """A conversation that lacks nothing but what is to be sent, measured."""
        if ask.prompt is not None:
            conversation, message = self._create(ask, []), {"role": "user", "content": ask.prompt}
            return self._measured(conversation, message)
        kept = self._pool.take(key, ask.messages)
        if kept is not None:
            new = ask.messages[len(kept.messages) :]
            if len(new) == 1:
                return self._measured(kept.conversation, new[0])
            _close(kept.conversation)
        *history, last = ask.messages
        return self._measured(self._create(ask, history), last)

    def _create(self, ask: wire.Ask, history: Sequence[Message]) -> Any:
        import litert_lm

        settings: dict[str, Any] = {}
        if ask.prompt is not None:
            settings["chat_template"] = completion_template()
        if ask.thinking is not None and self._model.supports_thinking:
            settings["thinking_config"] = litert_lm.ThinkingConfig(enable_thinking=ask.thinking)
        if ask.constraint is not None:
            settings |= schema.settings()
        drafts = self._drafts(ask)
        if drafts or self._model.has_drafted:  # from then on one at a time may be open
            self._pool.clear()
        return self._model.create_conversation(
            drafts=drafts,
            messages=list(history),
            tools=[declared_tool(tool) for tool in ask.tools],
            automatic_tool_calling=False,
            sampler_config=self._model.sampler(_sampling(ask)),
            **settings,
        )

    def _drafts(self, ask: wire.Ask) -> bool:
        """Whether tokens are drafted, which changes no text, see `Model.may_draft`."""
        is_free = ask.constraint is None and not _penalties(ask)
        return is_free and self._model.may_draft(_sampling(ask))

    def _measured(self, conversation: Any, message: Message) -> _Turn:
        """Raises _CannotError where it does not fit, or does not render."""
        rendered = conversation.render_message_to_string(message)
        if not rendered:
            _close(conversation)
            raise _CannotError(
                "bad_request", "the model's chat template does not take these messages"
            )
        cached = conversation.token_count
        has_start = cached == 0 and self._model.engine.bos_token_id is not None
        needed = cached + has_start + len(self._model.tokenize(rendered))
        limit = self._model.context_length
        if limit is not None and needed >= limit:
            _close(conversation)
            raise _CannotError(
                "context",
                f"the prompt is {needed} tokens long, and the context of {limit} must hold it and "
                "an answer",
            )
        return _Turn(conversation, message, rendered, needed, cached)

    def _stream(self, ask: wire.Ask, turn: _Turn) -> Message | None:
        """Say the answer, piece by piece; what was said, where it ended by itself."""
        self._say(wire.Started(ask.number, turn.prompt_tokens, turn.cached_tokens))
        begin = time.perf_counter()
        first, heard = 0.0, 0
        said, stops, has_thoughts = "", StopFinder(ask.stop), False
        calls: list[dict[str, Any]] = []
        drafts = self._drafts(ask)
        room = self._room(ask, turn) if drafts else None
        limit = Limit(self._model, turn.rendered, room)
        options = self._options(ask)
        is_json = ask.constraint is not None and ask.constraint.kind == "json_schema"
        escaper = JsonEscaper() if is_json else None
        for message in turn.conversation.send_message_async(turn.message, **options):
            first = first or time.perf_counter() - begin
            if ask.number in self._cancelled:
                turn.conversation.cancel_process()  # before the first token it has no effect
                continue
            if stops.found:
                continue  # it was on its way
            heard += 1
            thoughts = [Piece(text, "thought") for text in message.channels.values()]
            has_thoughts |= bool(thoughts)
            calls += [call.to_json()["function"] for call in message.tool_calls]
            text = str(message) if escaper is None else escaper.feed(str(message))
            for piece in limit.feed([*thoughts, Piece(text, "answer")]):
                said += self._say_piece(ask, piece, stops)
            if stops.found:
                turn.conversation.cancel_process()
        used = turn.conversation.token_count
        made = max(used - turn.prompt_tokens, 0)
        for piece in () if stops.found else limit.rest(made):
            said += self._say_piece(ask, piece, stops)
        if text := stops.rest():
            said += text
            self._say(wire.Piece(ask.number, "answer", text))
        seconds = time.perf_counter() - begin
        if room is not None:
            made = min(made, room)
        finish = self._how_it_ended(ask, stops.found is not None, used, made)
        if calls and finish == "stop":
            finish = "tool_calls"
        pieces = heard if drafts else 0
        self._say(wire.Done(ask.number, finish, made, first, seconds, calls, pieces))
        # The engine takes thoughts out of its cache, which some layers' state does not survive.
        is_state_wrong = has_thoughts and self._model.has_recurrent_state
        if finish not in ("stop", "tool_calls") or is_state_wrong:
            return None
        if has_thoughts or calls:
            if drafts and self._model.drafts_stops:  # is the end mark in the cache?
                return None
        elif not reads_back(self._model, turn.rendered, said, made):
            return None
        answer: Message = {"role": "assistant", "content": said}
        if calls:
            answer["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return answer

    def _say_piece(self, ask: wire.Ask, piece: Piece, stops: StopFinder) -> str:
        """Say a piece, up to a stop string; what of it is the answer's."""
        is_answer = piece.kind == "answer"
        text = stops.feed(piece.text) if is_answer else piece.text
        if text:
            self._say(wire.Piece(ask.number, "answer" if is_answer else "thought", text))
        return text if is_answer else ""

    def _room(self, ask: wire.Ask, turn: _Turn) -> int | None:
        """How many tokens an answer may have."""
        context = self._model.context_length
        rooms = [ask.max_tokens, None if context is None else context - turn.prompt_tokens]
        return min((room for room in rooms if room is not None), default=None)

    def _options(self, ask: wire.Ask) -> dict[str, Any]:
        """What is said with a message, and not once for a conversation."""
        import litert_lm

        options: dict[str, Any] = {"max_output_tokens": ask.max_tokens}
        if penalties := _penalties(ask):
            penalised = litert_lm.RepetitionPenaltyConfig(**penalties)
            options["repetition_penalty_config"] = penalised
        if ask.constraint is not None:
            options |= schema.constraint(ask.constraint.text, ask.constraint.kind == "regex")
        return options

    def _how_it_ended(self, ask: wire.Ask, is_stopped: bool, used: int, made: int) -> wire.Finish:
        limit = self._model.context_length
        if is_stopped:
            return "stop_string"
        if ask.number in self._cancelled:
            return "cancelled"
        if ask.max_tokens is not None and made >= ask.max_tokens:
            return "length"
        return "context" if limit is not None and used >= limit else "stop"


@dataclass(frozen=True)
class _Turn:
    """A conversation, and what is to be sent."""

    conversation: Any
    message: Message
    rendered: str
    prompt_tokens: int
    cached_tokens: int


class _CannotError(Exception):
    """This request cannot be answered; the engine is as well as before."""

    def __init__(self, fault: wire.Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def _sampling(ask: wire.Ask) -> Sampling:
    sampler = ask.sampler
    return Sampling(sampler.temperature, sampler.top_k, sampler.top_p, sampler.seed)


def _penalties(ask: wire.Ask) -> dict[str, float | None]:
    """As the engine takes them; empty where none of them changes anything."""
    sampler = ask.sampler
    penalties = {
        "repetition_penalty": sampler.repeat_penalty if sampler.repeat_penalty != 1 else None,
        "presence_penalty": sampler.presence_penalty or None,
        "frequency_penalty": sampler.frequency_penalty or None,
    }
    return {} if set(penalties.values()) == {None} else penalties


def _close(conversation: Any) -> None:
    with uninterrupted():
        conversation.cancel_process()
        conversation.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="server.worker")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--keep-bytes", type=int, required=True)
    parser.add_argument("--packed-weights", help="a folder that the model's engines share")
    args = parser.parse_args()
    # What the engine or a library prints must not come between our messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    read_bundle(args.bundle)
    packed = args.packed_weights
    with Model(args.bundle, threads=args.threads, packed_weights=packed) as model:
        Worker(model, out, args.keep_bytes).serve(sys.stdin.buffer)


if __name__ == "__main__":
    main()
