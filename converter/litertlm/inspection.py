"""Reads `.litertlm` files, ours or anybody's: sections, metadata, signatures.

The file is hostile input: whatever is wrong with it ends in a `SourceError`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from converter.litertlm.model_types import DRAFTER
from converter.litertlm.run_memory import BITS, RunMemory, run_memory

_MAX_HEADER = 1 << 24
_MIN_WEIGHT = 64  # bytes; smaller constants are shapes and axes
_NO_NETWORK = RunMemory(0, 0, 0, 0)


@dataclass(frozen=True)
class SectionInfo:
    """One section: its type, place and size in bytes, and its key-value pairs."""

    kind: str
    offset: int
    nbytes: int
    items: dict[str, Any]


@dataclass(frozen=True)
class TensorSummary:
    """A signature's input or output."""

    name: str
    shape: list[int]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True)
class SignatureSummary:
    """A signature of the TFLite model."""

    name: str
    inputs: list[TensorSummary]
    outputs: list[TensorSummary]

    @property
    def states(self) -> list[TensorSummary]:
        """What goes in and comes out again under the same name."""
        out = {tensor.name for tensor in self.outputs}
        return [tensor for tensor in self.inputs if tensor.name in out]


@dataclass(frozen=True)
class ModelSummary:
    """The TFLite model: its signatures, the bytes of its weights by element type, and what it needs
    when it runs.
    """

    signatures: list[SignatureSummary] = field(default_factory=list)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    run_memory: RunMemory = _NO_NETWORK


@dataclass(frozen=True)
class Bundle:
    """A parsed `.litertlm` file."""

    path: Path
    nbytes: int
    version: str
    system: dict[str, Any]
    sections: list[SectionInfo]

    def section(self, kind: str) -> SectionInfo | None:
        """The first section of a type, or None."""
        return next((section for section in self.sections if section.kind == kind), None)

    @property
    def drafts(self) -> int:
        """How many tokens are drafted at once where an app asks for it, by any kind of drafter; 0
        where the file has none.

        Raises:
            SourceError: its model cannot be parsed.
        """
        if not any(section.items.get("model_type") == DRAFTER for section in self.sections):
            return 0
        inputs = self.signature("verify").inputs
        rows = (one.shape[0] for one in inputs if one.name == "input_pos" and one.shape)
        return next(rows, 1) - 1

    @cached_property
    def metadata(self) -> Any:
        """The LlmMetadata message; an empty one where the file has none.

        Raises:
            SourceError: it cannot be parsed.
        """
        from google.protobuf.message import DecodeError

        from converter.litertlm.schemas import llm_metadata_pb2

        message = llm_metadata_pb2.LlmMetadata()
        section = self.section("LlmMetadataProto")
        if section is not None:
            with self.path.open("rb") as file:
                file.seek(section.offset)
                data = file.read(section.nbytes)
            try:
                message.ParseFromString(data)
            except DecodeError as error:
                raise _damaged(self.path, "its LlmMetadata cannot be parsed") from error
        return message

    @cached_property
    def model(self) -> ModelSummary:
        """What the `prefill_decode` model offers.

        Raises:
            SourceError: it cannot be parsed.
        """
        with self._network() as network:
            return ModelSummary() if network is None else summarise(network)

    @cached_property
    def decode(self) -> SignatureSummary:
        """The signature for one token; raises as `signature` does."""
        return self.signature("decode")

    def signature(self, name: str) -> SignatureSummary:
        """One signature, without parsing the rest as `model` does, which takes half a second; an
        empty one where there is none.

        Raises:
            SourceError: the model cannot be parsed.
        """
        with self._network() as network:
            found = () if network is None else _signatures(_root(network), name)
            return next(iter(found), SignatureSummary(name, [], []))

    @contextmanager
    def _network(self) -> Iterator[memoryview | None]:
        """The bytes of the `prefill_decode` model; None where there is none."""
        section = self.section("TFLiteModel")
        if section is None:
            yield None
            return
        with (
            _refusing(self.path, "its TFLite model cannot be parsed"),
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
            view[section.offset : section.offset + section.nbytes] as network,
        ):
            yield network


