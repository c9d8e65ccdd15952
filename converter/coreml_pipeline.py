"""The pipeline of the second target: a checkpoint in, a folder of Core ML packages out.

    checkpoint --config--> Family --spec--> functions --records--> plan
        `------rows, a block at a time---> WeightStream ---> AtomicFolder, at the planned offsets

As for the first target (`converter.base`), the plan fixes every byte's place before the first
weight is streamed. Functions of a part share its records: a weight is stored once.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.papers import read_papers
from converter.coreml.blob import BlobLayout, DType, Record, indices
from converter.coreml.chunks import layer_bytes, settle_chunks, settle_head
from converter.coreml.decoder_program import (
    Interface,
    WeightOf,
    calls,
    embeddings,
    head,
    layers,
    monolithic,
    rope_tables,
    states_of,
)
from converter.coreml.limits import (
    check_batch,
    check_context,
    check_groups,
    check_package,
    check_prefix,
    check_states,
    notes,
)
from converter.coreml.meta import (
    COMPILE,
    CONFIG,
    META,
    Description,
    Names,
    compile_sh,
    config_json,
    default_prefix,
    meta_yaml,
    user_metadata,
    usual_head_parts,
)
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS, manifest, model_message
from converter.coreml.program import Function, Tensor
from converter.coreml.words import check_words
from converter.coreml_options import AUTO_SCALE, CoreMLOptions
from converter.decoder import Attention, DecoderSpec
from converter.errors import UnsupportedError
from converter.families.base import Family
from converter.litertlm.sampling import checked_sampling
from converter.network import Network, check_vocabulary, read_network
from converter.output.atomic_file import Seal
from converter.output.atomic_folder import AtomicFolder
from converter.preflight import Verdict, fp16_scale_for, preflight
from converter.registry import text_model_type
from converter.text import background
from converter.text.tokenizer import load_tokenizer
from converter.text.tokenizer_files import class_of, tokenizer_files
from converter.weights.palettes import Palette
from converter.weights.quantization import FLOAT16
from converter.weights.row_format import Clip, RowFormat
from converter.weights.stream import PlannedWeight, Progress, WeightStream

# Matrices of fewer values stay float16: their tables would be as large.
_LEAST_PALETTIZED = 2048
_PIECE = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class Part:
    """A package: its functions, and where its weights lie.

    Attributes:
        kind: `embeddings`, `layers`, `head` or `monolithic`.
        name: the package's, without its ending.
        start: where its weight file begins among those of all parts, one after the other.
        constants: what is known already, by its place in the weight file.
    """

    kind: str
    name: str
    functions: tuple[Function, ...]
    layout: BlobLayout
    start: int
    constants: tuple[tuple[int, bytes], ...]
    message: bytes

    @property
    def folder(self) -> str:
        return f"{self.name}.mlpackage"

    @cached_property
    def nbytes(self) -> int:
        """Of all its files."""
        return self.layout.nbytes + len(self.message) + len(manifest(self.message))


@dataclass(frozen=True)
class _Draft:
    """A part before its weights have their places.

    Attributes:
        make: its functions, the default first.
        chunk: which of the layers, counted from 1; 0 where it is none of these.
        shapes, described: see `model_message`.
    """

    kind: str
    name: str
    make: tuple[Callable[[WeightOf], Function], ...]
    chunk: int = 0
    metadata: Callable[[Sequence[str], int], Mapping[str, str]] = lambda _names, _chunk: {}
    shapes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    described: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layout:
    """How a network is spread over packages."""

    network: Network
    spec: DecoderSpec
    interface: Interface
    options: CoreMLOptions

    @cached_property
    def tables(self) -> dict[str, bytes]:
        """Cosines and sines, by the paths that functions ask for."""
        return {
            f"rope.{i}.{kind}": table.tobytes()
            for i, pair in enumerate(rope_tables(self.spec, self.interface.context).values())
            for kind, table in zip(("cos", "sin"), pair, strict=True)
        }

    def palette_of(self, path: str) -> Palette | None:
        """How a matrix is stored; None for float16."""
        of_parts = {"embedding": self.options.lut_embeddings, "head": self.options.lut_head}
        return of_parts.get(path.partition("[")[0], self.options.lut_layers)

    def drafts(self, described: Description, chunks: Sequence[range]) -> Iterator[_Draft]:
        """Every part, in the order in which a token goes through them."""
        spec, interface, names = self.spec, self.interface, described.names
        metadata = partial(user_metadata, described)
        if not chunks:
            make = tuple(partial(monolithic, spec, interface, call) for call in calls(interface))
            yield _Draft("monolithic", names.monolithic, make, metadata=metadata)
            return
        yield _Draft(
            "embeddings",
            names.embeddings,
            (partial(embeddings, spec, interface),),
            metadata=metadata,
            shapes={"input_ids": [(1, 1), (1, interface.batch)]},
            described={"hidden_states": ()},
        )
        for i, which in enumerate(chunks):
            yield _Draft("layers", names.chunk(i), self.of_layers(which), i + 1, metadata)
        yield _Draft("head", names.head, (partial(head, spec, interface),), metadata=metadata)

    def of_layers(self, which: range) -> tuple[Callable[[WeightOf], Function], ...]:
        """The functions of some layers."""
        spec, interface = self.spec, self.interface
        return tuple(
            partial(layers, spec, interface, call, which=which) for call in calls(interface)
        )

    def chunk_nbytes(self, which: range) -> int:
        """Of a package with these layers."""
        part, _ = self.place(_Draft("layers", "", self.of_layers(which)), 0)
        return part.nbytes

    def place(self, draft: _Draft, start: int) -> tuple[Part, list[PlannedWeight]]:
        """Give every weight its place, in a weight file that begins at `start` among all."""
        weights = _Weights(
            self.network,
            self.spec,
            start,
            self.palette_of,
            self.interface.residual_scale,
            self.tables,
        )
        functions = tuple(make(weights) for make in draft.make)
        metadata = draft.metadata([function.name for function in functions], draft.chunk)
        message = model_message(functions, metadata, draft.shapes, draft.described)
        constants = tuple(weights.constants)
        part = Part(draft.kind, draft.name, functions, weights.layout, start, constants, message)
        return part, weights.planned


def _is_palettized(shape: Sequence[int]) -> bool:
    return len(shape) > 1 and math.prod(shape) > _LEAST_PALETTIZED


@dataclass
class _Weights:
    """The weights of one part, each given its place when a function first asks for it."""

    network: Network
    spec: DecoderSpec
    start: int
    palette_of: Callable[[str], Palette | None]
    scale: float
    constants_of: Mapping[str, bytes]
    layout: BlobLayout = field(default_factory=BlobLayout)
    planned: list[PlannedWeight] = field(default_factory=list)
    constants: list[tuple[int, bytes]] = field(default_factory=list)
    _made: dict[str, tuple[Record, Record | None]] = field(default_factory=dict)

    def __call__(self, function: Function, path: str, shape: tuple[int, ...]) -> Tensor:
        if path not in self._made:
            self._made[path] = self._add(path, shape)
        record, tables = self._made[path]
        if tables is None:
            return function.weight(path, record)
        return function.palettized_weight(path, record, tables)

    def _add(self, path: str, shape: tuple[int, ...]) -> tuple[Record, Record | None]:
        if path in self.constants_of:
            record = self.layout.add(DType.FLOAT16, shape)
            self.constants.append((record.data_offset, self.constants_of[path]))
            return record, None
        whole, first_row, matrix = path, 0, shape
        if match := _PIECE.fullmatch(path):
            whole, first_row = match[1], int(match[2])
        if len(shape) > 1:
            matrix = (shape[0], math.prod(shape[1:]))
        palette = self.palette_of(path)
        form: RowFormat = FLOAT16
        tables = None
        if palette is None or not _is_palettized(shape):
            record = self.layout.add(DType.FLOAT16, shape)
        else:
            form = palette
            groups, entries = palette.tables_shape(path, shape[0])
            record = self.layout.add(indices(palette.bits), shape)
            ones = (1,) * (len(shape) - 1)
            tables = self.layout.add(DType.FLOAT16, (groups, *ones, entries, 1))
        self._plan(whole, first_row, matrix, form, record, tables)
        return record, tables

    def _plan(
        self,
        path: str,
        first_row: int,
        shape: tuple[int, ...],
        form: RowFormat,
        record: Record,
        tables: Record | None,
    ) -> None:
        # A tied head has its own copy, in its own format.
        stored = "embedding" if path == "head" and self.spec.tied_head else path
        source = self.network.sources[stored]
        self.planned.append(
            PlannedWeight(
                path,
                dataclasses.replace(source, first_row=source.first_row + first_row),
                *self.network.stored_as(stored),
                shape,
                form,
                record.nbytes + (tables.nbytes if tables else 0),
                self.start + record.data_offset,
                self.start + tables.data_offset if tables else None,
                tables.nbytes if tables else 0,
                updates=self.network.updates.get(stored, ()),
                factor=self.scale if _is_added(path, self.spec) else 1.0,
                first_row=first_row,
            )
        )


def _is_added(path: str, spec: DecoderSpec) -> bool:
    """Whether a weight makes what is added to the residual stream, and is scaled with it."""
    block, _, name = path.rpartition(".")
    if spec.placement.has_post_norms:
        return name == "post_norm" or block.endswith(".post_norm")
    is_bias = name == "bias"
    return (block.rpartition(".")[2] if is_bias else name) in ("o", "down")


class WeightFiles:
    """The weight files of all parts as one, one after the other."""

    def __init__(self, folder: AtomicFolder, parts: Sequence[Part]) -> None:
        self._folder = folder
        self._starts = [part.start for part in parts]
        self._names = [f"{part.folder}/{WEIGHTS}" for part in parts]

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write what lies in one of the files."""
        name, start = self._at(offset)
        self._folder.write_at(name, offset - start, data)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """What was written there."""
        name, start = self._at(offset)
        return self._folder.read_at(name, offset - start, nbytes)

    def _at(self, offset: int) -> tuple[str, int]:
        i = bisect.bisect_right(self._starts, offset) - 1
        return self._names[i], self._starts[i]


