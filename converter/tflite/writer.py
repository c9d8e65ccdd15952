"""Writes a `tflite.Model` as a flatbuffer, with its weights behind it.

Three ideas make the file small and its weights streamable:

* Weights lie outside the flatbuffer (`Buffer.offset`, `Buffer.size`), aligned to 64 bytes, in the
  order in which they were declared. `write` fixes every place before one weight is read.
* A table or vector that equals one already written is not written again. A flatbuffer may refer to
  an object from many places, so the tensors, quantisation parameters and ops that several
  signatures have in common exist once.
* Scales are known only after their weight was quantised, yet their place inside the flatbuffer is
  known at once: `Layout.scales` hands out that place to be filled in.

Formats: the schema is `tensorflow/compiler/mlir/lite/schema/schema.fbs`, as generated in
`ai_edge_litert.schema_py_generated`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converter.tflite.graph import Declared, DType, Graph, Model, Op, Tensor, Weight

WEIGHT_ALIGNMENT = 64  # bytes; what XNNPACK and memory mapping like best, and a multiple of 16
# flatbuffers' verifier takes a file with more for a malicious one.
MOST_TABLES = 1_000_000
_CONSTANT_ALIGNMENT = 16  # bytes; the runtime requires it of data inside the flatbuffer

# Operator -> its options table; None where the operator has none.
_OPTIONS: dict[str, str | None] = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "COS": "CosOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "DYNAMIC_UPDATE_SLICE": "DynamicUpdateSliceOptions",
    "EMBEDDING_LOOKUP": None,
    "EXP": "ExpOptions",
    "FLOOR_DIV": "FloorDivOptions",
    "FLOOR_MOD": "FloorModOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "IF": "IfOptions",
    "LOG": None,
    "LOGISTIC": None,
    "MAXIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": "QuantizeOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "ROUND": None,
    "RSQRT": None,
    "SQRT": None,
    "SCATTER_ND": "ScatterNdOptions",
    "SELECT_V2": "SelectV2Options",
    "SIN": None,
    "SLICE": "SliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TANH": None,
    "TOPK_V2": "TopKV2Options",
    "TRANSPOSE": "TransposeOptions",
}
# An old reader takes this number for "the operator is in the newer field" (schema.fbs).
_DEPRECATED_CODE_LIMIT = 127


@dataclass(frozen=True)
class Layout:
    """The finished flatbuffer and where everything outside or inside it goes.

    Attributes:
        flatbuffer: the bytes before the weights; writable, so that scales can be filled in.
        offsets: weight name -> byte offset of its data from the start of the model.
        nbytes: size of the whole model, flatbuffer and weights.
        tables: how many the runtime counts when it verifies the flatbuffer, at most `MOST_TABLES`.
    """

    flatbuffer: bytearray
    offsets: dict[str, int]
    nbytes: int
    tables: int
    _scale_places: dict[str, tuple[int, int]]

    def scales(self, name: str) -> np.ndarray:
        """The float32 scales of a quantised weight, shape `(rows,)`: a view to write into."""
        position, rows = self._scale_places[name]
        return np.frombuffer(self.flatbuffer, np.float32, count=rows, offset=position)


def write(model: Model) -> Layout:
    """Write the flatbuffer and fix the place of every weight."""
    return _Packer(model).pack()


def count_tables(model: Model) -> int:
    """Tables as a verifier meets them: what is referred to from several places, several times."""
    count = 1 + len(model.buffers) + len(_OPTIONS)
    for graph in model.graphs:
        tensors = len(graph.tensors) + sum(2 for tensor in graph.tensors if tensor.weight)
        options = sum(_OPTIONS[op.operator] is not None for op in graph.ops)
        count += 1 + tensors + len(graph.ops) + options
        count += 1 + len(graph.inputs) + len(graph.outputs) if graph.is_signature else 0
    return count


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
        # Of each offset: which field it is, and where that stands.
        self.offset_places = [
            (i, places[name])
            for i, (name, (_, kind)) in enumerate(fields.items())
            if kind == "offset"
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
        buffers = self._offsets([self._buffer(content) for content in self._model.buffers])
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
        self._written.clear()  # this holds several times the result's memory
        flatbuffer: bytearray = self._builder.Bytes
        del flatbuffer[: self._builder.head]  # which copies nothing
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
        return Layout(flatbuffer, offsets, position, count_tables(self._model), scales)

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
        found = self._written.get(key)
        if found is None:
            vtable = self._written.get(record)
            if vtable is None:
                vtable = self._written[record] = self._bytes(record.vtable, alignment=2)
            builder = self._builder
            builder.Prep(4, record.size)
            builder.head -= record.size
            # Builder counts from the end of the buffer; a reader counts from each field onwards.
            found = len(builder.Bytes) - builder.head
            fields = list(values)
            for i, place in record.offset_places:
                fields[i] = found - place - fields[i]
            record.struct.pack_into(builder.Bytes, builder.head, vtable - found, *fields)
            self._written[key] = found
        return found

    def _bytes(self, content: bytes, alignment: int) -> int:
        """Write bytes as they are."""
        builder = self._builder
        builder.Prep(alignment, len(content))
        end = builder.head
        builder.head -= len(content)
        builder.Bytes[builder.head : end] = content
        return len(builder.Bytes) - builder.head

    def _vector(self, values: tuple[int, ...]) -> int:
        """A vector of int32."""
        found = self._written.get(values)
        if found is None:
            count = len(values)
            found = self._bytes(struct.pack(f"<{count + 1}i", count, *values), 4)
            self._written[values] = found
        return found

    def _zeros(self, count: int) -> int:
        """A vector of int64 zeros."""
        key = ("zeros", count)
        if key not in self._written:
            self._written[key] = self._builder.CreateNumpyVector(np.zeros(count, np.int64))
        return self._written[key]

    def _floats(self, values: tuple[float, ...]) -> int:
        """A vector of float32."""
        key = ("floats", *values)
        if key not in self._written:
            vector = np.asarray(values, np.float32)
            self._written[key] = self._builder.CreateNumpyVector(vector)
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

    def _steps(self) -> int:
        """Of an int8 activation: it counts whole steps, so that its scale is 1."""
        scales = self._floats((1.0,))
        return self._table("QuantizationParameters", Scale=scales, ZeroPoint=self._zeros(1))

    def _blocks(self, tensor: Declared) -> int:
        """Scales of blocks lie in a tensor of the same graph."""
        assert tensor.weight is not None
        assert tensor.weight.scales is not None
        size = tensor.shape[1] // tensor.weight.scales.shape[1]
        kind = schema.QuantizationDetails.BlockwiseQuantization
        details = self._table(
            "BlockwiseQuantization", Scales=tensor.scales, ZeroPoints=-1, BlockSize=size
        )
        return self._table("QuantizationParameters", Details=details, DetailsType=kind)

    def _subgraph(self, graph: Graph) -> int:
        tensors = [self._tensor(tensor) for tensor in graph.tensors]
        operators = [self._operator(op) for op in graph.ops]
        return self._table(
            "SubGraph",
            Tensors=self._offsets(tensors),
            Inputs=self._vector(tuple(tensor.index for tensor in graph.inputs.values())),
            Outputs=self._vector(tuple(tensor.index for tensor in graph.outputs.values())),
            Operators=self._offsets(operators),
            Name=self._string(graph.name),
        )

    def _tensor(self, tensor: Declared) -> int:
        shape, name = self._vector(tensor.shape), self._string(tensor.name)
        if tensor.scales is not None:
            quantization = self._blocks(tensor)
        elif tensor.weight is not None and tensor.weight.quantized:
            quantization = self._quantization(tensor.weight)
        elif tensor.dtype is DType.INT8:
            quantization = self._steps()
        else:
            return self._record(_TENSOR, shape, tensor.buffer, name, int(tensor.dtype), True)
        return self._table(
            "Tensor",
            Shape=shape,
            Type=int(tensor.dtype),
            Buffer=tensor.buffer,
            Name=name,
            Quantization=quantization,
            HasRank=True,
        )

    def _operator(self, op: Op) -> int:
        index = self._operators.setdefault(op.operator, len(self._operators))
        inputs, outputs = self._vector(op.inputs), self._vector(op.outputs)
        options = _OPTIONS[op.operator]
        if options is None:
            return self._record(_OPERATOR, index, inputs, outputs)
        key = (options, *op.options)
        packed = self._written.get(key) or self._table(options, **dict(op.options))
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
