"""The whole pipeline, once: read config, validate, plan, emit graph, stream weights, package.

    checkpoint --config--> Family --spec--> graph --layout--> plan
        `------rows, a block at a time---> WeightStream ---> AtomicFile, at the planned offset

The plan fixes every byte's place before the first weight is read. No step holds more than one block
of weights per thread, whatever the size of the model.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.bit_budget import Candidate, choose, losses_of, matrices_of, room, told
from converter.cache_budget import STEP, CacheFit, gigabytes, longest_cache
from converter.checkpoint.base import Checkpoint
from converter.decoder import Attention, DecoderSpec, Experts
from converter.drafter import Drafter, DrafterPlan, read_drafter
from converter.errors import OptionError, UnsupportedError
from converter.families.base import Family
from converter.families.matching import listed
from converter.litertlm.bundle import (
    FIRST_SECTION,
    BundleLayout,
    Section,
    draft_note,
    executor_metadata,
    lay_out,
    tokenizer_section,
)
from converter.litertlm.inspection import summarise
from converter.litertlm.metadata import NEWEST_ENGINE, LlmMetadataResult, build_llm_metadata
from converter.litertlm.model_types import DRAFTER, EMBEDDER, NETWORK
from converter.litertlm.run_memory import beside_network
from converter.litertlm.sampling import checked_sampling
from converter.network import Network, check_vocabulary, read_network
from converter.options import (
    DEFAULT_CACHE_LENGTH,
    ConvertOptions,
    drafter_name,
    is_placeholder,
    ladder_of,
)
from converter.output.atomic_file import AtomicFile, Seal
from converter.text import background
from converter.text.chat_template import TEMPLATE_FIX
from converter.text.tokenizer import load_tokenizer
from converter.tflite.decoder_graph import build_decoder, slots_for
from converter.tflite.graph import Weight
from converter.tflite.kv_cache import CacheType, Target
from converter.tflite.lookup import WIDTH as LOOKUP_WIDTH
from converter.tflite.lookup import History
from converter.tflite.lookup_drafter import build_drafter, build_embedder
from converter.tflite.state import StateBuffer
from converter.tflite.writer import MOST_TABLES, Layout, write
from converter.version import __version__
from converter.weights.passages import (
    OWN,
    CalibrationText,
    check_calibration,
    read_passages,
)
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import (
    Format,
    Quantization,
    default_scheme,
    parse_quantization,
    part_of,
    smallest_scheme,
)
from converter.weights.row_format import Clip
from converter.weights.stream import Progress, Watch, WeightStream

# The metadata, and the kind and the bytes of the tokenizer's section.
Description = tuple[LlmMetadataResult, str, bytes]

# Of the header: keys of config.json that say something and that transformers does not read either.
IGNORED_KEYS = "ignored config keys"
# And by which text columns of int4 make up for each other's errors.
CALIBRATION = "calibration"
# And what a budget of bits was spent on.
BITS = "bits of a weight"


@dataclass(frozen=True)
class Text:
    """What goes into the bundle beside the network.

    Attributes:
        sections: all sections in file order; the network's own content is None.
        system: what the header says about the whole file, before weights were streamed.
        drafter: a trained one; None where there is none.
    """

    metadata: LlmMetadataResult
    sections: tuple[tuple[Section, bytes | bytearray | None], ...]
    bundle: BundleLayout
    system: dict[str, str]
    drafter: DrafterPlan | None


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first weight is read.

    The network lies first in the file, so that its weights have their places while the tokenizer
    and the template are still being proved: `metadata`, `sections` and `bundle` wait for that.

    Attributes:
        text_for: what stands beside a network of so many bytes.
        found: what a user should know about the weights, by what it concerns.
        memory_fit: what became of a budget of memory; None without one.
        description: the proof of tokenizer and template, which `text_for` waits for.
        passages: of the text that calibrates, in tokens, `(passages, n)`.
        drafter: a trained one; None where there is none.
        bits: what a budget of them was spent on; None without one.
    """

    family: Family
    spec: DecoderSpec
    quantization: Quantization
    cache_length: int
    cache_type: CacheType
    prefill_lengths: tuple[int, ...]
    weights: tuple[PlannedWeight, ...]
    model: Layout
    text_for: Callable[[int], Text]
    found: Mapping[str, str]
    memory_fit: CacheFit | None
    description: background.Work[Description]
    passages: np.ndarray | None
    drafter: Drafter | None
    bits: str | None

    def text(self) -> Text:
        """What stands beside this plan's network; made once."""
        return self.text_for(self.model.nbytes)

    @property
    def metadata(self) -> LlmMetadataResult:
        return self.text().metadata

    @property
    def sections(self) -> tuple[tuple[Section, bytes | bytearray | None], ...]:
        return self.text().sections

    @property
    def bundle(self) -> BundleLayout:
        return self.text().bundle