@dataclass(frozen=True)
class CoreMLPlan:
    """Everything that is known before the first weight is streamed.

    Attributes:
        described: names of the packages, and what runtimes are told.
        scale: what the residual stream is multiplied with, so that float16 can carry it.
        found: what a user should know about the weights, by what it concerns.
        notes: what is taken, and may be slow or surprise.
        texts: files beside the packages, by name; waits for their proof.
    """

    family: Family
    spec: DecoderSpec
    described: Description
    scale: float
    parts: tuple[Part, ...]
    weights: tuple[PlannedWeight, ...]
    found: Mapping[str, str]
    notes: tuple[str, ...]
    texts: background.Work[Mapping[str, bytes]]

    @property
    def interface(self) -> Interface:
        """What all functions have in common."""
        return self.described.interface

    @property
    def weights_nbytes(self) -> int:
        """What is streamed."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def packages_nbytes(self) -> int:
        """Of all packages."""
        return sum(part.nbytes for part in self.parts)


class CoreMLConverter:
    """Converts one checkpoint to packages.

    Raises (from `plan` and `convert`):
        OptionError, SourceError, UnsupportedError, OutputError: see `converter.errors`.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, options: CoreMLOptions) -> None:
        self.checkpoint = checkpoint
        self.name = name
        self.options = options

    @cached_property
    def network(self) -> Network:
        """What is converted."""
        return read_network(self.checkpoint, self.name, self.options.lora)

    @cached_property
    def spec(self) -> DecoderSpec:
        """The network in the context that was chosen, which runtimes and this target can take."""
        context = self.options.context
        check_context(context, self.network.family.longest_context, self.name)
        check_batch(self.options.batch, context)
        spec = self.network.spec(context)
        check_words(spec, context)
        return spec

    @cached_property
    def model_type(self) -> str:
        """As transformers calls the decoder."""
        return text_model_type(self.checkpoint.config, self.checkpoint.format)

    def convert(self, output: Path, progress: Progress = lambda _: None) -> CoreMLPlan:
        """Write the folder `output`; `progress` is told the bytes of each block written."""
        plan = self.plan(self.measured_scale())
        self.write(plan, output, progress)
        return plan

    def measured_scale(self) -> float:
        """What `--fp16-scale` comes to; where it is `auto`, all weights are read for it.

        Raises:
            UnsupportedError: float16 cannot carry the network under any scale.
        """
        if self.options.fp16_scale != AUTO_SCALE:
            return self.options.fp16_scale or 1.0
        report = preflight(self.network, self.spec, self.options.threads)
        if report.verdict is Verdict.TOO_LARGE:
            raise UnsupportedError(
                self.name,
                f"float16 cannot carry it: {report.reason}, which no scale makes smaller",
                "convert it for LiteRT-LM: --target cpu",
            )
        return fp16_scale_for(report) or 1.0

    # Plan -----------------------------------------------------------------------------------------

    def plan(self, scale: float = 1.0) -> CoreMLPlan:
        """Validate, make all functions and fix the place of every weight."""
        network, spec, options = self.network, self.spec, self.options
        check_words(spec, options.context, scale)
        interface = self._interface(scale)
        self._check_groups(network.shapes)
        layout = _Layout(network, spec, interface, options)
        chunks = () if options.monolithic else self._chunks(layout)
        described = self._describe(interface, len(chunks))
        texts = background.start(
            partial(self._texts, described), f"{self.name}: tokenizer and chat template"
        )
        parts: list[Part] = []
        planned: list[PlannedWeight] = []
        for draft in layout.drafts(described, chunks):
            start = parts[-1].start + parts[-1].layout.nbytes if parts else 0
            part, weights = layout.place(draft, start)
            parts.append(part)
            planned += weights
        if options.monolithic and options.max_chunk_mb is not None:
            check_package(described.names.monolithic, parts[0].nbytes, options.max_chunk_mb)
        return CoreMLPlan(
            family=network.family,
            spec=spec,
            described=described,
            scale=scale,
            parts=tuple(parts),
            weights=tuple(planned),
            found=network.found,
            notes=tuple(self._notes(parts)),
            texts=texts,
        )

    def _interface(self, scale: float) -> Interface:
        options, spec = self.options, self.spec
        states = states_of(spec, options.context)
        check_states(states, options.batch, self.name)
        lut = options.lut_head
        parts = settle_head(
            spec.vocab_size,
            usual_head_parts(self.model_type),
            None if lut is None else lut.group,
            options.argmax,
            f"--lut3 {lut.bits},{lut.group}" if lut else "--lut3 none",
        )
        return Interface(options.context, options.batch, states, parts, options.argmax, scale)

    def _check_groups(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse groups that do not divide matrices; the head's are settled with its parts."""
        rows = {path: shape[0] for path, shape in shapes.items() if _is_palettized(shape)}
        for flag, lut, prefix in (
            ("--lut1", self.options.lut_embeddings, "embedding"),
            ("--lut2", self.options.lut_layers, "layers."),
        ):
            if lut is not None:
                of_part = {path: n for path, n in rows.items() if path.startswith(prefix)}
                check_groups(f"{flag} {lut.bits},{lut.group}", lut.group, of_part)

    def _chunks(self, layout: _Layout) -> Sequence[range]:
        options = self.options
        lut = options.lut_layers
        return settle_chunks(
            options.chunks,
            layer_bytes(self.spec),
            16 if lut is None else lut.bits,
            options.max_chunk_mb,
            layout.chunk_nbytes,
        )

    def _describe(self, interface: Interface, chunks: int) -> Description:
        options = self.options
        prefix = options.prefix or default_prefix(self.model_type)
        check_prefix(prefix)
        papers = read_papers(self.checkpoint.files, self.checkpoint.format != "gguf")
        luts = (options.lut_embeddings, options.lut_layers, options.lut_head)
        return Description(
            model=self.name,
            model_type=self.model_type,
            names=Names(prefix, *luts, chunks),
            interface=interface,
            license=", ".join(papers.license) or None,
            has_windows=any(
                isinstance(layer.mixer, Attention) and layer.mixer.sliding_window
                for layer in self.spec.layers
            ),
            sampling=checked_sampling(self.checkpoint.generation_config, self.name),
        )

    def _texts(self, described: Description) -> Mapping[str, bytes]:
        """The files beside the packages."""
        chosen = self.options.chat_template
        template = None if chosen is None else chosen.text
        tokenizer = load_tokenizer(
            self.checkpoint,
            prefer_sentencepiece=self.network.family.prefers_sentencepiece,
            chat_template=template,
        )
        check_vocabulary(tokenizer, self.spec, self.name)
        files = tokenizer_files(self.checkpoint, tokenizer, template)
        return {
            **files,
            META: meta_yaml(described),
            CONFIG: config_json(
                described.model_type,
                class_of(files),
                tokenizer.eos_token_ids,
                tokenizer.bos_token_id,
                None,
            ),
            COMPILE: compile_sh(described.names),
        }

    def _notes(self, parts: Sequence[Part]) -> list[str]:
        options = self.options
        largest = max(part.nbytes for part in parts if part.kind in ("layers", "monolithic"))
        luts = (options.lut_embeddings, options.lut_layers, options.lut_head)
        groups = {f"--lut{i}": lut.group for i, lut in enumerate(luts, 1) if lut}
        return notes(
            self.spec,
            options.context,
            options.batch,
            groups,
            largest,
            options.argmax,
            options.split_rotate,
        )

    # Stream ---------------------------------------------------------------------------------------

    def write(
        self,
        plan: CoreMLPlan,
        output: Path,
        progress: Progress = lambda _: None,
        seal: Seal | None = None,
    ) -> None:
        """Carry out a plan: the folder appears under its name when it is complete.

        Args:
            seal: see `converter.output.atomic_file`.
        """
        if plan.texts.is_done():
            plan.texts()  # a fault of the template shows before the weights
        with AtomicFolder(output, is_package_folder) as folder:
            for part in plan.parts:
                folder.write(f"{part.folder}/{MODEL}", part.message)
                folder.write(f"{part.folder}/{MANIFEST}", manifest(part.message))
                weights = f"{part.folder}/{WEIGHTS}"
                folder.create(weights, part.layout.nbytes)
                for offset, content in (*part.layout.heads(), *part.constants):
                    folder.write_at(weights, offset, content)
            self._stream(plan, WeightFiles(folder, plan.parts), progress)
            self.checkpoint.check_unchanged()
            for name, content in plan.texts().items():
                folder.write(name, content, is_program=name.endswith(".sh"))
            folder.commit(seal)

    def _stream(self, plan: CoreMLPlan, files: WeightFiles, progress: Progress) -> None:
        """Read, pack and write every weight; the texts are proved beside it."""

        def written(nbytes: int) -> None:
            progress(nbytes)
            if plan.texts.is_done():
                plan.texts()  # a fault of the template ends the stream here

        stream = WeightStream(self.checkpoint, self.name, plan.weights, files, Clip.MSE, written)
        # The stored weights are scaled; a tied head is stored apart.
        scaled = (plan.spec.embedding_scale or 1.0) * plan.scale
        spec = dataclasses.replace(plan.spec, tied_head=False, embedding_scale=scaled)
        stream.run(spec, self.options.threads, beside=plan.texts)


def is_package_folder(folder: Path) -> bool:
    """Whether a folder holds packages that were written here."""
    return (folder / META).is_file()
