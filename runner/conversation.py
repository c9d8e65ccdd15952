"""Turns with a model: history, the end of the context, thoughts, and stopping half-way."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from converter.errors import EngineError, OptionError

Finish = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as soon as it is generated."""

    text: str
    kind: Literal["answer", "thought"]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Statistics:
    """One turn in numbers: rates in tokens per second as the engine counts them.

    Attributes:
        first_token_seconds: from the request to the first piece, by our own clock.
    """

    prefill_tokens: int
    prefill_rate: float
    decode_tokens: int
    decode_rate: float
    first_token_seconds: float


class LoadedModel(Protocol):
    """What a conversation needs of `runner.engine.Model`, which makes it."""

    path: Path
    engine: Any
    benchmark: bool

    @property
    def context_length(self) -> int | None: ...

    @property
    def has_recurrent_state(self) -> bool: ...

    def tokenize(self, text: str) -> list[int]: ...

    def failure(self, what: str, error: Exception) -> EngineError: ...


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
    ) -> None:
        self.finish: Finish = "stop"
        self.statistics: Statistics | None = None
        self.said = ""
        self.keeps_history = True
        self._model = model
        self._settings = settings | {"sampler_config": sampler}
        self._max_tokens = max_tokens
        self._may_think = may_think
        self._history: list[dict[str, str]] = []
        if system is not None:
            _check_text("--system", system)
            self._history.append({"role": "system", "content": system})
        self._engine_turns: Any = None
        self._has_thoughts_cached = False
        self._is_cancelled = False

    @property
    def history(self) -> list[dict[str, str]]:
        """The messages so far, the system's first; the next answer goes on from what is set."""
        return list(self._history)

    @history.setter
    def history(self, messages: list[dict[str, str]]) -> None:
        self.close()
        self._history = list(messages)

    @property
    def used_tokens(self) -> int | None:
        """Of the context, in the engine's cache; None where the next `ask` fills it anew."""
        return None if self._engine_turns is None else int(self._engine_turns.token_count)

    def ask(self, prompt: str) -> Generator[Piece, None, None]:
        """Answer a prompt.

        Close the iterator to stop early, as `contextlib.closing` does; what was said so far stays
        in the history.

        Raises:
            OptionError: the prompt is empty, no text, or too long for the context.
            EngineError: the engine failed.
        """
        turns, prompt_tokens = self._prepare(prompt)
        self.finish, self.statistics, self._is_cancelled = "cancelled", None, False
        self.said = ""
        # The engine counts thoughts too, so where there may be some the answer is counted here.
        budget = None if self._may_think else self._max_tokens
        is_enough = False
        first_token = 0.0
        begin = time.perf_counter()
        try:
            for message in turns.send_message_async(prompt, max_output_tokens=budget):
                if is_enough:
                    continue  # it was on its way when the answer was long enough
                first_token = first_token or time.perf_counter() - begin
                for piece in _pieces(message):
                    if piece.kind == "answer":
                        self.said += piece.text
                    else:
                        self._has_thoughts_cached = True
                    yield piece
                if self._may_think and self._is_enough(self.said):
                    is_enough = True
                    turns.cancel_process()
            if not self._is_cancelled:
                used = turns.token_count
                self.finish = self._how_it_ended(is_enough, used, used - prompt_tokens, budget)
            self.statistics = self._measure(turns, first_token)
        except RuntimeError as error:
            raise self._model.failure(self._model.path.name, error) from error
        finally:
            if self.keeps_history and self.said:
                self._history.append({"role": "user", "content": prompt})
                self._history.append({"role": "assistant", "content": self.said})
            is_state_wrong = self._has_thoughts_cached and self._model.has_recurrent_state
            if self.finish != "stop" or not self.keeps_history or is_state_wrong:
                self.close()

    def cancel(self) -> None:
        """End the answer under way; its iterator stops after at most one more piece."""
        self._is_cancelled = True
        if self._engine_turns is not None:
            self._engine_turns.cancel_process()

    def close(self) -> None:
        """Stop the engine's part; the next `ask` starts a new one with the history."""
        if self._engine_turns is not None:
            with uninterrupted():
                self._engine_turns.cancel_process()
                self._engine_turns.close()  # waits for the native threads
                self._engine_turns = None
        self._has_thoughts_cached = False

    def _prepare(self, prompt: str) -> tuple[Any, int]:
        """The engine's conversation, and the tokens in its cache once the prompt is there."""
        _check_text("the prompt", prompt)
        turns, needed = self._fit(prompt)
        limit = self._model.context_length
        if limit is not None and needed >= limit and self._has_thoughts_cached:
            # The engine drops old thoughts from the cache, but only when the next turn begins.
            self.close()
            turns, needed = self._fit(prompt)
        if limit is None or needed < limit:
            return turns, needed
        raise OptionError(
            "the prompt",
            f"is {needed} tokens long with its template and history, and the context of {limit} "
            "must hold it and an answer",
            "shorten it, start a new chat, or convert with a larger --kv-cache-max-len",
        )

    def _fit(self, prompt: str) -> tuple[Any, int]:
        """As `_prepare`, whether it fits or not."""
        try:
            if self._engine_turns is None:
                self._engine_turns = self._model.engine.create_conversation(
                    messages=self._history,
                    automatic_tool_calling=False,  # there are no tools, and it would answer itself
                    **self._settings,
                )
            turns = self._engine_turns
            rendered = turns.render_message_to_string(prompt)
            if not rendered:  # the reason is in the engine's log only
                raise RuntimeError("its chat template does not render")
            cached = turns.token_count
            has_start = cached == 0 and self._model.engine.bos_token_id is not None
            return turns, cached + has_start + len(self._model.tokenize(rendered))
        except RuntimeError as error:
            raise self._model.failure(self._model.path.name, error) from error

    def _is_enough(self, said: str) -> bool:
        return self._max_tokens is not None and len(self._model.tokenize(said)) >= self._max_tokens

    def _how_it_ended(
        self, is_enough: bool, used: int, generated: int, budget: int | None
    ) -> Finish:
        limit = self._model.context_length
        if is_enough or (budget is not None and generated >= budget):
            return "length"
        return "context" if limit is not None and used >= limit else "stop"

    def _measure(self, turns: Any, first_token: float) -> Statistics | None:
        if not self._model.benchmark:
            return None
        info = turns.get_benchmark_info()
        return Statistics(
            info.last_prefill_token_count,
            info.last_prefill_tokens_per_second,
            info.last_decode_token_count,
            info.last_decode_tokens_per_second,
            first_token,
        )


def _pieces(message: Any) -> Iterator[Piece]:
    """What one message of the stream adds."""
    for text in message.channels.values():
        yield Piece(text, "thought")
    if text := str(message):
        yield Piece(text, "answer")
    for call in message.tool_calls:  # nobody asked for one: show what the model wrote
        yield Piece(json.dumps(call.to_json()["function"], ensure_ascii=False), "answer")


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
