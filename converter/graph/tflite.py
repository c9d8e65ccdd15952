"""Writes a TFLite model: subgraphs of ops over constants, activations and external weights.

This module knows the file format and nothing of language models. Three ideas make the file small
and its weights streamable:

* Weights lie outside the flatbuffer (`Buffer.offset`, `Buffer.size`), aligned to 64 bytes, in the
  order in which they were declared. `Model.finish` fixes every place before one weight is read.
* A table or vector that equals one already written is not written again. A flatbuffer may refer to
  an object from many places, so the tensors, quantisation parameters and ops that several
  signatures have in common exist once.
* Scales are known only after their weight was quantised, yet their place inside the flatbuffer is
  known at once: `Layout.scales` hands out that place to be filled in.

Formats: the schema is `tensorflow/compiler/mlir/lite/schema/schema.fbs`, as generated in
`ai_edge_litert.schema_py_generated`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

WEIGHT_ALIGNMENT = 64  # bytes; what XNNPACK and memory mapping like best, and a multiple of 16
_CONSTANT_ALIGNMENT = 16  # bytes; the runtime requires it of data inside the flatbuffer


class DType(IntEnum):
    """Element types, with the numbers the schema gives them."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    BOOL = 6
    INT8 = 9


_NUMPY_TO_DTYPE = {
    np.dtype(np.float32): DType.FLOAT32,
    np.dtype(np.int32): DType.INT32,
}


