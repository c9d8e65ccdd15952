"""Turns with a model: history, the end of the context, thoughts, tools, and stopping half-way."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from converter.errors import EngineError, OptionError
from runner import schema
from runner.limit import Limit, Piece, reads_back, without_last
from runner.schema import Schema

Finish = Literal["stop", "length", "context", "cancelled"]
Message = dict[str, Any]  # as the engine takes them: role, content, tool_calls
MOST_ROUNDS = 16  # of calls before an answer
# What the engine says of a call that is not as the model's kind writes them.
_UNREADABLE_CALL = re.compile(
    r"Failed to parse tool calls.*?^full response: (.*?)\nerror:", re.M | re.S
)
_MOST_SHOWN = 200
_RESULTS_SHARE = 4  # the results of one round fill at most a quarter of the context
_RESULTS_TOKENS = 1024  # where nobody says how long it is


@dataclass(frozen=True)
class Statistics:
    """One turn in numbers: rates in tokens per second as the engine counts them.

    Attributes:
        first_token_seconds: from the request to the first piece, by our own clock.
        drafted_pieces: in which the answer came, one for a call of the engine as a rule; 0 where
            nothing is drafted.
    """

    prefill_tokens: int
    prefill_rate: float
    decode_tokens: int
    decode_rate: float
    first_token_seconds: float
    drafted_pieces: int = 0


class LoadedModel(Protocol):
    """What a conversation needs of `runner.engine.Model`, which makes it."""

    path: Path
    engine: Any
    benchmark: bool

    @property
    def context_length(self) -> int | None: ...

    @property
    def has_recurrent_state(self) -> bool: ...

    @property
    def drafts_stops(self) -> bool: ...

    def create_conversation(self, *, drafts: bool = False, **settings: Any) -> Any: ...

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: list[int]) -> str: ...

    def failure(self, what: str, error: Exception) -> EngineError: ...


class Tools(Protocol):
    """What a conversation needs of `runner.tools.Toolbox`."""

    @property
    def declarations(self) -> list[dict[str, Any]]: ...

    def describe(self, call: Message) -> str: ...

    def run(self, call: Message) -> str: ...


class Conversation:
    """Turns with one model; made by `Model.conversation` and `Model.completion`.

    The history is kept here as well: a conversation of the engine ends with the first answer that
    does not end by itself, and the next turn then starts a new one with the history before it. So
    it does after thoughts, which the engine takes out of its cache, where a layer's state is none.

    Attributes:
        finish: how the last answer ended: by itself, at `max_tokens`, at the end of the context,
            or cancelled.
        statistics: of the last turn; None unless the model measures, or when it was cancelled.
        said: the last answer without its thoughts, as far as it came.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: dict[str, Any],
        sampler: Any,
        max_tokens: int | None,
        system: str | None,
        may_think: bool,
        tools: Tools | None = None,
        json_schema: Schema | None = None,
        drafts: bool = False,
    ) -> None:
        self.finish: Finish = "stop"
        self.statistics: Statistics | None = None
        self.said = ""
        self.keeps_history = True
        self._model = model
        self._settings = settings | {"sampler_config": sampler}
        self._drafts = drafts
        self._max_tokens = max_tokens
        self._tools = tools
        self._json_schema = json_schema
        # The engine counts thoughts and calls too, so where there may be some the answer is
        # counted here.
        self._counts_here = may_think or tools is not None
        self._history: list[Message] = []
        self._exchange: list[Message] = []  # a question and calls that have no answer yet
        self._calls: list[Message] = []
        if system is not None:
            _check_text("--system", system)
            self._history.append({"role": "system", "content": system})
        self._engine_turns: Any = None
        self._closing = threading.RLock()  # others may cancel what is being closed
        self._has_thoughts_cached = False
        self._is_cancelled = False

    @property
    def history(self) -> list[Message]:
        """The messages so far, the system's first; the next answer goes on from what is set."""
        return list(self._history)

    @history.setter
    def history(self, messages: list[Message]) -> None:
        self.close()
        self._history = list(messages)

    @property
    def used_tokens(self) -> int | None:
        """Of the context, in the engine's cache; None where the next `ask` fills it anew."""
        return None if self._engine_turns is None else int(self._engine_turns.token_count)

    def ask(self, prompt: str) -> Generator[Piece, None, None]:
        """Answer a prompt, and run the tools that are called for it.

        Close the iterator to stop early, as `contextlib.closing` does; what was said so far stays
        in the history.

        Raises:
            OptionError: the prompt is empty, no text, or too long for the context; the schema
                cannot be kept to; tools are called without end.
            EngineError: the engine failed.
        """
        _check_text("the prompt", prompt)
        message: Message = {"role": "user", "content": prompt}
        try:
            for rounds in itertools.count():
                yield from self._turn(message)
                if not self._calls:
                    return
                if rounds == MOST_ROUNDS:
                    raise OptionError(
                        "--tools",
                        f"the model called tools {MOST_ROUNDS} times and did not answer",
                        "say in the prompt when it is enough",
                    )
                message = yield from self._run_calls()
                if self._is_cancelled:
                    self.finish = "cancelled"
                    return
        finally:
            if self._exchange:  # no template takes a call that nothing follows
                self._exchange = []
                self.close()

    def _turn(self, message: Message) -> Generator[Piece, None, None]:
        """Let the model say something, and keep it."""
        if self._json_schema is None:
            try:
                yield from self._stream(message)
            finally:
                self._remember(message)
            return
        if self._tools is not None:
            # A schema has no room for calls. So none holds at first, and what is said instead of
            # a call is but a draft.
            self._finish_stream(message)
            if self._calls or self.finish == "cancelled":
                self._remember(message)
                return
            self.close()
        self._finish_stream(message, self._json_schema.text)
        if self._tools is not None:
            self.close()  # the engine would hold what comes next to the schema, too
        if self.finish == "cancelled":
            return
        answer = schema.as_json(self.said)
        if answer is None or self.finish != "stop":
            self.close()  # what is unfinished is no part of the history
            raise self._unfinished()
        self._remember(message)
        self.said = answer
        yield Piece(answer, "answer")

    def _run_calls(self) -> Generator[Piece, None, Message]:
        """Run what was called; the message that says what came of it."""
        assert self._tools is not None
        limit = self._model.context_length
        most = limit // _RESULTS_SHARE if limit is not None else _RESULTS_TOKENS
        parts = []
        for call in self._calls:
            yield Piece(self._tools.describe(call), "call")
            result = self._shortened(self._tools.run(call), most // len(self._calls))
            parts.append({"type": "tool_response", "name": call["name"], "response": result})
        return {"role": "tool", "content": parts}

    def _finish_stream(self, message: Message, json_schema: str | None = None) -> None:
        """As `_stream`, where nobody wants the pieces."""
        with contextlib.closing(self._stream(message, json_schema)) as pieces:
            for _ in pieces:
                pass

    def _stream(
        self, message: Message, json_schema: str | None = None
    ) -> Generator[Piece, None, None]:
        """What the model says to a message; then it stands in `said` and `_calls`."""
        self.said, self._calls = "", []
        turns, told, prompt_tokens = self._prepare(message)
        self.finish, self.statistics, self._is_cancelled = "cancelled", None, False
        budget = None if self._counts_here else self._max_tokens
        calls: list[Message] = []
        is_enough = is_mark_lost = False
        first_token, heard = 0.0, 0
        room = self._room(prompt_tokens, budget)
        limit = Limit(self._model, told, room)
        held = {} if json_schema is None else schema.constraint(json_schema)
        begin = time.perf_counter()
        try:
            for part in turns.send_message_async(message, max_output_tokens=budget, **held):
                if is_enough:
                    continue  # it was on its way when the answer was long enough
                first_token = first_token or time.perf_counter() - begin
                heard += 1
                called = [call.to_json()["function"] for call in part.tool_calls]
                if self._tools is not None:
                    calls += called
                    called = []
                for piece in limit.feed(_pieces(part, called)):
                    fitting, is_enough = self._fitting(piece)
                    yield fitting
                    if is_enough:
                        turns.cancel_process()
                        break
            if not self._is_cancelled:
                used = turns.token_count
                made = used - prompt_tokens
                for piece in () if is_enough else limit.rest(made):
                    fitting, is_enough = self._fitting(piece)
                    yield fitting
                    if is_enough:
                        break
                self.finish = self._how_it_ended(is_enough, used, made, budget)
            if self.finish == "stop":  # a cut one's calls may be cut, too
                self._calls = calls
                if self._drafts and self._model.drafts_stops:
                    has_more = self._has_thoughts_cached or bool(calls)
                    is_mark_lost = has_more or not reads_back(self._model, told, self.said, made)
            self.statistics = self._measure(turns, first_token, heard, room)
        except RuntimeError as error:
            if json_schema is not None and schema.is_spelling_failure(str(error)):
                raise schema.spelling_error() from error
            written = _UNREADABLE_CALL.search(str(error))
            if written and self._tools is not None:
                raise OptionError(
                    "--tools",
                    f"the model wrote a call that cannot be read: {written[1][:_MOST_SHOWN]!r}",
                    "ask in other words, or take a larger model",
                ) from error
            raise self._model.failure(self._model.path.name, error) from error
        finally:
            is_state_wrong = self._has_thoughts_cached and self._model.has_recurrent_state
            is_wrong = is_state_wrong or is_mark_lost
            if self.finish != "stop" or not self.keeps_history or is_wrong:
                self.close()

    def _remember(self, message: Message) -> None:
        """Keep what was said to a message; for the history, where it is no call."""
        if not self.keeps_history or not (self.said or self._calls):
            return
        answer: Message = {"role": "assistant"}
        if self.said:
            answer["content"] = self.said
        if self._calls:
            answer["tool_calls"] = [{"type": "function", "function": call} for call in self._calls]
        self._exchange += [message, answer]
        if not self._calls:
            self._history += self._exchange
            self._exchange = []

    def _shortened(self, text: str, most: int) -> str:
        """A tool's result in about `most` tokens, with a note where something is missing."""
        kept = text[: most * 16]  # no token is longer, as a rule; more need not be looked at
        while (tokens := len(self._model.tokenize(kept))) > most:
            kept = kept[: min(len(kept) * most // tokens, len(kept) - 1)]
        if kept == text:
            return text
        return f"{kept}\n[cut: {len(text) - len(kept)} more characters]"

    def _unfinished(self) -> OptionError:
        fixes: dict[Finish, str] = {
            "length": "give it a larger --max-tokens",
            "context": "bound the schema's texts and lists, or convert with a larger "
            "--kv-cache-max-len",
        }
        return OptionError(
            "--schema",
            "the answer ended before its JSON was whole",
            fixes.get(self.finish, "ask in other words"),
        )

    def cancel(self) -> None:
        """End the answer under way; its iterator stops after at most one more piece.

        Any thread may call it, at any time.
        """
        self._is_cancelled = True
        with self._closing:
            if self._engine_turns is not None:
                self._engine_turns.cancel_process()

    def close(self) -> None:
        """Stop the engine's part; the next `ask` starts a new one with the history."""
        with uninterrupted(), self._closing:
            if self._engine_turns is not None:
                self._engine_turns.cancel_process()
                self._engine_turns.close()  # waits for the native threads
                self._engine_turns = None
        self._has_thoughts_cached = False

    def _prepare(self, message: Message) -> tuple[Any, str, int]:
        """The engine's conversation, the message as it is read, and the tokens in its cache."""
        turns, told, needed = self._fit(message)
        limit = self._model.context_length
        if limit is not None and needed >= limit and self._has_thoughts_cached:
            # The engine drops old thoughts from the cache, but only when the next turn begins.
            self.close()
            turns, told, needed = self._fit(message)
        if limit is None or needed < limit:
            return turns, told, needed
        raise OptionError(
            "what the tools said" if message["role"] == "tool" else "the prompt",
            f"is {needed} tokens long with its template and history, and the context of {limit} "
            "must hold it and an answer",
            "shorten it, start a new chat, or convert --force with a larger --kv-cache-max-len",
        )

    def _fit(self, message: Message) -> tuple[Any, str, int]:
        """As `_prepare`, whether it fits or not."""
        try:
            if self._engine_turns is None:
                self._engine_turns = self._model.create_conversation(
                    drafts=self._drafts,
                    messages=self._history + self._exchange,
                    automatic_tool_calling=False,  # without any it would answer itself
                    **self._settings,
                )
            turns = self._engine_turns
            rendered = turns.render_message_to_string(message)
            if not rendered:  # the reason is in the engine's log only
                raise RuntimeError("its chat template does not render")
            cached = turns.token_count
            has_start = cached == 0 and self._model.engine.bos_token_id is not None
            return turns, rendered, cached + has_start + len(self._model.tokenize(rendered))
        except RuntimeError as error:
            raise self._model.failure(self._model.path.name, error) from error

    def _room(self, prompt_tokens: int, budget: int | None) -> int | None:
        """How many tokens an answer may have, where the engine does not keep to that by itself."""
        if not self._drafts:
            return None
        context = self._model.context_length
        rooms = [budget, None if context is None else context - prompt_tokens]
        return min((room for room in rooms if room is not None), default=None)

    def _fitting(self, piece: Piece) -> tuple[Piece, bool]:
        """As much of a piece as --max-tokens leaves, which is said now; whether it ends there."""
        if piece.kind != "answer":
            self._has_thoughts_cached = True
            return piece, False
        before, self.said = self.said, self.said + piece.text
        if not self._counts_here or self._max_tokens is None:
            return piece, False
        over = len(self._model.tokenize(self.said)) - self._max_tokens
        if over > 0:
            kept = without_last(self._model, self.said, over)
            self.said = self.said[: max(len(kept), len(before))]
        return Piece(self.said[len(before) :], piece.kind), over >= 0

    def _how_it_ended(
        self, is_enough: bool, used: int, generated: int, budget: int | None
    ) -> Finish:
        limit = self._model.context_length
        if is_enough or (budget is not None and generated >= budget):
            return "length"
        return "context" if limit is not None and used >= limit else "stop"

    def _measure(
        self, turns: Any, first_token: float, heard: int, room: int | None
    ) -> Statistics | None:
        if not self._model.benchmark:
            return None
        info = turns.get_benchmark_info()
        return Statistics(
            info.last_prefill_token_count,
            info.last_prefill_tokens_per_second,
            min(info.last_decode_token_count, room or info.last_decode_token_count),
            info.last_decode_tokens_per_second,
            first_token,
            heard if self._drafts else 0,
        )


def _pieces(message: Any, calls: Sequence[Message]) -> Iterator[Piece]:
    """What one message of the stream adds; calls that nobody asked for are shown as text."""
    for text in message.channels.values():
        yield Piece(text, "thought")
    if text := str(message):
        yield Piece(text, "answer")
    for call in calls:
        yield Piece(json.dumps(call, ensure_ascii=False), "answer")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Drop Ctrl-C meanwhile: between a native delete and its note, it would delete twice."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _check_text(what: str, text: str) -> None:
    fix = "give it as UTF-8 text"
    if not text.strip():
        raise OptionError(what, "is empty", fix)
    if "\0" in text:  # the engine's C interface would end there
        raise OptionError(what, "holds a NUL character", fix)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(what, "is not UTF-8", fix) from error