class ModelConverter:
    """Converts one checkpoint.

    Raises (from `plan` and `convert`):
        OptionError, SourceError, UnsupportedError, OutputError: see `converter.errors`.
    """

    producer = f"litert-lm-cli {__version__}"
    # What helps where a network is for no GPU.
    instead_of_gpu = "convert it for the CPU: --target cpu"

    def __init__(self, checkpoint: Checkpoint, name: str, options: ConvertOptions) -> None:
        self.checkpoint = checkpoint
        self.name = name
        self.options = options

    def convert(self, output: Path, progress: Progress = lambda _: None) -> Plan:
        """Write `output`; `progress` is told the number of bytes after each block written."""
        plan = self.plan()
        self.write(plan, output, progress)
        return plan

    def write(
        self,
        plan: Plan,
        output: Path,
        progress: Progress = lambda _: None,
        seal: Seal | None = None,
    ) -> None:
        """Carry out a plan: the file appears under its name when it is complete.

        Args:
            seal: see `converter.output.atomic_file`.
        """
        # A fault of the template shows before the weights, where it is known by now; else the
        # stream ends where it shows.
        if plan.description.is_done():
            plan.text()
        with AtomicFile(output) as file:
            self.package(plan, file, self.stream(plan, file, progress))
            file.commit(seal)

    def scratch_bytes(self, plan: Plan) -> int:
        """Of disk that carrying out a plan needs beside its result."""
        return 0

    # Plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Validate, emit the graph and fix the place of every weight."""
        network = read_network(self.checkpoint, self.name, self.options.lora)
        family = network.family
        spec = network.spec(self._cache_length(family))
        has_experts = any(isinstance(layer.feed_forward, Experts) for layer in spec.layers)
        if has_experts and self.options.target is Target.GPU:
            raise UnsupportedError(
                self.name,
                "its experts stand behind branches, which a GPU does not take",
                self.instead_of_gpu,
            )
        drafts = self.options.drafts
        if drafts:
            self._check_drafts(spec)
        quantization = parse_quantization(self.options.quantize or self._default_scheme(spec))
        quantization.check(spec, self.options.target)
        drafter = None
        if self.options.drafter is not None:
            drafter = read_drafter(self.options.drafter, network, spec, quantization)
        shapes = network.shapes
        formats = {path: quantization.format_of(path, shape) for path, shape in shapes.items()}
        if self.options.bits is not None:
            self._check_bits(self.options.bits, network, formats)
        passages = self._passages(spec, quantization, formats)
        spent = None
        if self.options.bits is not None:
            formats, spent = self._spend(self.options.bits, network, formats, passages)
        weights = {path: formats[path].weight(path, shape) for path, shape in shapes.items()}
        cache_length, fit = self._cache_length(family), None
        if self.options.memory is not None:
            fit = self._fit(network, weights, self.options.memory, drafter)
            cache_length = fit.kv_cache_length
        spec = network.spec(cache_length)
        lengths = self._prefill_lengths(cache_length, spec)
        has_int6 = any(form.has_rest for form in formats.values())
        describe = background.start(
            lambda: self._describe(family, spec, cache_length, has_int6),
            f"{self.name}: tokenizer and chat template",
        )

        model, states = self._emit(network, weights, cache_length)
        if model.tables > MOST_TABLES:
            raise OptionError(
                f"--prefill-seq-len {','.join(map(str, lengths))}",
                f"the graph has {model.tables} tables, and the runtime loads at most {MOST_TABLES}",
                "choose fewer lengths, or shorter ones",
            )

        def planned(path: str) -> PlannedWeight:
            return PlannedWeight.placed(
                path,
                network.sources[path],
                *network.stored_as(path),
                formats[path],
                weights[path],
                model,
                FIRST_SECTION,
                network.updates.get(path, ()),
            )

        def plan_drafter(stops: Sequence[int]) -> DrafterPlan | None:
            if drafter is not None:
                slots, rings = slots_for(cache_length, drafts), not family.has_thoughts()
                return drafter.plan(slots, rings, self._cache_type(), stops)
            if not drafts:
                return None
            history = History.of(len(spec.layers), cache_length, lengths)
            lookup = build_drafter(history, cache_length, spec.vocab_size, drafts, stops)
            return DrafterPlan((), write(lookup), LOOKUP_WIDTH)

        def text_for(network_nbytes: int) -> Text:
            found = dict(network.found)
            if passages is not None:
                found[CALIBRATION] = self._calibration(passages)
            if spent is not None:
                found[BITS] = spent
            return self._lay_out(
                network_nbytes, family, quantization, states, plan_drafter, found, *describe()
            )

        return Plan(
            family=family,
            spec=spec,
            quantization=quantization,
            cache_length=cache_length,
            cache_type=self._cache_type(),
            prefill_lengths=lengths,
            weights=tuple(map(planned, shapes)),
            model=model,
            text_for=functools.cache(text_for),
            found=network.found,
            memory_fit=fit,
            description=describe,
            passages=passages,
            drafter=drafter,
            bits=spent,
        )

    def _emit(
        self, network: Network, weights: Mapping[str, Weight], cache_length: int
    ) -> tuple[Layout, tuple[StateBuffer, ...]]:
        """The graph with a KV cache of so many slots, and what the engine keeps between calls."""
        spec = network.spec(cache_length)
        lengths = self._prefill_lengths(cache_length, spec)
        target, rings = self.options.target, not network.family.has_thoughts()
        with _without_collector():
            decoder = build_decoder(
                spec,
                lengths,
                cache_length,
                weights.__getitem__,
                target,
                rings,
                self.options.drafts,
                self._cache_type(),
                has_trained_drafter=self.options.drafter is not None,
            )
            return write(decoder.model), decoder.states

    def _passages(
        self, spec: DecoderSpec, quantization: Quantization, formats: Mapping[str, Format]
    ) -> np.ndarray | None:
        """Those of the text that calibrates, where one does."""
        calibrate = self.options.calibrate
        if calibrate is None and self.options.bits is not None:
            raise OptionError(
                f"--bits {self.options.bits:g}",
                "is spent where a text says that it saves most, and there is none",
                "add --calibrate self",
            )
        if calibrate is None:
            return None
        if not any(form.rounds_inputs for form in formats.values()):
            raise OptionError(
                "--calibrate",
                f"is about int4 and rounded activations, and {quantization.name} has neither",
                "leave it out, or choose --quantize dynamic_int4 or dynamic_int8",
            )
        if self.options.clip is not Clip.MSE:
            raise OptionError("--calibrate", "is the contrary of --clip max", "leave one out")
        check_calibration(spec, self.name)
        return self._read_passages(spec, calibrate)

    def _read_passages(self, spec: DecoderSpec, calibrate: CalibrationText) -> np.ndarray | None:
        # In a process of its own: tokenizers are strangers'.
        read = functools.partial(read_passages, self.checkpoint, self.name, spec, calibrate)
        return background.start(read, self.name)()

    def _default_scheme(self, spec: DecoderSpec) -> str:
        choose_scheme = default_scheme if self.options.bits is None else smallest_scheme
        return choose_scheme(spec, self.options.target)

    def _matrices(self, network: Network, formats: Mapping[str, Format]) -> Mapping[str, Candidate]:
        """What a budget of bits may be spent on."""
        return matrices_of(network.shapes, formats, self.options.target is Target.CPU)

    def _check_bits(self, bits: float, network: Network, formats: Mapping[str, Format]) -> None:
        """Raise OptionError where a budget cannot be kept to, before anything is read."""
        matrices = self._matrices(network, formats)
        if not any(matrix.wider for matrix in matrices.values()):
            raise OptionError(
                f"--bits {bits:g}",
                "is spent on what --quantize has in int4 or int6, and nothing is",
                "leave it out, or choose --quantize dynamic_int4 or dynamic_int6",
            )
        room(bits, matrices)

    def _spend(
        self,
        bits: float,
        network: Network,
        formats: Mapping[str, Format],
        passages: np.ndarray | None,
    ) -> tuple[dict[str, Format], str]:
        """The formats of all weights where a budget of bits was spent, and what on."""
        matrices = self._matrices(network, formats)
        chosen = choose(bits, matrices, self._losses(network, formats, passages))
        return {**formats, **chosen}, told(matrices, chosen)

    def _losses(
        self, network: Network, formats: Mapping[str, Format], passages: np.ndarray | None
    ) -> dict[str, float]:
        """What each matrix in int4 loses, as these say."""
        assert passages is not None
        return losses_of(network, formats, passages, self.options.threads)

    def _calibration(self, passages: np.ndarray) -> str:
        """By what, for `inspect`: no path."""
        assert self.options.calibrate is not None
        own = self.options.calibrate.file is None
        return f"{OWN if own else 'a text'}, {passages.size} tokens"

    def _describe(
        self, family: Family, spec: DecoderSpec, cache_length: int, has_int6: bool
    ) -> Description:
        """What is said of the network, proved."""
        chosen = self.options.chat_template
        tokenizer = load_tokenizer(
            self.checkpoint,
            prefer_sentencepiece=family.prefers_sentencepiece,
            chat_template=None if chosen is None else chosen.text,
        )
        check_vocabulary(tokenizer, spec, self.name)
        metadata = build_llm_metadata(
            family.base_metadata(),
            tokenizer,
            max_num_tokens=cache_length,
            name=family.name,
            templates=family.templates,
            generation_config=checked_sampling(self.checkpoint.generation_config, self.name),
            template_fix=f"correct {chosen.file}" if chosen and chosen.file else TEMPLATE_FIX,
        )
        has_cache = self._cache_type() is not CacheType.FP32
        if self.options.drafts or has_cache or has_int6:
            metadata.message.min_runtime_version = NEWEST_ENGINE
        return metadata, tokenizer.kind, tokenizer_section(tokenizer.kind, tokenizer.data)

    def _lay_out(
        self,
        network_nbytes: int,
        family: Family,
        quantization: Quantization,
        states: Sequence[StateBuffer],
        plan_drafter: Callable[[Sequence[int]], DrafterPlan | None],
        found: Mapping[str, str],
        metadata: LlmMetadataResult,
        tokenizer_kind: str,
        tokenizer: bytes,
    ) -> Text:
        message = metadata.message
        parts: tuple[tuple[str, bytes], ...] = (
            ("LlmMetadataProto", message.SerializeToString(deterministic=True)),
            ("ExecutorMetadataProto", executor_metadata(states, message.max_num_tokens)),
            (tokenizer_kind, tokenizer),
        )
        drafter = plan_drafter(
            [number for stop in message.stop_tokens for number in stop.token_ids.ids]
        )
        models: list[tuple[str, int, bytes | bytearray | None]] = [(NETWORK, network_nbytes, None)]
        if drafter is not None:
            embedder = write(build_embedder(drafter.width))
            models += (
                (kind, model.nbytes, model.flatbuffer)
                for kind, model in ((EMBEDDER, embedder), (DRAFTER, drafter.model))
            )
        sections = (
            *((Section("TFLiteModel", size, {"model_type": k}), d) for k, size, d in models),
            *((Section(k, len(d), {}), d) for k, d in parts),
        )
        system = {
            "producer": self.producer,
            "model": self.name,
            "family": family.name,
            "quantization": quantization.name,
            "target": self.options.target.value,
            "KV cache": self._cache_type().value,
            **(
                {"draft": draft_note(drafter_name(self.options), self.options.drafts)}
                if drafter
                else {}
            ),
            **found,
            "chat template": self._template_origin(metadata.template.chosen),
        }
        if self.checkpoint.format == "safetensors":
            ignored = family.ignored_keys(self.checkpoint.config)
            system |= {IGNORED_KEYS: listed(ignored)} if ignored else {}
        return Text(
            metadata,
            sections,
            lay_out([section for section, _ in sections], system),
            system,
            drafter,
        )

    def _template_origin(self, candidate: str) -> str:
        """Where the chat template came from, for `inspect`."""
        chosen = self.options.chat_template
        origin = "the source's" if chosen is None else "--chat-template"
        if candidate == "completion":
            return "none, the source has none" if chosen is None else "none, by --chat-template"
        if ".jinja" in candidate:
            return f"the family's {candidate}, in place of {origin}"
        return f"{origin}, {'as it is' if candidate == 'source' else 'adapted'}"

    def _check_drafts(self, spec: DecoderSpec) -> None:
        """Raise where a token that was drafted wrongly could not be taken back."""
        without, option = "leave it out", f"--draft {drafter_name(self.options)}"
        if self.options.target is Target.GPU:
            raise OptionError(
                option,
                "its network stands behind branches, which a GPU does not take",
                f"{without}, or convert for the CPU: --target cpu",
            )
        mixers = {type(mixer) for layer in spec.layers for mixer in layer.mixers}
        if mixers != {Attention}:
            raise UnsupportedError(
                f"{self.name}: {option}",
                "its layers keep a state that no wrong draft can be taken out of again",
                without,
            )

    def _cache_length(self, family: Family) -> int:
        limit = family.longest_context
        wanted = self.options.cache_length
        # The mask is an input of a GPU's graph, and the engine looks at its length.
        is_seen = self.options.target is Target.GPU
        if wanted is None:
            length = min(DEFAULT_CACHE_LENGTH, limit)
            return length - 1 if is_seen and is_placeholder(length) else length
        if wanted > limit:
            raise OptionError(
                f"--kv-cache-max-len {wanted}",
                f"{self.name} was made for at most {limit} positions",
                f"choose {limit} or less",
            )
        if is_seen and is_placeholder(wanted):
            raise OptionError(
                f"--kv-cache-max-len {wanted}",
                "on a GPU the engine takes a prime number for a placeholder, and shortens it",
                f"choose {wanted - 1}",
            )
        return wanted

    def _fit(
        self,
        network: Network,
        weights: Mapping[str, Weight],
        memory: int,
        drafter: Drafter | None,
    ) -> CacheFit:
        """What the budget of memory makes of the cache's length, which may be the user's.

        Raises:
            OptionError: nothing fits, or the user's length does not.
        """
        family, wanted = network.family, self.options.cache_length
        beside = beside_network(family.vocab_size, family.prefers_sentencepiece)
        beside += 0 if drafter is None else drafter.nbytes

        def needed(length: int) -> int:
            model, _ = self._emit(network, weights, length)
            return summarise(memoryview(model.flatbuffer)).run_memory.total_bytes + beside

        lengths = self._cache_lengths(family)
        if wanted is not None:
            asked = longest_cache([wanted], memory, needed)
            if asked.fits:
                return asked
            lengths = [length for length in lengths if length < wanted] or [wanted]
        fit = longest_cache(lengths, memory, needed)
        if not fit.fits:
            raise OptionError(
                f"--memory {gigabytes(memory)}",
                f"{self.name} takes at least {gigabytes(fit.needed_bytes)}: that is with a KV "
                f"cache of {fit.kv_cache_length}, the engine and the tokenizer",
                f"say --memory {gigabytes(fit.needed_bytes)}, or choose a smaller --quantize",
            )
        if wanted is not None:
            raise OptionError(
                f"--kv-cache-max-len {wanted}",
                f"{self.name} takes {gigabytes(asked.needed_bytes)} with it, engine and tokenizer "
                f"included, and --memory says {gigabytes(memory)}",
                f"choose {fit.kv_cache_length} or less, or --memory "
                f"{gigabytes(asked.needed_bytes)}",
            )
        return fit

    def _cache_lengths(self, family: Family) -> list[int]:
        """What a budget chooses from, ascending: multiples of `STEP`, and the model's own limit."""
        shortest = min(self.options.prefill_lengths or (1,))
        longest = family.longest_context
        if self.options.target is Target.GPU and is_placeholder(longest):
            longest -= 1
        lengths = [n for n in (*range(STEP, longest, STEP), longest) if n >= shortest]
        return lengths or [longest]

    def _cache_type(self) -> CacheType:
        wanted = self.options.kv_cache
        if self.options.target is Target.GPU and wanted not in (None, CacheType.FP32):
            raise OptionError(
                f"--kv-cache {wanted}",
                "a GPU's delegate is known to take caches in fp32 alone",
                self.instead_of_gpu,
            )
        return wanted or CacheType.FP32

    def _prefill_lengths(self, cache_length: int, spec: DecoderSpec) -> tuple[int, ...]:
        wanted = self.options.prefill_lengths
        if wanted is None:
            wanted = ladder_of(spec)
        named = f"--prefill-seq-len {','.join(map(str, wanted))}"
        lengths = tuple(n for n in wanted if n <= cache_length)
        if not lengths:
            raise OptionError(
                named,
                f"every length is beyond the KV cache of {cache_length}",
                "choose a shorter one, or a larger --kv-cache-max-len",
            )
        for length in filter(is_placeholder, lengths):
            raise OptionError(
                named,
                f"the engine takes a prime number above 10, as {length} is, for a placeholder",
                f"choose {length - 1} in its place",
            )
        return lengths

    # Stream ---------------------------------------------------------------------------------------

    def stream(
        self, plan: Plan, file: AtomicFile, progress: Progress, watch: Watch | None = None
    ) -> WeightStream:
        """Read, pack and write every weight; the rest of the plan is made beside it."""
        weights, clip = plan.weights, self.options.clip

        def written(nbytes: int) -> None:
            progress(nbytes)
            if plan.description.is_done():
                plan.description()  # a fault of the template ends the stream here

        stream = WeightStream(
            self.checkpoint, self.name, weights, file, clip, written, watch, plan.passages
        )
        stream.run(plan.spec, self.options.threads, beside=plan.text)
        if plan.drafter is not None:
            self._stream_drafter(plan, plan.drafter, file, progress)
        return stream

    def _stream_drafter(
        self, plan: Plan, drafter: Drafter, file: AtomicFile, progress: Progress
    ) -> None:
        """Write the weights of a trained drafter to their place in its section."""
        text = plan.text()
        assert text.drafter is not None
        kinds = [section.items.get("model_type") for section, _ in text.sections]
        weights = text.drafter.placed(text.bundle.offsets[kinds.index(DRAFTER)])
        # No text calibrates it: what it is wrong about costs time, and nothing else.
        stream = WeightStream(drafter.tensors, drafter.name, weights, file, Clip.MAX, progress)
        stream.run(drafter.assistant.spec, self.options.threads, beside=lambda: None)
        drafter.tensors.check_unchanged()

    # Package --------------------------------------------------------------------------------------

    def package(self, plan: Plan, file: AtomicFile, stream: WeightStream) -> None:
        """Write what is not weights: header, metadata, tokenizer, and graphs with their scales."""
        sections = [section for section, _ in plan.sections]
        # The network begins at a fixed place, so that what was found out fits before it.
        said = lay_out(sections, plan.text().system | self._provenance(plan, stream))
        assert said.offsets == plan.bundle.offsets
        self.write_sections(file, said, plan.sections, [plan.model.flatbuffer])

    def write_sections(
        self,
        file: AtomicFile,
        bundle: BundleLayout,
        sections: Sequence[tuple[Section, bytes | bytearray | None]],
        network: Iterable[bytes | bytearray],
    ) -> None:
        """Write the header and every section; the network comes in pieces, from its beginning."""
        self.checkpoint.check_unchanged()
        file.write_at(0, bundle.header)
        for (_, data), offset in zip(sections, bundle.offsets, strict=True):
            for piece in network if data is None else (data,):
                file.write_at(offset, piece)
                offset += len(piece)

    def _provenance(self, plan: Plan, stream: WeightStream) -> dict[str, str]:
        """What became of each part's matrices, for `inspect`."""
        found: dict[str, dict[str, list[str]]] = {}
        for weight in plan.weights:
            if len(weight.shape) > 1:
                became = f"{weight.stored_as} -> {weight.format.dtype_name}"
                found.setdefault(part_of(weight.path), {}).setdefault(became, []).append(
                    weight.path
                )
        return {
            f"{part} weights": "; ".join(
                f"{became}{_losses(became, [stream.met[p] for p in paths if p in stream.met])}"
                for became, paths in kinds.items()
            )
            for part, kinds in found.items()
        }


@contextmanager
def _without_collector() -> Iterator[None]:
    """For what makes a hundred thousand objects, none of them garbage: looking takes a quarter."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _losses(became: str, met: Sequence[tuple[int, int]]) -> str:
    """Whether numbers that were quantised before were rounded a second time.

    Args:
        met: of each weight that carries blocks, those that went in as they were, and all.
    """
    stored, _, dtype = became.partition(" -> ")
    if dtype == "float32" or (stored, dtype) == ("F16", "float16"):
        return ", as they were"
    if met:
        exact, count = (sum(numbers) for numbers in zip(*met, strict=True))
        if exact == count:
            return ", all blocks as they were"
        return f", {exact / count:.1%} of the blocks as they were, the others rounded again"
    return "" if stored in _FLOATS else ", rounded again"


_FLOATS = ("F64", "F32", "F16", "BF16")
