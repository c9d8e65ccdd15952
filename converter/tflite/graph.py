"""A TFLite model: subgraphs of ops over constants, activations and external weights.

This module and `writer`, which makes a file of it, know nothing of language models.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np


class DType(IntEnum):
    """Element types, with the numbers the schema gives them."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT32 = 2
    BOOL = 6
    INT8 = 9
    INT4 = 17
    INT2 = 19

    def nbytes(self, count: int) -> int:
        """Bytes that so many elements take; two int4 share a byte, and four int2."""
        return (count * _BITS[self] + 7) // 8


_BITS = {
    DType.FLOAT32: 32,
    DType.FLOAT16: 16,
    DType.INT32: 32,
    DType.BOOL: 8,
    DType.INT8: 8,
    DType.INT4: 4,
    DType.INT2: 2,
}
_NUMPY_TO_DTYPE = {
    np.dtype(np.float32): DType.FLOAT32,
    np.dtype(np.int32): DType.INT32,
}


@dataclass(frozen=True)
class Weight:
    """A constant whose bytes are streamed in later.

    Attributes:
        name: unique path, such as `layers.0.attention.q`.
        shape: rows first.
        dtype: stored element type.
        quantized: whether it carries per-row float32 scales (zero points are all 0).
        scales: float16, (rows, blocks), where a row has one scale for each block of its columns.
        is_widened: whether those who multiply by it are to take it as float32 (`make_dequantize`).
        takes_two_terms: whether they are to give their inputs in two terms (`tflite.two_terms`).
        rest: what it lacks, a matrix with smaller steps; products with both are added.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    quantized: bool = False
    scales: Weight | None = None
    is_widened: bool = False
    takes_two_terms: bool = False
    rest: Weight | None = None

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return self.dtype.nbytes(math.prod(self.shape))

    @property
    def streamed_nbytes(self) -> int:
        """The same, with its blocks' scales and its rest."""
        return self.nbytes + sum(one.nbytes for one in (self.scales, self.rest) if one)


@dataclass(frozen=True)
class Tensor:
    """A value inside one graph: its index there, shape and element type."""

    index: int
    shape: tuple[int, ...]
    dtype: DType


