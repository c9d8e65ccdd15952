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
from converter.coreml.blob import BlobLayout, DType, Record, indices
from converter.coreml.decoder_program import (
    Interface,
    WeightOf,
    calls,
    embeddings,
    head,
    head_parts,
    layers,
    monolithic,
    rope_tables,
    states_of,
)
from converter.coreml.decoder_program import chunks as chunks_of
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS, manifest, model_message
from converter.coreml.program import Function, Tensor
from converter.coreml.words import check_words
from converter.coreml_options import AUTO_SCALE, CoreMLOptions
from converter.decoder import DecoderSpec
from converter.errors import OptionError
from converter.families.base import Family
from converter.network import Network, read_network
from converter.output.atomic_file import Seal
from converter.output.atomic_folder import AtomicFolder
from converter.text import background
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
        palette: how its matrices are stored; None for float16. Of one with everything, those of
            `embedding` and `head` are others.
        make: its functions, the default first.
        shapes, described: see `model_message`.
    """

    kind: str
    name: str
    palette_of: Callable[[str], Palette | None]
    make: tuple[Callable[[WeightOf], Function], ...]
    shapes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    described: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def place(
        self,
        network: Network,
        spec: DecoderSpec,
        scale: float,
        tables: Mapping[str, bytes],
        start: int,
    ) -> tuple[Part, list[PlannedWeight]]:
        """Give every weight its place, in a file that begins at `start`."""
        weights = _Weights(network, spec, start, self.palette_of, scale, tables)
        functions = tuple(make(weights) for make in self.make)
        message = model_message(functions, {}, self.shapes, self.described)
        constants = tuple(weights.constants)
        part = Part(self.kind, self.name, functions, weights.layout, start, constants, message)
        return part, weights.planned


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
        if palette is None or len(shape) == 1 or math.prod(shape) <= _LEAST_PALETTIZED:
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
        scale: what the residual stream is multiplied with, so that float16 can carry it.
        found: what a user should know about the weights, by what it concerns.
        texts: files beside the packages, by name; waits for their proof.
    """

    family: Family
    spec: DecoderSpec
    interface: Interface
    prefix: str
    scale: float
    parts: tuple[Part, ...]
    weights: tuple[PlannedWeight, ...]
    found: Mapping[str, str]
    texts: background.Work[Mapping[str, bytes]]

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
        """The network in the context that was chosen."""
        limit = self.network.family.longest_context
        if self.options.context > limit:
            raise OptionError(
                f"--context {self.options.context}",
                f"{self.name} was made for at most {limit} positions",
                f"choose {limit} or less",
            )
        return self.network.spec(self.options.context)

    def convert(self, output: Path, progress: Progress = lambda _: None) -> CoreMLPlan:
        """Write the folder `output`; `progress` is told the bytes of each block written."""
        plan = self.plan(self.measured_scale())
        self.write(plan, output, progress)
        return plan

    def measured_scale(self) -> float:
        """What `--fp16-scale` comes to; where it is `auto`, all weights are read for it."""
        if self.options.fp16_scale != AUTO_SCALE:
            return self.options.fp16_scale or 1.0
        raise NotImplementedError

    # Plan -----------------------------------------------------------------------------------------

    def plan(self, scale: float = 1.0) -> CoreMLPlan:
        """Validate, make all functions and fix the place of every weight."""
        network, spec = self.network, self.spec
        network.shapes  # noqa: B018 - the tensors have these
        check_words(spec, self.options.context, scale)
        interface = self._interface(scale)
        texts = background.start(lambda: self._texts(), f"{self.name}: tokenizer and chat template")
        tables = {
            f"rope.{i}.{kind}": table.tobytes()
            for i, pair in enumerate(rope_tables(spec, interface.context).values())
            for kind, table in zip(("cos", "sin"), pair, strict=True)
        }
        parts: list[Part] = []
        planned: list[PlannedWeight] = []
        start = 0
        for draft in self._drafts(interface):
            part, weights = draft.place(network, spec, scale, tables, start)
            parts.append(part)
            planned += weights
            start += part.layout.nbytes
        return CoreMLPlan(
            family=network.family,
            spec=spec,
            interface=interface,
            prefix=self.prefix,
            scale=scale,
            parts=tuple(parts),
            weights=tuple(planned),
            found=network.found,
            texts=texts,
        )

    @cached_property
    def prefix(self) -> str:
        """What names of files begin with."""
        return self.options.prefix or "qwen"

    def _interface(self, scale: float) -> Interface:
        options, spec = self.options, self.spec
        return Interface(
            options.context,
            options.batch,
            states_of(spec, options.context),
            head_parts(spec.vocab_size, 16),
            options.argmax,
            scale,
        )

    def _texts(self) -> Mapping[str, bytes]:
        return {}

    def _drafts(self, interface: Interface) -> Iterator[_Draft]:
        spec, options = self.spec, self.options
        of_layers = calls(interface)
        palettes = {"embedding": options.lut_embeddings, "head": options.lut_head}

        def palette_of(path: str) -> Palette | None:
            return palettes.get(path.partition("[")[0], options.lut_layers)

        if options.monolithic:
            yield _Draft(
                "monolithic",
                f"{self.prefix}_monolithic_full",
                palette_of,
                tuple(partial(monolithic, spec, interface, call) for call in of_layers),
            )
            return
        yield _Draft(
            "embeddings",
            f"{self.prefix}_embeddings",
            palette_of,
            (partial(embeddings, spec, interface),),
            {"input_ids": [(1, 1), (1, interface.batch)]},
            {"hidden_states": ()},
        )
        count = options.chunks or 2
        for i, which in enumerate(chunks_of(len(spec.layers), count)):
            yield _Draft(
                "layers",
                f"{self.prefix}_FFN_PF_chunk_{i + 1:02}of{count:02}",
                palette_of,
                tuple(partial(layers, spec, interface, call, which=which) for call in of_layers),
            )
        yield _Draft(
            "head", f"{self.prefix}_lm_head", palette_of, (partial(head, spec, interface),)
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
    return (folder / "meta.yaml").is_file()
