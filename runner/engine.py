"""A `.litertlm` file in the LiteRT-LM engine: conversations and completions, piece by piece.

What the engine does not do by itself is done here, each seen in docs/runtime.md: it refuses a long
prompt only in the first turn, keeps a cancelled conversation cancelled for ever, stops an answer at
the end of the cache without a word, and forgets the bundle's sampler when one option is given.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from converter.errors import EngineError, OptionError
from converter.litertlm.inspection import Bundle, read_bundle
from converter.tflite.state import CONVOLUTIONS_END
from runner import schema, zero_pages
from runner.conversation import Conversation, Tools, uninterrupted
from runner.native_log import NativeLog
from runner.packed_weights import PackedWeights, check_keeping
from runner.schema import Schema

_COMPLETION_TEMPLATE = Path(__file__).parent.parent / "converter/families/completion.jinja"
_WIDE_TOP_K = 50  # transformers' default, where a bundle's own k of 1 would undo other options
_PROBE = "probe"
_NO_GPU = "Failed to initialize WebGPU environment"
# Bytes of caches from which on a start gives back their memory. With small ones that is not worth
# the time that the first prompt then needs for new pages: SmolLM2's a fifth.
_LARGE_STATES = 256 << 20
_KEYS_AND_VALUES = ("kv_cache_k_", "kv_cache_v_")


@dataclass(frozen=True)
class Sampling:
    """What the user chose; None leaves the bundle's own value."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