def read_bundle(path: Path) -> Bundle:
    """Parse the header of a `.litertlm` file.

    Raises:
        SourceError: no such file, not a `.litertlm` file, or a damaged one.
    """
    from converter.litertlm.schemas import HEADER_BEGIN, HEADER_END_AT, MAGIC, VERSION_AT

    try:
        nbytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BEGIN)
            if len(head) < HEADER_BEGIN or not head.startswith(MAGIC):
                raise SourceError(
                    str(path), "not a .litertlm file", "convert a model with litert-lm-cli convert"
                )
            (end,) = struct.unpack_from("<Q", head, HEADER_END_AT)
            if not HEADER_BEGIN < end <= min(nbytes, _MAX_HEADER):
                raise _damaged(path, f"its header claims to end at byte {end} of {nbytes}")
            packed = file.read(end - HEADER_BEGIN)
    except OSError as error:
        raise SourceError(
            str(path), error.strerror or str(error), "check the path and its permissions"
        ) from error
    with _refusing(path, "its header cannot be parsed"):
        system, sections = _parse_header(packed)
    for section in sections:
        if not end <= section.offset <= section.offset + section.nbytes <= nbytes:
            raise _damaged(
                path,
                f"section {section.kind} claims bytes {section.offset} to "
                f"{section.offset + section.nbytes}, the file has {nbytes}",
            )
    version = ".".join(map(str, struct.unpack_from("<3I", head, VERSION_AT)))
    return Bundle(path, nbytes, version, system, sections)


def _parse_header(packed: bytes) -> tuple[dict[str, Any], list[SectionInfo]]:
    from converter.litertlm.schemas import header as schema

    # Read table by table: the generated object API stops at a misspelt name (0.18.1).
    value_tables = {value: name for name, value in vars(schema.VData).items()}
    kinds = {value: name for name, value in vars(schema.AnySectionDataType).items()}
    header = schema.LiteRTLMMetaData.GetRootAs(packed, 0)

    def value_of(pair: Any) -> Any:
        table = getattr(schema, value_tables[pair.ValueType()])()
        table.Init(pair.Value().Bytes, pair.Value().Pos)
        return _text(table.Value())

    def pairs(count: int, get: Callable[[int], Any]) -> dict[str, Any]:
        return {_name(get(i).Key()): value_of(get(i)) for i in range(count)}

    sections = []
    listed = header.SectionMetadata()
    for index in range(listed.ObjectsLength()):
        section = listed.Objects(index)
        sections.append(
            SectionInfo(
                kinds.get(section.DataType(), str(section.DataType())),
                section.BeginOffset(),
                section.EndOffset() - section.BeginOffset(),
                pairs(section.ItemsLength(), section.Items),
            )
        )
    system = header.SystemMetadata()
    return pairs(system.EntriesLength(), system.Entries) if system else {}, sections


def summarise(model: memoryview) -> ModelSummary:
    """What a TFLite model offers; its weights need not be there."""
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items()}
    root = _root(model)
    sizes = {}
    for index in range(root.BuffersLength()):
        buffer = root.Buffers(index)
        nbytes = buffer.Size() or buffer.DataLength()
        if nbytes >= _MIN_WEIGHT:
            sizes[index] = nbytes
    weight_bytes: dict[str, int] = {}
    # From the last, decode, which uses all the weights: then nothing is left to look for.
    for index in reversed(range(root.SubgraphsLength())):
        subgraph = root.Subgraphs(index)
        for position in range(subgraph.TensorsLength()):
            if not sizes:
                break
            tensor = subgraph.Tensors(position)
            if nbytes := sizes.pop(tensor.Buffer(), 0):
                dtype = dtypes[tensor.Type()]
                weight_bytes[dtype] = weight_bytes.get(dtype, 0) + nbytes

    needs = run_memory(root, sum(weight_bytes.values()))
    return ModelSummary(list(_signatures(root)), weight_bytes, needs)


def _root(model: memoryview) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    if model[4:8] != b"TFL3":  # zeros, as a sparse copy has, would read as a model without anything
        raise ValueError("not a TFLite model")
    return schema.Model.GetRootAs(model, 0)


def _signatures(root: Any, only: str | None = None) -> Iterator[SignatureSummary]:
    """All of them, or those of one name."""
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items()}

    def tensors(signature: Any, subgraph: Any, direction: str) -> list[TensorSummary]:
        maps = [
            getattr(signature, direction)(i)
            for i in range(getattr(signature, f"{direction}Length")())
        ]
        return [
            TensorSummary(
                _name(entry.Name()),
                [int(n) for n in tensor.ShapeAsNumpy()] if tensor.ShapeLength() else [],
                dtypes[tensor.Type()],
            )
            for entry in maps
            for tensor in [subgraph.Tensors(entry.TensorIndex())]
        ]

    for index in range(root.SignatureDefsLength()):
        signature = root.SignatureDefs(index)
        name = _name(signature.SignatureKey())
        if only in (None, name):
            subgraph = root.Subgraphs(signature.SubgraphIndex())
            inputs, outputs = (tensors(signature, subgraph, way) for way in ("Inputs", "Outputs"))
            yield SignatureSummary(name, inputs, outputs)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _name(value: bytes | None) -> str:
    if value is None:
        raise ValueError("a name is missing")
    return value.decode("utf-8", "replace")


@contextmanager
def _refusing(path: Path, why: str) -> Iterator[None]:
    """Whatever a flatbuffer reader stumbles over in damaged bytes becomes one refusal."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise _damaged(path, why) from error


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(str(path), f"damaged: {why}", "convert or download it again")
