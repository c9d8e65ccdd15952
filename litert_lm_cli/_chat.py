"""`chat`: a model and a conversation with it, for programs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from cli.limits import parsed_numbers
from cli.request import BACKENDS, check_choice
from litert_lm_cli._convert import AnyPath, check_text, request_for
from runner.options import ChatOptions

if TYPE_CHECKING:
    from runner.conversation import Conversation, Finish
    from runner.engine import Model
    from runner.limit import Piece


def chat(
    model: AnyPath,
    *,
    system: str | None = None,
    raw: bool = False,
    thinking: bool | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    backend: Literal["cpu", "gpu"] = "cpu",
    threads: int | None = None,
    drafts: bool = True,
    keep_packed: bool = False,
    verbose: bool = False,
    quantize: str | None = None,
    lora: AnyPath | Sequence[AnyPath] | None = None,
    chat_template: AnyPath | None = None,
    clip: str | None = None,
    calibrate: AnyPath | None = None,
    bits: float | None = None,
    prefill_seq_len: int | str | None = None,
    kv_cache_max_len: int | Literal["auto"] | None = None,
    memory: str | None = None,
    kv_cache: str | None = None,
    target: str | None = None,
    engine: str | None = None,
    draft: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    quiet: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Chat:
    """Load a model and start a conversation. One that is not converted yet is converted first.

    Args:
        model: a .litertlm file, or whatever `convert` takes.
        system: the system message.
        raw: no chat template: each prompt is continued as it stands.
        thinking: before the answer, or not; None leaves it to the model's template.
        max_tokens: the most of an answer; thoughts are not counted.
        temperature, top_k, top_p, seed: None leaves what the model's file says.
        backend: cpu or gpu.
        threads: for cpu; None leaves the engine's choice.
        drafts: use the file's drafter where the likeliest token is always taken (docs/drafts.md).
        keep_packed: leave the weights as the engine packs them beside the model: later starts are
            quicker, for as many bytes again.
        verbose: let the engine's own log through, to file descriptor 2.
        quantize and all that follow: as for `convert`, where the model has to be converted.

    Raises:
        OptionError: an option cannot be used, or the model cannot do what was asked for.
        EngineError: the engine refuses the model.
        SourceError, UnsupportedError, OutputError: as `convert`.
    """
    check_text("system", system)
    check_choice("backend", backend, BACKENDS)
    options = ChatOptions(
        system=system,
        raw=raw,
        thinking=thinking,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        backend=backend,
        threads=threads,
        drafts=drafts,
        keep_packed=keep_packed,
        verbose=verbose,
    )
    options = replace(options, **parsed_numbers(vars(options)))
    options.check()
    request = request_for(
        model,
        quantize=quantize,
        lora=lora,
        chat_template=chat_template,
        clip=clip,
        calibrate=calibrate,
        bits=bits,
        prefill_seq_len=prefill_seq_len,
        kv_cache_max_len=kv_cache_max_len,
        memory=memory,
        kv_cache=kv_cache,
        target=target,
        engine=engine,
        draft=draft,
        revision=revision,
        offline=offline,
        quiet=quiet,
        backend=backend,
        progress=progress,
    )
    from cli.obtain import obtain

    return Chat(obtain(request), options)


class Chat:
    """A loaded model and a conversation with it; `chat` makes them. A context manager.

    It holds the model's memory until it is closed, or nobody holds it any more. Meanwhile what
    native code writes to file descriptor 2 goes to a hidden log (`verbose` leaves it alone).

    Attributes:
        path: the model's `.litertlm` file.
    """

    def __init__(self, path: Path, options: ChatOptions) -> None:
        self.path = path
        with contextlib.ExitStack() as stack:
            model: Model = stack.enter_context(options.model(path))
            self._conversation: Conversation = options.start(model)
            # The stack knows nothing of this object, so that dropping it closes the model.
            self._finalizer = weakref.finalize(self, stack.pop_all().close)

    def ask(self, prompt: str) -> str:
        """The whole answer to one prompt, without thoughts; the conversation goes on with it.

        Raises:
            OptionError: the prompt is empty, or too long for the context.
            EngineError: the engine failed.
        """
        answer = "".join(piece.text for piece in self.stream(prompt) if piece.kind == "answer")
        # The engine sends U+FFFD where an answer was cut inside a character.
        return answer.strip("\n").rstrip("\ufffd")

    def stream(self, prompt: str) -> Generator[Piece, None, None]:
        """The answer to one prompt, piece by piece as it is generated; raises as `ask`.

        `str(piece)` and `piece.text` are its text, `piece.kind` is "answer" or "thought". Leaving
        the loop early stops the answer; what was said so far stays in the conversation.
        """
        if not self._finalizer.alive:
            raise ValueError("this chat is closed")
        with contextlib.closing(self._conversation.ask(prompt)) as pieces:
            yield from pieces

    @property
    def finish(self) -> Finish:
        """How the last answer ended: "stop", "length", "context" (full) or "cancelled"."""
        return self._conversation.finish

    def close(self) -> None:
        """Give the model's memory back. Safe to call again."""
        self._finalizer()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()