class Declared(NamedTuple):
    """A tensor of a graph: buffer 0 is that of activations; `scales` is a tensor's index."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    buffer: int = 0
    weight: Weight | None = None
    scales: int | None = None


class Op(NamedTuple):
    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


_broadcast = functools.cache(np.broadcast_shapes)  # the same few shapes, thousands of times


class Graph:
    """One subgraph with its signature. Ops are appended in execution order by `make_<op>`."""

    def __init__(self, model: Model, name: str, is_signature: bool = True) -> None:
        self.name = name
        self.number = len(model.graphs)
        self.is_signature = is_signature
        # Weakly, as the model holds its graphs: in a circle they would stay in memory for long.
        self._model: Model = weakref.proxy(model)
        self.tensors: list[Declared] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.ops: list[Op] = []
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
        scales: int | None = None,
    ) -> Tensor:
        if name in self._names:
            raise ValueError(f"{self.name}: two tensors are named {name}")
        self._names.add(name)
        self.tensors.append(Declared(name, tuple(shape), dtype, buffer, weight, scales))
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
            scales = self.weight(weight.scales).index if weight.scales else None
            self._weights[weight.name] = self._tensor(
                f"{weight.name}.weight", weight.shape, weight.dtype, buffer, weight, scales
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
        self.ops.append(Op(operator, indices, (output.index,), tuple(options.items())))
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

    def make_div(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a / b, with broadcasting."""
        return self._make("DIV", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

    def make_floor_div(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a / b rounded down, with broadcasting."""
        return self._make("FLOOR_DIV", name, (a, b), _broadcast(a.shape, b.shape), a.dtype)

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

    def make_sqrt(self, name: str, x: Tensor) -> Tensor:
        """The square root of x."""
        return self._make("SQRT", name, (x,), x.shape)

    def make_round(self, name: str, x: Tensor) -> Tensor:
        """x rounded to integers, halves to even ones."""
        return self._make("ROUND", name, (x,), x.shape)

    def make_sin(self, name: str, x: Tensor) -> Tensor:
        """sin(x), x in radians."""
        return self._make("SIN", name, (x,), x.shape)

    def make_cos(self, name: str, x: Tensor) -> Tensor:
        """cos(x), x in radians."""
        return self._make("COS", name, (x,), x.shape)

    def make_logistic(self, name: str, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        return self._make("LOGISTIC", name, (x,), x.shape)

    def make_gelu(self, name: str, x: Tensor, approximate: bool) -> Tensor:
        """GELU, by the error function or in its tanh approximation."""
        return self._make("GELU", name, (x,), x.shape, Approximate=approximate)

    def make_exp(self, name: str, x: Tensor) -> Tensor:
        """e to the power of x."""
        return self._make("EXP", name, (x,), x.shape)

    def make_log(self, name: str, x: Tensor) -> Tensor:
        """The natural logarithm of x."""
        return self._make("LOG", name, (x,), x.shape)

    def make_tanh(self, name: str, x: Tensor) -> Tensor:
        """The hyperbolic tangent of x."""
        return self._make("TANH", name, (x,), x.shape)

    def make_softmax(self, name: str, x: Tensor) -> Tensor:
        """Softmax over the last axis."""
        return self._make("SOFTMAX", name, (x,), x.shape, Beta=1.0)

    def make_cast(self, name: str, x: Tensor, dtype: DType) -> Tensor:
        """x converted to another element type."""
        return self._make(
            "CAST", name, (x,), x.shape, dtype, InDataType=int(x.dtype), OutDataType=int(dtype)
        )

    def make_dequantize(self, name: str, x: Tensor) -> Tensor:
        """float16, or int8 with its scales, to float32."""
        return self._make("DEQUANTIZE", name, (x,), x.shape)

    def make_quantize(self, name: str, x: Tensor, dtype: DType) -> Tensor:
        """float32 rounded to float16, or to whole numbers from -128 to 127 as int8, halves to even
        ones; or float16 to float32, which the runtime's delegate takes under this name alone.
        """
        return self._make("QUANTIZE", name, (x,), x.shape, dtype)

    def make_abs(self, name: str, x: Tensor) -> Tensor:
        """|x|."""
        return self._make("ABS", name, (x,), x.shape)

    def make_mean(self, name: str, x: Tensor) -> Tensor:
        """Mean over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("MEAN", name, (x, axes), (*x.shape[:-1], 1), KeepDims=True)

    def make_sum(self, name: str, x: Tensor) -> Tensor:
        """Sum over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("SUM", name, (x, axes), (*x.shape[:-1], 1), KeepDims=True)

    def make_reduce_max(self, name: str, x: Tensor) -> Tensor:
        """Maximum over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("REDUCE_MAX", name, (x, axes), (*x.shape[:-1], 1), x.dtype, KeepDims=True)

    def make_reduce_min(self, name: str, x: Tensor) -> Tensor:
        """Minimum over the last axis, which stays with length 1."""
        axes = self.constant(f"{name}/axes", [len(x.shape) - 1])
        return self._make("REDUCE_MIN", name, (x, axes), (*x.shape[:-1], 1), x.dtype, KeepDims=True)

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
        order = self.constant(f"{name}/axes", axes)
        return self._make("TRANSPOSE", name, (x, order), shape, x.dtype)

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

    def make_pad(self, name: str, x: Tensor, after: Sequence[int], value: float) -> Tensor:
        """So many more elements along every axis behind those that are there, all `value`."""
        pairs = self.constant(f"{name}/after", np.asarray([(0, n) for n in after], np.int32))
        shape = [size + n for size, n in zip(x.shape, after, strict=True)]
        filling = self.constant(f"{name}/value", np.asarray([value], np.float32))
        return self._make("PADV2", name, (x, pairs, filling), shape)

    def make_gather(self, name: str, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """The slices of x at `indices`, (n,), along `axis`."""
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self._make("GATHER", name, (x, indices), shape, x.dtype, Axis=axis)

    def make_scatter(self, name: str, places: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Zeros, (n, width), and in them `rows`, (m, width), at `places`, (m, 1)."""
        full = self.constant(f"{name}/shape", shape)
        return self._make("SCATTER_ND", name, (places, rows, full), shape, rows.dtype)

    def make_top_k(self, name: str, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest of the last axis, and their indices there, int32; the largest first."""
        count = self.constant(f"{name}/k", np.asarray(k, np.int32))
        shape = (*x.shape[:-1], k)
        values = self._tensor(name, shape, x.dtype)
        indices = self._tensor(f"{name}/indices", shape, DType.INT32)
        inputs, outputs = (x.index, count.index), (values.index, indices.index)
        self.ops.append(Op("TOPK_V2", inputs, outputs, ()))
        return values, indices

    def make_greater_equal(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Whether a >= b, with broadcasting."""
        shape = _broadcast(a.shape, b.shape)
        return self._make("GREATER_EQUAL", name, (a, b), shape, DType.BOOL)

    def make_select(self, name: str, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        """`yes` where the condition holds, `no` elsewhere, with broadcasting."""
        shape = np.broadcast_shapes(condition.shape, yes.shape, no.shape)
        return self._make("SELECT_V2", name, (condition, yes, no), shape, yes.dtype)

    def make_batch_matmul(self, name: str, x: Tensor, y: Tensor, transposed: bool = True) -> Tensor:
        """x @ y.T (or x @ y) over the last two axes; the axes before them are batches."""
        inner, outer = (-1, -2) if transposed else (-2, -1)
        if x.shape[-1] != y.shape[inner]:
            raise ValueError(f"{name}: {x.shape} cannot be multiplied by {y.shape}")
        shape = (*x.shape[:-1], y.shape[outer])
        return self._make("BATCH_MATMUL", name, (x, y), shape, AdjX=False, AdjY=transposed)

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
        """The one output of `then` where the condition holds, else that of `otherwise`."""
        [result] = self.make_ifs(name, condition, then, otherwise, inputs).values()
        return result

    def make_ifs(
        self, name: str, condition: Tensor, then: Graph, otherwise: Graph, inputs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The outputs of `then` where the condition, (1,), holds, else those of `otherwise`.

        Both are bodies with one input for each of `inputs`, and with the same outputs in the same
        order. The runtime hands the inputs over without copying them, and a body writes its outputs
        where they are wanted: what is updated in place outside is updated in place inside, too.
        """
        assert [x.shape for x in then.outputs.values()] == [
            x.shape for x in otherwise.outputs.values()
        ]
        results = {
            output: self._tensor(name if len(then.outputs) == 1 else f"{name}/{output}", *of)
            for output, of in ((key, (x.shape, x.dtype)) for key, x in then.outputs.items())
        }
        options = (("ThenSubgraphIndex", then.number), ("ElseSubgraphIndex", otherwise.number))
        handed = tuple(tensor.index for tensor in (condition, *inputs))
        made = tuple(tensor.index for tensor in results.values())
        self.ops.append(Op("IF", handed, made, options))
        return results


class Model:
    """A TFLite model under construction: declare graphs, then `writer.write` it."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.graphs: list[Graph] = []
        self.bodies: dict[str, Graph] = {}
        self.weights: dict[str, Weight] = {}
        # Buffer 0 is the empty one that every activation refers to (schema.fbs).
        self.buffers: list[Weight | bytes] = [b""]
        self._buffer_of: dict[tuple[str, tuple[int, ...], bytes] | str, int] = {}

    def add_graph(self, signature: str) -> Graph:
        """Start a subgraph that callers reach as `signature`."""
        return self._add(Graph(self, signature))

    def add_body(self, name: str) -> Graph:
        """Start a subgraph that only other subgraphs reach, through `make_if`."""
        body = self._add(Graph(self, name, is_signature=False))
        self.bodies[name] = body
        return body

    def _add(self, graph: Graph) -> Graph:
        self.graphs.append(graph)
        return graph

    def constant_buffer(self, value: np.ndarray) -> int:
        """Index of the buffer with these bytes, type and shape."""
        key = (value.dtype.char, value.shape, value.tobytes())
        if key not in self._buffer_of:
            self._buffer_of[key] = len(self.buffers)
            self.buffers.append(key[2])
        return self._buffer_of[key]

    def declare(self, weight: Weight) -> None:
        """Give a weight its place in the file, and its scales or its rest theirs after it."""
        self.weight_buffer(weight)
        for beside in (weight.scales, weight.rest):
            if beside is not None:
                self.weight_buffer(beside)

    def weight_buffer(self, weight: Weight) -> int:
        """Index of the weight's buffer; the first use of a weight fixes its place in the file."""
        if weight.name not in self._buffer_of:
            self._buffer_of[weight.name] = len(self.buffers)
            self.buffers.append(weight)
            self.weights[weight.name] = weight
        elif self.weights[weight.name] != weight:
            raise ValueError(f"two different weights are named {weight.name}")
        return self._buffer_of[weight.name]
