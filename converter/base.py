"""The whole pipeline, once: read config, validate, plan, emit graph, stream weights, package.

    checkpoint --config--> Family --spec--> graph --layout--> plan
        `------rows, a block at a time---> Format.pack ---> AtomicFile, at the planned offset

The plan fixes every byte's place before the first weight is read. No step holds more than one block
of weights per thread, whatever the size of the model.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converter import background
from converter.bundle import (
    FIRST_SECTION,
    AtomicFile,
    BundleLayout,
    Section,
    executor_metadata,
    lay_out,
    tokenizer_section,
)
from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.decoder import DecoderSpec
from converter.errors import OptionError, SourceError, UnsupportedError
from converter.families.base import Family, WeightSource
from converter.graph.decoder_graph import build_decoder
from converter.graph.kv_cache import CacheShape, Target, cache_shape
from converter.graph.tflite import DType, Weight
from converter.graph.tflite_writer import Layout, write
from converter.importance import integer_product, measure_importance, to_integers
from converter.lora import Update, open_adapter
from converter.metadata import LlmMetadataResult, build_llm_metadata
from converter.quantization import (
    DEFAULT_SCHEME,
    INT8,
    Clip,
    Format,
    Quantization,
    ValueRangeError,
    blocks_met,
    parse_quantization,
    part_of,
)
from converter.registry import family_of
from converter.tokenizer import load_tokenizer
from converter.version import __version__

# The engine takes the longest that fits into what is left of a prompt, again and again, and pads
# the last: with no rung between 8 and 64, 62 tokens were eight calls.
PREFILL_LADDER = (8, 16, 32, 64, 128, 256, 512, 1024)
DEFAULT_CACHE_LENGTH = 1280
# Values per block, measured (benchmarks/README.md): a block of 2^18 would stay in the L2 cache, but
# with so few the threads spend their time handing Python's lock to each other.
BLOCK_VALUES = 1 << 20

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ConvertOptions:
    """What the user may choose.

    Attributes:
        quantize: name of a scheme, and rules for parts (`parse_quantization`).
        clip: how the scales of int4 blocks are chosen.
        prefill_lengths: tokens per prefill signature, ascending.
        cache_length: slots in the KV cache; None for the default, or the model's own limit where
            that is lower.
        target: what the graph is made for.
        lora: folder of a LoRA adapter to merge.
        threads: workers that stream weights; the result does not depend on it.
    """

    quantize: str = DEFAULT_SCHEME
    clip: Clip = Clip.MSE
    prefill_lengths: Sequence[int] = PREFILL_LADDER
    cache_length: int | None = None
    target: Target = Target.CPU
    lora: Path | None = None
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)


@dataclass(frozen=True)
class PlannedWeight:
    """One weight on its way: where it comes from, how it is stored, where its bytes go.

    Attributes:
        offset: bytes from the start of the file.
        scales_offset: the same of its blocks' scales, where it has blocks.
        update: what an adapter adds to it.
    """

    path: str
    source: WeightSource
    shape: tuple[int, ...]
    format: Format
    stored: Weight
    offset: int
    scales_offset: int | None
    update: Update | None = None

    @property
    def nbytes(self) -> int:
        """What is streamed: its data, and the scales of its blocks."""
        return self.stored.nbytes + (self.stored.scales.nbytes if self.stored.scales else 0)


@dataclass(frozen=True)
class Text:
    """What goes into the bundle beside the network.

    Attributes:
        sections: all sections in file order; the network's own content is None.
        system: what the header says about the whole file, before weights were streamed.
    """

    metadata: LlmMetadataResult
    sections: tuple[tuple[Section, bytes | None], ...]
    bundle: BundleLayout
    system: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first weight is read.

    The network lies first in the file, so that its weights have their places while the tokenizer
    and the template are still being proved: `metadata`, `sections` and `bundle` wait for that.

    Attributes:
        text_for: what stands beside a network of so many bytes.
    """

    family: Family
    spec: DecoderSpec
    quantization: Quantization
    cache_length: int
    prefill_lengths: tuple[int, ...]
    weights: tuple[PlannedWeight, ...]
    model: Layout
    text_for: Callable[[int], Text]

    def text(self) -> Text:
        """What stands beside this plan's network; made once."""
        return self.text_for(self.model.nbytes)

    @property
    def metadata(self) -> LlmMetadataResult:
        return self.text().metadata

    @property
    def sections(self) -> tuple[tuple[Section, bytes | None], ...]:
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

    def __init__(self, checkpoint: Checkpoint, name: str, options: ConvertOptions) -> None:
        self.checkpoint = checkpoint
        self.name = name
        self.options = options
        self._floats = ThreadBuffer(np.float32)
        self._packed = ThreadBuffer(np.int8)
        self._met: list[tuple[str, int, int]] = []  # path; blocks met exactly, and all of them
        self._importance: dict[str, np.ndarray] = {}  # of a matrix's columns
        self._measured: set[str] = set()  # paths that were read once before

    def convert(self, output: Path, progress: Progress = lambda _: None) -> Plan:
        """Write `output`; `progress` is told the number of bytes after each block written."""
        plan = self.plan()
        self.write(plan, output, progress)
        return plan

    def write(self, plan: Plan, output: Path, progress: Progress = lambda _: None) -> None:
        """Carry out a plan: the file appears under its name when it is complete."""
        with AtomicFile(output) as file:
            self._importance = self.measure_importance(plan, progress)
            self.stream_weights(plan, file, progress)
            self.package(plan, file)
            file.commit()

    def scratch_bytes(self, plan: Plan) -> int:
        """Of disk that carrying out a plan needs beside its result."""
        return 0

    # Plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Validate, emit the graph and fix the place of every weight."""
        quantization = parse_quantization(self.options.quantize)
        family = family_of(self.checkpoint.config)
        spec = family.spec()
        quantization.check(spec)
        cache_length = self._cache_length(family)
        lengths = self._prefill_lengths(cache_length)
        sources = family.weight_sources(list(self.checkpoint.tensors), self.checkpoint.format)
        shapes = dict(spec.weight_shapes())
        self._check_shapes(shapes, sources)
        updates = {}
        if self.options.lora is not None:
            updates = open_adapter(self.options.lora).updates(family.paths(), shapes)
        target, rings = self.options.target, not family.has_thoughts()
        caches = [
            cache_shape(layer.sliding_window, cache_length, target, rings) for layer in spec.layers
        ]
        describe = background.start(lambda: self._describe(family, spec, cache_length, caches))

        formats = {path: quantization.format_of(path, shape) for path, shape in shapes.items()}
        weights = {path: formats[path].weight(path, shape) for path, shape in shapes.items()}
        model = write(
            build_decoder(spec, lengths, cache_length, weights.__getitem__, caches, target)
        )

        def text_for(network_nbytes: int) -> Text:
            return self._lay_out(network_nbytes, family, quantization, caches, *describe())

        return Plan(
            family=family,
            spec=spec,
            quantization=quantization,
            cache_length=cache_length,
            prefill_lengths=lengths,
            weights=tuple(
                PlannedWeight(
                    path,
                    sources[path],
                    shape,
                    formats[path],
                    weights[path],
                    FIRST_SECTION + model.offsets[path],
                    FIRST_SECTION + model.offsets[scales.name]
                    if (scales := weights[path].scales)
                    else None,
                    updates.get(path),
                )
                for path, shape in shapes.items()
            ),
            model=model,
            text_for=functools.cache(text_for),
        )

    def _describe(
        self, family: Family, spec: DecoderSpec, cache_length: int, caches: Sequence[CacheShape]
    ) -> tuple[LlmMetadataResult, str, bytes]:
        """The metadata, and the kind and the bytes of the tokenizer's section."""
        tokenizer = load_tokenizer(
            self.checkpoint, prefer_sentencepiece=family.prefers_sentencepiece
        )
        if tokenizer.vocab_size > spec.vocab_size:
            raise SourceError(
                f"{self.name}: tokenizer",
                f"has {tokenizer.vocab_size} tokens, the embedding only {spec.vocab_size} rows",
                "use the tokenizer that belongs to this checkpoint",
            )
        metadata = build_llm_metadata(
            family.base_metadata(),
            tokenizer,
            max_num_tokens=cache_length,
            name=family.name,
            generation_config=self.checkpoint.generation_config,
        )
        return metadata, tokenizer.kind, tokenizer_section(tokenizer.kind, tokenizer.data)

    def _lay_out(
        self,
        network_nbytes: int,
        family: Family,
        quantization: Quantization,
        caches: Sequence[CacheShape],
        metadata: LlmMetadataResult,
        tokenizer_kind: str,
        tokenizer: bytes,
    ) -> Text:
        message = metadata.message
        parts: tuple[tuple[str, bytes], ...] = (
            ("LlmMetadataProto", message.SerializeToString(deterministic=True)),
            ("ExecutorMetadataProto", executor_metadata(caches, message.max_num_tokens)),
            (tokenizer_kind, tokenizer),
        )
        network = Section("TFLiteModel", network_nbytes, {"model_type": "tf_lite_prefill_decode"})
        sections = ((network, None), *((Section(k, len(d), {}), d) for k, d in parts))
        system = {
            "producer": self.producer,
            "model": self.name,
            "family": family.name,
            "quantization": quantization.name,
            "target": self.options.target.value,
        }
        return Text(
            metadata, sections, lay_out([section for section, _ in sections], system), system
        )

    def _cache_length(self, family: Family) -> int:
        limit = family.max_position_embeddings
        wanted = self.options.cache_length
        if wanted is None:
            return min(DEFAULT_CACHE_LENGTH, limit)
        if wanted > limit:
            raise OptionError(
                f"--kv-cache-max-len {wanted}",
                f"{self.name} was made for at most {limit} positions",
                f"choose {limit} or less",
            )
        return wanted

    def _prefill_lengths(self, cache_length: int) -> tuple[int, ...]:
        lengths = tuple(n for n in self.options.prefill_lengths if n <= cache_length)
        if not lengths:
            raise OptionError(
                f"--prefill-seq-len {','.join(map(str, self.options.prefill_lengths))}",
                f"every length is beyond the KV cache of {cache_length}",
                "choose a shorter one, or a larger --kv-cache-max-len",
            )
        return lengths

    def _check_shapes(
        self, shapes: dict[str, tuple[int, ...]], sources: dict[str, WeightSource]
    ) -> None:
        wrong = [
            f"{sources[path].tensor} is {list(found)}, config says {list(shape)}"
            for path, shape in shapes.items()
            if (found := self.checkpoint.tensors[sources[path].tensor].shape) != shape
        ]
        if wrong:
            raise SourceError(
                self.name,
                f"{len(wrong)} tensors have the wrong shape: {'; '.join(wrong[:5])}",
                "check that config.json belongs to these weights",
            )

    # Measure --------------------------------------------------------------------------------------

    def measure_importance(
        self, plan: Plan, progress: Progress = lambda _: None
    ) -> dict[str, np.ndarray]:
        """How much the columns of matrices matter, by path; none where no format makes use of it.

        See `converter.importance`. The progress of a weight that is read here is divided between
        this time and the next.
        """
        if self.options.clip is not Clip.MSE or not any(w.format.block for w in plan.weights):
            return {}
        weights = {weight.path: weight for weight in plan.weights}

        def row(path: str, index: int = 0) -> np.ndarray:
            return self._read(weights[path], index, index + 1)[0].copy()

        def rows_of(tokens: np.ndarray) -> np.ndarray:
            return np.stack([row("embedding", token) for token in tokens.tolist()])

        with ThreadPoolExecutor(self.options.threads) as pool:

            def product(path: str, x: np.ndarray) -> np.ndarray:
                weight = weights[path]
                integers, x_scales = to_integers(x)
                result = np.empty((len(x), weight.shape[0]), np.float32)

                def work(start: int, stop: int) -> None:
                    _, packed, scales = self._pack(weight, INT8, start, stop)
                    result[:, start:stop] = integer_product(integers, packed) * x_scales * scales

                for worker in [pool.submit(work, *block) for block in _row_blocks(weight)]:
                    worker.result()
                progress(weight.nbytes // 2)
                self._measured.add(path)
                return result

            return measure_importance(plan.spec, rows_of, row, product)

    # Stream ---------------------------------------------------------------------------------------

    def stream_weights(self, plan: Plan, file: AtomicFile, progress: Progress) -> None:
        """Read, pack and write every weight, block by block, in `threads` workers."""
        blocks = self._blocks(plan)
        lock = threading.Lock()
        failed = threading.Event()

        def work() -> None:
            try:
                while not failed.is_set():
                    with lock:
                        block = next(blocks, None)
                    if block is None:
                        return
                    written = self._stream_block(plan, file, *block)
                    with lock:
                        progress(written)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(self.options.threads) as pool:
            workers = [pool.submit(work) for _ in range(self.options.threads)]
            try:
                plan.text()  # now, as the workers are busy
                for worker in workers:
                    worker.result()
            except BaseException:
                failed.set()  # an interrupt arrives here, not in the workers
                raise

    def _blocks(self, plan: Plan) -> Iterator[tuple[PlannedWeight, int, int]]:
        """(weight, first row, row after the last), over all weights in file order."""
        for weight in plan.weights:
            for start, stop in _row_blocks(weight):
                yield weight, start, stop

    def _stream_block(
        self, plan: Plan, file: AtomicFile, weight: PlannedWeight, start: int, stop: int
    ) -> int:
        rows, packed, scales = self._pack(weight, weight.format, start, stop)
        file.write_at(weight.offset + start * packed[0].nbytes, packed.data)
        written = packed.nbytes
        if scales is not None and weight.scales_offset is None:
            plan.model.scales(weight.path)[start:stop] = scales
        elif scales is not None:
            assert weight.scales_offset is not None
            if self.checkpoint.tensors[weight.source.tensor].dtype in _INT4_BLOCKS:
                self._met.append((weight.path, blocks_met(rows, packed, scales), scales.size))
            file.write_at(weight.scales_offset + start * scales[0].nbytes, scales.data)
            written += scales.nbytes
        return written - written // 2 if weight.path in self._measured else written

    def _pack(
        self, weight: PlannedWeight, form: Format, start: int, stop: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Rows of a weight, as they are read and as they are packed, with their scales."""
        rows = self._read(weight, start, stop, form.takes_bf16)
        try:
            packed, scales = form.pack(
                rows,
                self._packed.of_size(rows.size),
                self.options.clip,
                self._importance.get(weight.path),
            )
        except ValueRangeError as error:
            wider = ", or try --quantize fp32" if form.dtype is DType.FLOAT16 else ""
            raise UnsupportedError(
                f"{self.name}: {weight.source.tensor}",
                f"{error} (rows {start} to {stop - 1})",
                f"the checkpoint is damaged: fetch or make it again{wider}",
            ) from error
        return rows, packed, scales

    def _read(
        self, weight: PlannedWeight, start: int, stop: int, keep_bf16: bool = False
    ) -> np.ndarray:
        """Rows of a weight as the network has it, valid until the thread's next call."""
        source = weight.source
        columns = weight.shape[-1]
        count = columns if len(weight.shape) == 1 else (stop - start) * columns
        rows = self.checkpoint.read_rows(
            source.tensor,
            start,
            stop,
            buffer=self._floats.of_size(count),
            keep_bf16=keep_bf16 and not source.add and weight.update is None,
        )
        if source.add:
            rows += np.float32(source.add)
        if source.interleaved_head_dim:
            rows = halves_from_pairs(rows, source.interleaved_head_dim)
        if weight.update is not None:
            weight.update.add_to(rows, start)
        return rows

    # Package --------------------------------------------------------------------------------------

    def package(self, plan: Plan, file: AtomicFile) -> None:
        """Write what is not weights: header, metadata, tokenizer, and the graph with its scales."""
        sections = [section for section, _ in plan.sections]
        # The network begins at a fixed place, so that what was found out fits before it.
        said = lay_out(sections, plan.text().system | self._provenance(plan))
        assert said.offsets == plan.bundle.offsets
        self.write_sections(file, said, plan.sections, [plan.model.flatbuffer])

    def write_sections(
        self,
        file: AtomicFile,
        bundle: BundleLayout,
        sections: Sequence[tuple[Section, bytes | None]],
        network: Iterable[bytes | bytearray],
    ) -> None:
        """Write the header and every section; the network comes in pieces, from its beginning."""
        self.checkpoint.check_unchanged()
        file.write_at(0, bundle.header)
        for (_, data), offset in zip(sections, bundle.offsets, strict=True):
            for piece in network if data is None else (data,):
                file.write_at(offset, piece)
                offset += len(piece)

    def _provenance(self, plan: Plan) -> dict[str, str]:
        """What became of each part's matrices, for `inspect`."""
        found: dict[str, dict[str, list[str]]] = {}
        for weight in plan.weights:
            if len(weight.shape) > 1:
                stored = self.checkpoint.tensors[weight.source.tensor].dtype
                became = f"{stored} -> {weight.format.dtype.name.lower()}"
                found.setdefault(part_of(weight.path), {}).setdefault(became, []).append(
                    weight.path
                )
        return {
            f"{part} weights": "; ".join(
                f"{became}{self._losses(became, set(paths))}" for became, paths in kinds.items()
            )
            for part, kinds in found.items()
        }

    def _losses(self, became: str, paths: set[str]) -> str:
        """Whether numbers that were quantised before were rounded a second time."""
        stored, _, dtype = became.partition(" -> ")
        if dtype == "float32" or (stored, dtype) == ("F16", "float16"):
            return ", as they were"
        met = [counts for path, *counts in self._met if path in paths]
        if met:
            share = sum(exact for exact, _ in met) / sum(count for _, count in met)
            return f", {share:.1%} of the blocks as they were, the others rounded again"
        return "" if stored in _FLOATS else ", rounded again"


# Stored types whose blocks of int4 with a float16 scale may go in without a second rounding.
_INT4_BLOCKS = ("Q4_0",)
_FLOATS = ("F32", "F16", "BF16")


def _row_blocks(weight: PlannedWeight) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of pieces that are worked on at once: whole heads."""
    rows, columns = _as_matrix(weight.shape)
    step = max(1, BLOCK_VALUES // columns)
    if weight.source.interleaved_head_dim:
        head_dim = weight.source.interleaved_head_dim
        step = -(-step // head_dim) * head_dim
    if len(weight.shape) == 1:
        step = rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a weight; a vector is one row to a checkpoint."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def halves_from_pairs(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Per head, rows (0, d/2), (1, d/2 + 1), ... back to 0..d/2, d/2..d; (heads * d, columns)."""
    if rows.shape[0] == 1:  # a bias: its values are the rows
        return halves_from_pairs(rows.reshape(-1, 1), head_dim).reshape(1, -1)
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)