class Model:
    """An open `.litertlm` file; a context manager.

    While it is open, fd 2 belongs to the engine and `sys.stderr` is another stream: look it up
    inside the `with` block.

    Args:
        backend: cpu or gpu.
        threads: for cpu; None leaves the engine's choice.
        verbose: let the engine's log through.
        benchmark: measure, for `Conversation.statistics`.
        packed_weights: a folder for the engine's packed weights that others share; None for one
            that is gone once the model is loaded.
        keep_packed: leave such a folder beside the model, for later starts.

    Raises:
        SourceError: missing, not a `.litertlm` file, or a damaged one.
        OptionError: packed weights are to be kept, and cannot be.
        EngineError: the engine refuses it.

    Attributes:
        has_drafted: whether a conversation that drafts was begun. From then on one at a time may be
            open: with a drafter, the engine fails where it turns from one to another
            (docs/runtime.md).
    """

    def __init__(
        self,
        path: Path,
        *,
        backend: Literal["cpu", "gpu"] = "cpu",
        threads: int | None = None,
        verbose: bool = False,
        benchmark: bool = False,
        packed_weights: str | None = None,
        keep_packed: bool = False,
    ) -> None:
        self.path = path
        self.benchmark = benchmark
        self.engine: Any = None
        self._bundle: Bundle = read_bundle(path)
        self.metadata: Any = self._bundle.metadata
        self._backend = backend
        self._threads = threads
        self._verbose = verbose
        self._packed_weights = packed_weights
        self._keep_packed = keep_packed
        # Whether this start left them for later ones.
        self.has_kept_packed = False
        self.has_drafted = False
        self._log = NativeLog(hidden=not verbose)
        self._conversations: list[Conversation] = []
        self._possible: set[Schema] = set()  # that the engine has made a grammar of

    def __enter__(self) -> Model:
        import litert_lm

        backends = {
            "cpu": lambda: litert_lm.Backend.CPU(thread_count=self._threads),
            "gpu": litert_lm.Backend.GPU,
        }
        severity = litert_lm.LogSeverity
        litert_lm.set_min_log_severity(severity.INFO if self._verbose else severity.ERROR)
        if self._keep_packed:
            check_keeping(self.path)
        self._log.__enter__()
        try:
            shared = self._packed_weights
            own = None if shared else PackedWeights(self.path, self._keep_packed)
            with own or nullcontext():
                self.engine = litert_lm.Engine(
                    str(self.path),
                    backend=backends[self._backend](),
                    cache_dir=own.folder if own else shared,
                    enable_benchmark=self.benchmark,
                )
                if own is not None:
                    own.loaded()
                    self.has_kept_packed = own.has_kept
            if self.state_bytes >= _LARGE_STATES:
                self.give_back_unused()
        except RuntimeError as error:
            failure = self.failure(str(self.path), error)
            if self._backend != "cpu":
                why = failure.why
                if _NO_GPU in why:
                    why = f"the engine finds no GPU here that it can use ({_NO_GPU})"
                failure = EngineError("--backend gpu", why, f"use --backend cpu, or {failure.fix}")
            self._log.__exit__(None, None, None)
            raise failure from error
        except BaseException:
            self._log.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            for conversation in self._conversations:
                conversation.close()
            with uninterrupted():
                self.engine.close()
        finally:
            self._log.__exit__(None, None, None)

    @cached_property
    def context_length(self) -> int | None:
        """Tokens that history, prompt and answer may fill together; None where it is not told."""
        if self.metadata.max_num_tokens:
            return int(self.metadata.max_num_tokens)
        inputs = self._bundle.decode.inputs
        masks = (tensor.shape[-1] for tensor in inputs if tensor.name == "mask" and tensor.shape)
        return next(masks, None)

    @property
    def start_tokens(self) -> list[int]:
        """What the engine puts before any text."""
        return list(self.metadata.start_token.token_ids.ids)

    @cached_property
    def is_chat(self) -> bool:
        """Whether the chat template does more than pass the text through."""
        try:
            with self.create_conversation() as conversation:
                return bool(conversation.render_message_to_string(_PROBE) != _PROBE)
        except RuntimeError as error:
            raise self.failure(f"{self.path.name}: chat template", error) from error

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the caches that the engine has for each conversation, at their full length."""
        return sum(state.nbytes for state in self._bundle.decode.states)

    def held_bytes(self, tokens: int) -> int:
        """About the bytes that a conversation's caches take once `give_back_unused` was called.

        A cache has a slot for each token; other states, such as a recurrent one, are in use whole.
        """
        total = 0
        for state in self._bundle.decode.states:
            slots = max(state.shape) if state.name.startswith(_KEYS_AND_VALUES) else 1
            total += state.nbytes * min(tokens, slots) // slots
        return total

    def give_back_unused(self) -> bool:
        """Take memory from what no token is in; False where the system cannot.

        Not while a message is answered.
        """
        return zero_pages.give_back() is not None

    @property
    def supports_thinking(self) -> bool:
        """Whether thinking can be switched on and off."""
        return bool(self.metadata.supports_thinking)

    @property
    def has_thoughts(self) -> bool:
        """Whether answers may hold thoughts."""
        return bool(self.metadata.channels)

    @cached_property
    def has_recurrent_state(self) -> bool:
        """Whether layers keep what no token can be taken out of again.

        Of keys and values they can, and of our own short convolutions (`tflite.short_conv`).
        """
        states = {
            tensor.name
            for tensor in self._bundle.decode.inputs
            if tensor.name.startswith("kv_cache_") and not tensor.name.startswith(_KEYS_AND_VALUES)
        }
        return bool(states) and CONVOLUTIONS_END not in states

    def tokenize(self, text: str) -> list[int]:
        """Token ids; special tokens in `text` are parsed, none are added."""
        return list(self.engine.tokenize(text))

    def detokenize(self, tokens: list[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.engine.detokenize(tokens))

    def conversation(
        self,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        thinking: bool | None = None,
        tools: Tools | None = None,
        json_schema: Schema | None = None,
        drafts: bool = True,
    ) -> Conversation:
        """Start a conversation.

        Args:
            max_tokens: the most tokens of an answer; thoughts and calls are not counted.
            thinking: None leaves it to the template.
            tools: what the model may call.
            json_schema: what the answers are JSON of.
            drafts: use the file's drafter, if there is one, where it changes no answer.

        Raises:
            OptionError: the model cannot do what was asked for.
        """
        if thinking and not self.supports_thinking:
            raise OptionError(
                "--thinking", f"{self.path.name} has no thinking to switch on", "leave it out"
            )
        if thinking is False and self.has_thoughts and not self.supports_thinking:
            raise OptionError("--no-thinking", f"{self.path.name} always thinks", "leave it out")
        if system is not None and not self.is_chat:
            raise OptionError(
                "--system",
                f"{self.path.name} is a base model without a chat template",
                "put the text into the prompt",
            )
        if tools is not None and not self.metadata.supports_function_calling:
            raise OptionError(
                "--tools",
                f"the chat template of {self.path.name} takes no tools, or writes calls that the "
                "engine does not read",
                "leave it out, or take another model",
            )
        if json_schema is not None and self.has_thoughts:
            # Inside a thought the schema would hold, too.
            if not self.supports_thinking:
                raise OptionError("--schema", f"{self.path.name} always thinks", "leave it out")
            thinking = False
        settings = self._held_to(json_schema)
        if thinking is not None and self.supports_thinking:
            import litert_lm

            settings["thinking_config"] = litert_lm.ThinkingConfig(enable_thinking=thinking)
        if tools is not None:
            settings["tools"] = [declared_tool(tool) for tool in tools.declarations]
        may_think = self.has_thoughts and thinking is not False
        return self._add(
            Conversation(
                self,
                settings,
                self.sampler(sampling),
                max_tokens,
                system,
                may_think,
                tools,
                json_schema,
                drafts and json_schema is None and self.may_draft(sampling),
            )
        )

    def completion(
        self,
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        json_schema: Schema | None = None,
        drafts: bool = True,
    ) -> Conversation:
        """A conversation without template and history: each prompt is continued as it stands."""
        settings = self._held_to(json_schema)
        conversation = Conversation(
            self,
            settings | {"chat_template": completion_template()},
            self.sampler(sampling),
            max_tokens,
            None,
            self.has_thoughts,
            json_schema=json_schema,
            drafts=drafts and json_schema is None and self.may_draft(sampling),
        )
        conversation.keeps_history = False
        return self._add(conversation)

    def _held_to(self, wanted: Schema | None) -> dict[str, Any]:
        """What a conversation is made with whose answers are JSON of a schema.

        Raises:
            OptionError: the engine can make no grammar of it.
        """
        if wanted is None:
            return {}
        settings = schema.settings()
        if wanted not in self._possible:
            try:
                with self.create_conversation(
                    chat_template=completion_template(), **settings
                ) as conversation:
                    held = schema.constraint(wanted.text)
                    list(conversation.send_message_async(_PROBE, max_output_tokens=1, **held))
            except RuntimeError as error:
                raise schema.refused(wanted, self._log.reason() or str(error)) from error
            self._possible.add(wanted)
        return settings

    def sampler(self, chosen: Sampling | None) -> Any:
        """A complete SamplerConfig, or None for the bundle's own.

        The engine fills what is left out with its own defaults and not with the bundle's values.
        """
        if chosen is None or chosen == Sampling():
            return None
        import litert_lm

        own = self.metadata.sampler_params
        seed = own.seed if chosen.seed is None else chosen.seed
        top_k = chosen.top_k or own.k
        is_greedy = own.type in (own.GREEDY, own.TYPE_UNSPECIFIED)
        if chosen.top_k is None and (is_greedy or own.k <= 1):
            wants_sampling = chosen.temperature is not None or chosen.top_p is not None
            top_k = _WIDE_TOP_K if wants_sampling else 1
        if chosen.temperature == 0:
            top_k = 1
        return litert_lm.SamplerConfig(
            top_k=top_k,
            top_p=chosen.top_p or own.p or 1.0,
            temperature=chosen.temperature or own.temperature or 1.0,
            seed=seed,
        )

    def is_greedy(self, chosen: Sampling | None) -> bool:
        """Whether the likeliest token is always taken, so that no seed changes an answer."""
        sampler, own = self.sampler(chosen), self.metadata.sampler_params
        if sampler is not None:
            return bool(sampler.top_k == 1)
        return own.type in (own.GREEDY, own.TYPE_UNSPECIFIED) or own.k == 1

    def create_conversation(self, *, drafts: bool = False, **settings: Any) -> Any:
        """One of the engine's own: it would draft unasked as soon as another one has.

        Those of ours that were open end here where it must be the only one (`has_drafted`), and
        begin anew when they are asked. Whoever holds others sees to that (`server.worker`).

        Args:
            drafts: use the file's drafter; `may_draft` says where that changes no text.
        """
        self.has_drafted |= drafts
        if self.has_drafted:
            for other in self._conversations:
                other.close()
        if self._bundle.drafts:
            settings["enable_speculative_decoding"] = drafts
        return self.engine.create_conversation(**settings)

    @property
    def drafts_stops(self) -> bool:
        """Whether a stop token may be drafted, which the engine then leaves out of its cache.

        Our own drafters see to that.
        """
        return self._bundle.drafts > 0 and "draft" not in self._bundle.system

    def may_draft(self, chosen: Sampling | None) -> bool:
        """Whether drafts leave the text as it is.

        The engine checks them against the likeliest token, whatever the sampler says. Under a
        constraint and with penalties it fails with them (docs/drafts.md), so the caller sees to
        that. On a GPU they are untried.
        """
        return self._backend == "cpu" and self._bundle.drafts > 0 and self.is_greedy(chosen)

    def failure(self, what: str, error: Exception) -> EngineError:
        """An EngineError whose reason is what the engine logged last."""
        return EngineError(
            what, self._log.reason() or str(error), "run with --verbose to see the engine's log"
        )

    def _add(self, conversation: Conversation) -> Conversation:
        self._conversations.append(conversation)
        return conversation


def completion_template() -> str:
    """The chat template that passes a text through as it stands."""
    return _COMPLETION_TEMPLATE.read_text(encoding="utf-8")


def declared_tool(description: dict[str, Any]) -> Any:
    """A tool as the engine is told of it, `{"type": "function", "function": {...}}`.

    Calls of it are read, and run by nobody here.
    """
    import litert_lm

    class Declared(litert_lm.Tool):
        def get_tool_description(self) -> dict[str, Any]:
            return description

        def execute(self, param: Any) -> Any:
            raise RuntimeError("the engine runs no tools")

    return Declared()