@dataclass(frozen=True)
class Weight:
    """A constant whose bytes are streamed in later.

    Attributes:
        name: unique path, such as `layers.0.attention.q`.
        shape: rows first; a quantised weight has one scale per row.
        dtype: stored element type.
        nbytes: size of its data.
        quantized: whether it carries per-row float32 scales (zero points are all 0).
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    quantized: bool = False


@dataclass(frozen=True)
class Tensor:
    """A value inside one graph: its index there, shape and element type."""

    index: int
    shape: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class _Op:
    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Layout:
    """The finished flatbuffer and where everything outside or inside it goes.

    Attributes:
        flatbuffer: the bytes before the weights; writable, so that scales can be filled in.
        offsets: weight name -> byte offset of its data from the start of the model.
        nbytes: size of the whole model, flatbuffer and weights.
    """

    flatbuffer: bytearray
    offsets: dict[str, int]
    nbytes: int
    _scale_places: dict[str, tuple[int, int]]

    def scales(self, name: str) -> np.ndarray:
        """The float32 scales of a quantised weight, shape `(rows,)`: a view to write into."""
        position, rows = self._scale_places[name]
        return np.frombuffer(self.flatbuffer, np.float32, count=rows, offset=position)


_broadcast = functools.cache(np.broadcast_shapes)  # the same few shapes, thousands of times


class Graph:
    """One subgraph with its signature. Ops are appended in execution order by `make_<op>`."""

    def __init__(self, model: Model, name: str, is_signature: bool = True) -> None:
        self.name = name
        self.is_signature = is_signature
        self._model = model
        # One row per tensor: name, shape, dtype, buffer index, weight (or None).
        self.tensors: list[tuple[str, tuple[int, ...], DType, int, Weight | None]] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.ops: list[_Op] = []
        self._names: set[str] = set()
        self._constants: dict[int, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    # Tensors -----------------------------------------------------------------------------------

    def _tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: DType,
        buffer: int = 0,
        weight: Weight | None = None,
    ) -> Tensor:
        if name in self._names:
            raise ValueError(f"{self.name}: two tensors are named {name}")
        self._names.add(name)
        self.tensors.append((name, tuple(shape), dtype, buffer, weight))
        return Tensor(len(self.tensors) - 1, tuple(shape), dtype)

    def add_input(self, name: str, shape: Sequence[int], dtype: DType) -> Tensor:
        """Declare an input of the signature."""
        tensor = self._tensor(name, shape, dtype)
        self.inputs[name] = tensor
        return tensor

    def add_output(self, name: str, tensor: Tensor) -> None:
        """Declare `tensor` to be the signature's output `name`."""
        self.outputs[name] = tensor

    def constant(self, name: str, value: np.ndarray | Sequence[int] | float) -> Tensor:
        """A small constant inside the flatbuffer; constants are shared by value."""
        if not isinstance(value, np.ndarray):
            value = np.asarray(value, np.float32 if isinstance(value, float) else np.int32)
        dtype = _NUMPY_TO_DTYPE[value.dtype]
        buffer = self._model.constant_buffer(value)
        if buffer not in self._constants:
            self._constants[buffer] = self._tensor(name, value.shape, dtype, buffer)
        return self._constants[buffer]

    def weight(self, weight: Weight) -> Tensor:
        """A streamed weight. The same weight is the same tensor wherever it is used."""
        if weight.name not in self._weights:
            buffer = self._model.weight_buffer(weight)
            self._weights[weight.name] = self._tensor(
                f"{weight.name}.weight", weight.shape, weight.dtype, buffer, weight
            )
        return self._weights[weight.name]

    # Ops ---------------------------------------------------------------------------------------

    def _make(
        self,
        operator: str,
        name: str,
        inputs: Sequence[Tensor],
        shape: Sequence[int],
        dtype: DType = DType.FLOAT32,
        **options: Any,
    ) -> Tensor:
        output = self._tensor(name, shape, dtype)
        indices = tuple(tensor.index for tensor in inputs)
        self.ops.append(_Op(operator, indices, (output.index,), tuple(options.items())))
        return output

    def make_add(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a + b, with broadcasting."""
        return self._make("ADD", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_sub(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a - b, with broadcasting."""
        return self._make("SUB", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_mul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a * b, with broadcasting."""
        return self._make("MUL", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_floor_mod(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a modulo b with the sign of b, with broadcasting."""
        return self._make("FLOOR_MOD", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_maximum(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The larger one, with broadcasting."""
        return self._make("MAXIMUM", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_minimum(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The smaller one, with broadcasting."""
        return self._make("MINIMUM", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_neg(self, name: str, x: Tensor) -> Tensor:
        """-x."""
        return self._make("NEG", name, (x,), x.shape)

    def make_rsqrt(self, name: str, x: Tensor) -> Tensor:
        """1 / sqrt(x)."""
        return self._make("RSQRT", name, (x,), x.shape)

    def make_sin(self, name: str, x: Tensor) -> Tensor:
        """sin(x), x in radians."""
        return self._make("SIN", name, (x,), x.shape)

    def make_cos(self, name: str, x: Tensor) -> Tensor:
        """cos(x), x in radians."""
        return self._make("COS", name, (x,), x.shape)

    def make_logistic(self, name: str, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        return self._make("LOGISTIC", name, (x,), x.shape)

    def make_gelu(self, name: str, x: Tensor) -> Tensor:
        """GELU in its tanh approximation."""
        return self._make("GELU", name, (x,), x.shape, Approximate=True)

    def make_softmax(self, name: str, x: Tensor) -> Tensor:
        """Softmax over the last axis."""
        return self._make("SOFTMAX", name, (x,), x.shape, Beta=1.0)

    def make_cast(self, name: str, x: Tensor, dtype: DType) -> Tensor:
        """x converted to another element type."""
        return self._make(
            "CAST", name, (x,), x.shape, dtype, InDataType=int(x.dtype), OutDataType=int(dtype)
        )

    def make_dequantize(self, name: str, x: Tensor) -> Tensor:
        """float16 to float32."""
        return self._make("DEQUANTIZE", name, (x,), x.shape)

    def make_mean(self, name: str, x: Tensor) -> Tensor:
        """Mean over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("MEAN", name, (x, axes), (*x.shape[:-1], 1), KeepDims=True)

    def make_reduce_max(self, name: str, x: Tensor) -> Tensor:
        """Maximum over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("REDUCE_MAX", name, (x, axes), (*x.shape[:-1], 1), x.dtype, KeepDims=True)

    def make_reshape(self, name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements in another shape."""
        if np.prod(shape) != np.prod(x.shape):
            raise ValueError(f"{name}: {x.shape} cannot be reshaped to {tuple(shape)}")
        return self._make(
            "RESHAPE", name, (x, self.constant(f"{name}/shape", shape)), shape, x.dtype
        )

    def make_transpose(self, name: str, x: Tensor, axes: Sequence[int]) -> Tensor:
        """Axis i of the result is axis `axes[i]` of x."""
        shape = [x.shape[axis] for axis in axes]
        return self._make("TRANSPOSE", name, (x, self.constant(f"{name}/axes", axes)), shape)

    def make_concatenation(self, name: str, parts: Sequence[Tensor], axis: int) -> Tensor:
        """The parts one after another along `axis`, counted from the front."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self._make("CONCATENATION", name, parts, shape, parts[0].dtype, Axis=axis)

    def make_slice(self, name: str, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        """`size` elements from `begin` on, along every axis."""
        begins = self.constant(f"{name}/begin", begin)
        sizes = self.constant(f"{name}/size", size)
        return self._make("SLICE", name, (x, begins, sizes), size, x.dtype)

    def make_gather(self, name: str, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """The slices of x at `indices`, (n,), along `axis`."""
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self._make("GATHER", name, (x, indices), shape, x.dtype, Axis=axis)

    def make_greater_equal(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Whether a >= b, with broadcasting."""
        shape = _broadcast(a.shape, b.shape)
        return self._make("GREATER_EQUAL", name, (a, b), shape, DType.BOOL)

    def make_select(self, name: str, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """`yes` where the condition holds, `no` elsewhere, with broadcasting."""
        shape = np.broadcast_shapes(condition.shape, yes.shape, no.shape)
        return self._make("SELECT_V2", name, (condition, yes, no), shape, yes.dtype)

    def make_batch_matmul(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """x @ y.T over the last two axes; the axes before them are batches."""
        if x.shape[-1] != y.shape[-1]:
            raise ValueError(f"{name}: {x.shape} and {y.shape} differ in their last axis")
        shape = (*x.shape[:-1], y.shape[-2])
        return self._make("BATCH_MATMUL", name, (x, y), shape, AdjX=False, AdjY=True)

    def make_fully_connected(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """x @ weight.T + bias: (N, in), (out, in), (out,) -> (N, out)."""
        if x.shape[-1] != weight.shape[-1]:
            raise ValueError(f"{name}: {x.shape} does not fit the weight {weight.shape}")
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return self._make("FULLY_CONNECTED", name, inputs, (*x.shape[:-1], weight.shape[0]))

    def make_embedding_lookup(self, name: str, ids: Tensor, table: Tensor) -> Tensor:
        """Rows of `table`, (rows, width), at `ids`, (N,) -> (N, width) in float32."""
        return self._make("EMBEDDING_LOOKUP", name, (ids, table), (*ids.shape, table.shape[1]))

    def make_dynamic_update_slice(
        self, name: str, x: Tensor, update: Tensor, start: Tensor
    ) -> Tensor:
        """x with `update` written at `start`, an int32 vector of one index per axis."""
        return self._make("DYNAMIC_UPDATE_SLICE", name, (x, update, start), x.shape, x.dtype)

    def make_if(
        self, name: str, condition: Tensor, then: Graph, otherwise: Graph, inputs: Sequence[Tensor]
    ) -> Tensor:
        """The output of `then` where the condition, (1,), holds, else that of `otherwise`.

        Both are bodies with one input for each of `inputs` and one output of the same shape. The
        runtime copies the inputs that the chosen body uses.
        """
        [result] = then.outputs.values()
        graphs = self._model.graphs
        return self._make(
            "IF",
            name,
            (condition, *inputs),
            result.shape,
            result.dtype,
            ThenSubgraphIndex=graphs.index(then),
            ElseSubgraphIndex=graphs.index(otherwise),
        )


# Operator -> its options table; None where the operator has none.
_OPTIONS: dict[str, str | None] = {
    "ADD": "AddOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "COS": "CosOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DYNAMIC_UPDATE_SLICE": "DynamicUpdateSliceOptions",
    "EMBEDDING_LOOKUP": None,
    "FLOOR_MOD": "FloorModOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "IF": "IfOptions",
    "LOGISTIC": None,
    "MAXIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
    "REDUCE_MAX": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "RSQRT": None,
    "SELECT_V2": "SelectV2Options",
    "SIN": None,
    "SLICE": "SliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SUB": "SubOptions",
    "TRANSPOSE": "TransposeOptions",
}
# An old reader takes this number for "the operator is in the newer field" (schema.fbs).
_DEPRECATED_CODE_LIMIT = 127


class Model:
    """A TFLite model under construction: declare graphs, then `finish`."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.graphs: list[Graph] = []
        self.weights: dict[str, Weight] = {}
        # Buffer 0 is the empty one that every activation refers to (schema.fbs).
        self._buffers: list[Weight | bytes] = [b""]
        self._buffer_of: dict[tuple[str, tuple[int, ...], bytes] | str, int] = {}

    def add_graph(self, signature: str) -> Graph:
        """Start a subgraph that callers reach as `signature`."""
        return self._add(Graph(self, signature))

    def add_body(self, name: str) -> Graph:
        """Start a subgraph that only other subgraphs reach, through `make_if`."""
        return self._add(Graph(self, name, is_signature=False))

    def _add(self, graph: Graph) -> Graph:
        self.graphs.append(graph)
        return graph

    def constant_buffer(self, value: np.ndarray) -> int:
        """Index of the buffer with these bytes, type and shape."""
        key = (value.dtype.char, value.shape, value.tobytes())
        if key not in self._buffer_of:
            self._buffer_of[key] = len(self._buffers)
            self._buffers.append(key[2])
        return self._buffer_of[key]

    def weight_buffer(self, weight: Weight) -> int:
        """Index of the weight's buffer; the first use of a weight fixes its place in the file."""
        if weight.name not in self._buffer_of:
            self._buffer_of[weight.name] = len(self._buffers)
            self._buffers.append(weight)
            self.weights[weight.name] = weight
        elif self.weights[weight.name] != weight:
            raise ValueError(f"two different weights are named {weight.name}")
        return self._buffer_of[weight.name]

    def finish(self) -> Layout:
        """Write the flatbuffer and fix the place of every weight."""
        return _Packer(self).pack()


class _Record:
    """The layout of a table that a model has by the thousand.

    `flatbuffers.Builder` writes a table field by field, some 40 microseconds each; a record is
    written at once. All fields are present, which a reader takes as it takes any other table.
    """

    def __init__(self, **fields: tuple[int, str]) -> None:
        """Fields in order of size: name -> (number in the schema, `offset`, `I` or `B`)."""
        formats = {name: "I" if kind == "offset" else kind for name, (_, kind) in fields.items()}
        size = struct.calcsize("<i" + "".join(formats.values()))
        self.struct = struct.Struct("<i" + "".join(formats.values()) + "x" * (-size % 4))
        self.size = self.struct.size
        places, at = {}, 4  # after the distance to the vtable
        for name, form in formats.items():
            places[name] = at
            at += struct.calcsize(form)
        # Where each offset field stands; None for a scalar.
        self.offset_places = [
            places[name] if kind == "offset" else None for name, (_, kind) in fields.items()
        ]
        slots = [0] * (1 + max(number for number, _ in fields.values()))
        for name, (number, _) in fields.items():
            slots[number] = places[name]
        self.vtable = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), self.size, *slots)


_TENSOR = _Record(
    shape=(0, "offset"), buffer=(2, "I"), name=(3, "offset"), type=(1, "B"), has_rank=(8, "B")
)
_OPERATOR = _Record(opcode_index=(0, "I"), inputs=(1, "offset"), outputs=(2, "offset"))
_OPERATOR_WITH_OPTIONS = _Record(
    opcode_index=(0, "I"),
    inputs=(1, "offset"),
    outputs=(2, "offset"),
    builtin_options=(4, "offset"),
    builtin_options_type=(3, "B"),
)


class _Packer:
    """Turns a `Model` into flatbuffer bytes; every distinct table and vector is written once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._builder = flatbuffers.Builder(1 << 20)
        self._written: dict[Any, int] = {}
        self._operators: dict[str, int] = {}
        # Places counted from the end of the flatbuffer, the only fixed point while it grows.
        self._scales: dict[str, int] = {}
        self._weight_offsets: dict[str, int] = {}

    def pack(self) -> Layout:
        buffers = self._offsets([self._buffer(content) for content in self._model._buffers])
        subgraphs = self._offsets([self._subgraph(graph) for graph in self._model.graphs])
        signatures = self._offsets(
            [
                self._signature(graph, index)
                for index, graph in enumerate(self._model.graphs)
                if graph.is_signature
            ]
        )
        codes = self._offsets([self._operator_code(operator) for operator in self._operators])
        root = self._table(
            "Model",
            Version=3,
            OperatorCodes=codes,
            Subgraphs=subgraphs,
            Description=self._string(self._model.description),
            Buffers=buffers,
            SignatureDefs=signatures,
        )
        self._builder.Finish(root, b"TFL3")
        self._written.clear()  # this and the builder hold several times the result's memory
        flatbuffer: bytearray = self._builder.Output()
        del self._builder
        return self._place_weights(flatbuffer)

    def _place_weights(self, flatbuffer: bytearray) -> Layout:
        """Give every weight its offset, and write the offsets into the flatbuffer."""
        end_of_tables = len(flatbuffer)
        flatbuffer += bytes(-len(flatbuffer) % WEIGHT_ALIGNMENT)
        position = len(flatbuffer)
        offsets = {}
        for name, weight in self._model.weights.items():
            offsets[name] = position
            place = end_of_tables - self._weight_offsets[name]
            flatbuffer[place : place + 8] = position.to_bytes(8, "little")
            position += weight.nbytes + -weight.nbytes % WEIGHT_ALIGNMENT
        scales = {
            # The vector's elements follow its length, four bytes.
            name: (end_of_tables - place + 4, self._model.weights[name].shape[0])
            for name, place in self._scales.items()
        }
        return Layout(flatbuffer, offsets, position, scales)

    # Objects of the format ---------------------------------------------------------------------

    def _table(self, kind: str, **fields: Any) -> int:
        """Write a table, or find the equal one. Fields are scalars or offsets of objects."""
        key = (kind, *fields.items())
        if key not in self._written:
            getattr(schema, f"{kind}Start")(self._builder)
            for field, value in fields.items():
                getattr(schema, f"{kind}Add{field}")(self._builder, value)
            self._written[key] = getattr(schema, f"{kind}End")(self._builder)
        return self._written[key]

    def _record(self, record: _Record, *values: int) -> int:
        """Write a table of a common kind, or find the equal one; values in the record's order."""
        key = (record, values)
        if key not in self._written:
            if record not in self._written:
                self._written[record] = self._bytes(record.vtable, alignment=2)
            self._builder.Prep(4, record.size)
            # Builder counts from the end of the buffer; a reader counts from each field onwards.
            start = self._builder.Offset() + record.size
            fields = [
                value if place is None else start - place - value
                for value, place in zip(values, record.offset_places, strict=True)
            ]
            packed = record.struct.pack(self._written[record] - start, *fields)
            self._written[key] = self._bytes_here(packed)
        return self._written[key]

    def _bytes(self, content: bytes, alignment: int) -> int:
        """Write bytes as they are."""
        self._builder.Prep(alignment, len(content))
        return self._bytes_here(content)

    def _bytes_here(self, content: bytes) -> int:
        """Write bytes where `Prep` has made room."""
        builder = self._builder
        end = builder.head
        builder.head -= len(content)
        builder.Bytes[builder.head : end] = content
        return int(builder.Offset())

    def _vector(self, values: tuple[int, ...]) -> int:
        """A vector of int32."""
        if values not in self._written:
            count = len(values)
            self._written[values] = self._bytes(struct.pack(f"<{count + 1}i", count, *values), 4)
        return self._written[values]

    def _zeros(self, count: int) -> int:
        """A vector of int64 zeros."""
        key = ("zeros", count)
        if key not in self._written:
            self._written[key] = self._builder.CreateNumpyVector(np.zeros(count, np.int64))
        return self._written[key]

    def _offsets(self, offsets: Sequence[int]) -> int:
        """A vector of references to objects."""
        count = len(offsets)
        self._builder.Prep(4, 4 * (count + 1))
        first = self._builder.Offset() + 4 * count  # where the first element stands
        relative = [first - 4 * i - offset for i, offset in enumerate(offsets)]
        return self._bytes(struct.pack(f"<{count + 1}I", count, *relative), alignment=4)

    def _string(self, text: str) -> int:
        key = ("string", text)
        if key not in self._written:
            self._written[key] = self._builder.CreateString(text)
        return self._written[key]

    def _buffer(self, content: Weight | bytes) -> int:
        builder = self._builder
        if isinstance(content, Weight):
            schema.BufferStart(builder)
            schema.BufferAddSize(builder, content.nbytes)
            # Any value but the default makes room; `_place_weights` writes the real one.
            schema.BufferAddOffset(builder, 1)
            self._weight_offsets[content.name] = builder.Offset()
            return schema.BufferEnd(builder)
        if not content:
            return self._table("Buffer")
        builder.StartVector(1, len(content), _CONSTANT_ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        return self._table("Buffer", Data=builder.EndVector())

    def _quantization(self, weight: Weight) -> int:
        """Per-row scales, zero points 0: filled in later through `Layout.scales`."""
        key = ("quantization", weight.name)
        if key not in self._written:
            rows = weight.shape[0]
            scales = self._builder.CreateNumpyVector(np.zeros(rows, np.float32))
            self._scales[weight.name] = scales
            self._written[key] = self._table(
                "QuantizationParameters",
                Scale=scales,
                ZeroPoint=self._zeros(rows),
                QuantizedDimension=0,
            )
        return self._written[key]

    def _subgraph(self, graph: Graph) -> int:
        tensors = [self._tensor(*tensor) for tensor in graph.tensors]
        operators = [self._operator(op) for op in graph.ops]
        return self._table(
            "SubGraph",
            Tensors=self._offsets(tensors),
            Inputs=self._vector(tuple(tensor.index for tensor in graph.inputs.values())),
            Outputs=self._vector(tuple(tensor.index for tensor in graph.outputs.values())),
            Operators=self._offsets(operators),
            Name=self._string(graph.name),
        )

    def _tensor(
        self, name: str, shape: tuple[int, ...], dtype: DType, buffer: int, weight: Weight | None
    ) -> int:
        if weight is None or not weight.quantized:
            return self._record(
                _TENSOR, self._vector(shape), buffer, self._string(name), int(dtype), True
            )
        return self._table(
            "Tensor",
            Shape=self._vector(shape),
            Type=int(dtype),
            Buffer=buffer,
            Name=self._string(name),
            Quantization=self._quantization(weight),
            HasRank=True,
        )

    def _operator(self, op: _Op) -> int:
        index = self._operators.setdefault(op.operator, len(self._operators))
        inputs, outputs = self._vector(op.inputs), self._vector(op.outputs)
        options = _OPTIONS[op.operator]
        if options is None:
            return self._record(_OPERATOR, index, inputs, outputs)
        packed = self._table(options, **dict(op.options))
        kind = getattr(schema.BuiltinOptions, options)
        return self._record(_OPERATOR_WITH_OPTIONS, index, inputs, outputs, packed, kind)

    def _operator_code(self, operator: str) -> int:
        code = getattr(schema.BuiltinOperator, operator)
        return self._table(
            "OperatorCode",
            DeprecatedBuiltinCode=min(code, _DEPRECATED_CODE_LIMIT),
            BuiltinCode=code,
            Version=1,
        )

    def _signature(self, graph: Graph, index: int) -> int:
        def tensor_maps(tensors: dict[str, Tensor]) -> int:
            return self._offsets(
                [
                    self._table("TensorMap", Name=self._string(name), TensorIndex=tensor.index)
                    for name, tensor in tensors.items()
                ]
            )

        return self._table(
            "SignatureDef",
            Inputs=tensor_maps(graph.inputs),
            Outputs=tensor_maps(graph.outputs),
            SignatureKey=self._string(graph.name),
            SubgraphIndex=index,
        )
