"""How a network is spread over packages: every weight's place in the weight file of its part."""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from converter.coreml.blob import BlobLayout, DType, Record, indices
from converter.coreml.decoder_program import (
    Interface,
    WeightOf,
    calls,
    embeddings,
    head,
    layers,
    monolithic,
    rope_tables,
)
from converter.coreml.meta import Description, user_metadata
from converter.coreml.package import WEIGHTS, manifest, model_message
from converter.coreml.program import Function, Tensor
from converter.coreml_options import CoreMLOptions
from converter.decoder import DecoderSpec
from converter.network import Network
from converter.output.atomic_folder import AtomicFolder
from converter.weights.palettes import Palette
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import FLOAT16
from converter.weights.row_format import RowFormat

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
class Draft:
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
class PackageLayout:
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

    def drafts(self, described: Description, chunks: Sequence[range]) -> Iterator[Draft]:
        """Every part, in the order in which a token goes through them."""
        spec, interface, names = self.spec, self.interface, described.names
        of_layers = partial(user_metadata, described, names.layers_lut)
        if not chunks:
            make = tuple(partial(monolithic, spec, interface, call) for call in calls(interface))
            yield Draft("monolithic", names.monolithic, make, metadata=of_layers)
            return
        yield Draft(
            "embeddings",
            names.embeddings,
            (partial(embeddings, spec, interface),),
            metadata=partial(user_metadata, described, names.embeddings_lut),
            shapes={"input_ids": [(1, 1), (1, interface.batch)]},
            described={"hidden_states": ()},
        )
        for i, which in enumerate(chunks):
            yield Draft("layers", names.chunk(i), self.of_layers(which), i + 1, of_layers)
        of_head = partial(user_metadata, described, names.head_lut)
        yield Draft("head", names.head, (partial(head, spec, interface),), metadata=of_head)

    def of_layers(self, which: range) -> tuple[Callable[[WeightOf], Function], ...]:
        """The functions of some layers."""
        spec, interface = self.spec, self.interface
        return tuple(
            partial(layers, spec, interface, call, which=which) for call in calls(interface)
        )

    def chunk_nbytes(self, which: range) -> int:
        """Of a package with these layers."""
        part, _ = self.place(Draft("layers", "", self.of_layers(which)), 0)
        return part.nbytes

    def place(self, draft: Draft, start: int) -> tuple[Part, list[PlannedWeight]]:
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


def is_palettized(shape: Sequence[int]) -> bool:
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
        if palette is None or not is_palettized(shape):
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
