"""An ML Program: functions of operations over constants, records of a weight file, and states.

This module, `blob` and `schema` know nothing of language models. Operations are those of Core ML's
model intermediate language, with its argument names; source: coremltools' MIL operations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.coreml.blob import DType, Record
from converter.coreml.schema import Operation, Value, ValueType

OPSET = "CoreML8"  # iOS 18, macOS 15: states, several functions, tables per group of channels
WEIGHT_FILE = "@model_path/weights/weight.bin"

_OF_NUMPY = {
    np.dtype(np.float16): DType.FLOAT16,
    np.dtype(np.int32): DType.INT32,
    np.dtype(np.int16): DType.INT16,
    np.dtype(np.uint16): DType.UINT16,
    np.dtype(np.bool_): DType.BOOL,
}
# What a constant is made of.
Constant = np.ndarray | np.generic | str | bool | int | Sequence[int] | Sequence[bool]


@dataclass(eq=False)
class Tensor:
    """A value inside a function; its name may still change. A dimension of None is any size."""

    name: str
    shape: tuple[int | None, ...]
    dtype: DType
    is_state: bool = False


Argument = Tensor | Sequence[Tensor]


@dataclass
class Op:
    """One operation: its kind, what goes in by name, and what comes out."""

    kind: str
    inputs: dict[str, Argument]
    outputs: list[Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)


class Function:
    """One function of a program. Operations are appended in the order of execution."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Tensor] = []
        self.states: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.ops: list[Op] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[DType, tuple[int, ...], bytes], Tensor] = {}
        self._records: dict[tuple[int, ...], Tensor] = {}

    # Interface ------------------------------------------------------------------------------------

    def add_input(self, name: str, shape: Sequence[int | None], dtype: DType) -> Tensor:
        """Declare an input."""
        tensor = self._tensor(name, shape, dtype)
        self.inputs.append(tensor)
        return tensor

    def add_state(self, name: str, shape: Sequence[int]) -> Tensor:
        """Declare a state of float16, which calls of all functions share."""
        tensor = self._tensor(name, shape, DType.FLOAT16)
        tensor.is_state = True
        self.states.append(tensor)
        return tensor

    def add_output(self, name: str, tensor: Tensor) -> None:
        """Declare `tensor` to be the output `name`."""
        if name in self._names:
            raise ValueError(f"{self.name}: two values are named {name}")
        self._names[name] = 1
        tensor.name = name
        self.outputs.append(tensor)

    # Constants ------------------------------------------------------------------------------------

    def constant(self, value: Constant) -> Tensor:
        """A value that stands in the program itself."""
        if isinstance(value, str):
            key = (DType.STRING, (), value.encode())
        else:
            array = np.asarray(value)
            if array.dtype == np.int64:
                array = array.astype(np.int32)
            key = (_OF_NUMPY[array.dtype], array.shape, array.tobytes())
        if key not in self._constants:
            dtype, shape, content = key
            tensor = self._tensor("const", shape, dtype)
            self.ops.append(Op("const", {}, [tensor], {"val": immediate(dtype, shape, content)}))
            self._constants[key] = tensor
        return self._constants[key]

    def weight(self, name: str, record: Record) -> Tensor:
        """A record of the weight file."""
        key = (record.offset,)
        if key not in self._records:
            tensor = self._tensor(name, record.shape, record.dtype)
            self.ops.append(Op("const", {}, [tensor], {"val": blob(record)}))
            self._records[key] = tensor
        return self._records[key]

    def palettized_weight(self, name: str, indices: Record, tables: Record) -> Tensor:
        """Values of `tables` where `indices` say; `tables` is (groups, 1, .., entries, 1)."""
        key = (indices.offset, tables.offset)
        if key not in self._records:
            tensor = self._tensor(name, indices.shape, tables.dtype)
            inputs = {"indices": blob(indices), "lut": blob(tables)}
            self.ops.append(Op("constexpr_lut_to_dense", {}, [tensor], {"inputs": inputs}))
            self._records[key] = tensor
        return self._records[key]

    # Operations -----------------------------------------------------------------------------------

    def make_binary(self, kind: str, x: Tensor, y: Tensor | np.generic) -> Tensor:
        """`add`, `sub`, `mul`, `real_div`, `maximum`, `minimum`: with broadcasting."""
        other = y if isinstance(y, Tensor) else self.constant(y)
        shape = np.broadcast_shapes(_known(x), _known(other)) if other.shape else x.shape
        return self._op(kind, shape, x.dtype, x=x, y=other)

    def make_mul_constant(self, x: Tensor, factor: float) -> Tensor:
        """Times one number."""
        return self.make_binary("mul", x, np.float16(factor))

    def make_unary(self, kind: str, x: Tensor, **arguments: Constant) -> Tensor:
        """`silu`, `gelu`, `tanh`, `sigmoid`, `relu`, `square`: value by value."""
        return self._op(kind, x.shape, x.dtype, x=x, **arguments)

    def make_softmax(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return self._op("softmax", x.shape, x.dtype, x=x, axis=-1)

    def make_layer_norm(self, x: Tensor, epsilon: float) -> Tensor:
        """Over the last axis, without weight and bias.

        An epsilon too small for float16 is the least that there is: a row of zeros stays one.
        """
        rounded = max(np.float16(epsilon), np.finfo(np.float16).smallest_subnormal)
        return self._op("layer_norm", x.shape, x.dtype, x=x, axes=[-1], epsilon=rounded)

    def make_concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One after the other along `axis`."""
        shape = list(_known(parts[0]))
        shape[axis] = sum(_known(part)[axis] for part in parts)
        return self._op(
            "concat", shape, parts[0].dtype, values=tuple(parts), axis=axis, interleave=False
        )

    def make_slice(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """A piece along one axis."""
        rank, shape = len(x.shape), list(_known(x))
        begin, end = [0] * rank, list(shape)
        begin[axis], end[axis] = start, stop
        shape[axis] = stop - start
        whole = [i != axis % rank for i in range(rank)]
        if shape == list(x.shape):
            return x
        return self._op("slice_by_index", shape, x.dtype, x=x, begin=begin, end=end, end_mask=whole)

    def make_reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same values in the same order."""
        return self._op("reshape", shape, x.dtype, x=x, shape=list(shape))

    def make_transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Axis i of the result is axis `order[i]` of `x`."""
        shape = [x.shape[i] for i in order]
        return self._op("transpose", shape, x.dtype, x=x, perm=list(order))

    def make_expand_dims(self, x: Tensor, axis: int) -> Tensor:
        """One more axis, of size 1."""
        shape = list(x.shape)
        shape.insert(axis, 1)
        return self._op("expand_dims", shape, x.dtype, x=x, axes=[axis])

    def make_squeeze(self, x: Tensor, axis: int) -> Tensor:
        """Without an axis of size 1."""
        shape = [size for i, size in enumerate(x.shape) if i != axis]
        return self._op("squeeze", shape, x.dtype, x=x, axes=[axis])

    def make_tile(self, x: Tensor, axis: int, count: int) -> Tensor:
        """`count` copies along an axis."""
        shape, reps = list(_known(x)), [1] * len(x.shape)
        shape[axis] *= count
        reps[axis] = count
        return self._op("tile", shape, x.dtype, x=x, reps=reps)

    def make_gather(self, table: Tensor, rows: Tensor) -> Tensor:
        """Rows of a table, (n, ..) and indices of any shape."""
        return self._op(
            "gather",
            (*rows.shape, *table.shape[1:]),
            table.dtype,
            x=table,
            indices=rows,
            axis=0,
            batch_dims=0,
            validate_indices=False,
        )

    def make_cast(self, x: Tensor, dtype: DType) -> Tensor:
        """Another element type."""
        return self._op("cast", x.shape, dtype, x=x, dtype=_CAST[dtype])

    def make_matmul(self, x: Tensor, y: Tensor, transpose_y: bool = False) -> Tensor:
        """Of the last two axes."""
        columns = y.shape[-2 if transpose_y else -1]
        shape = (*x.shape[:-1], columns)
        return self._op(
            "matmul", shape, x.dtype, x=x, y=y, transpose_x=False, transpose_y=transpose_y
        )

    def make_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A linear layer, as the Neural Engine likes it: (1, in, 1, n) by (out, in, 1, 1)."""
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        return self._op(
            "conv",
            shape,
            x.dtype,
            x=x,
            weight=weight,
            **({} if bias is None else {"bias": bias}),
            strides=[1, 1],
            pad_type="valid",
            pad=[0, 0, 0, 0],
            dilations=[1, 1],
            groups=1,
        )

    def make_reduce(self, kind: str, x: Tensor, axis: int) -> Tensor:
        """`reduce_max`, or `reduce_argmax` in int32: over one axis, which stays with size 1."""
        shape = [1 if i == axis % len(x.shape) else size for i, size in enumerate(x.shape)]
        if kind == "reduce_argmax":
            return self._op(
                kind, shape, DType.INT32, x=x, axis=axis, keep_dims=True, output_dtype="int32"
            )
        return self._op(kind, shape, x.dtype, x=x, axes=[axis], keep_dims=True)

    def make_slice_update(
        self,
        x: Tensor,
        update: Tensor,
        begin: Tensor,
        end: Tensor,
        end_mask: Sequence[bool],
    ) -> Tensor:
        """`x` with `update` in place of `x[begin:end]`; masked ends are those of the axis."""
        return self._op(
            "slice_update",
            x.shape,
            x.dtype,
            x=x,
            update=update,
            begin=begin,
            end=end,
            end_mask=list(end_mask),
        )

    def read_state(self, state: Tensor) -> Tensor:
        """What a state holds now."""
        return self._op("read_state", state.shape, state.dtype, input=state)

    def write_state(self, state: Tensor, value: Tensor) -> None:
        """Let a state hold `value`."""
        self.ops.append(Op("write_state", {"input": state, "data": value}, []))

    def _op(
        self,
        kind: str,
        result_shape: Sequence[int | None],
        result_dtype: DType,
        /,
        **inputs: Any,
    ) -> Tensor:
        """Append an operation; what is no tensor, nor a tuple of them, becomes a constant."""
        arguments: dict[str, Argument] = {
            name: value if _is_argument(value) else self.constant(value)
            for name, value in inputs.items()
        }
        result = self._tensor(kind, result_shape, result_dtype)
        self.ops.append(Op(kind, arguments, [result]))
        return result

    def _tensor(self, name: str, shape: Sequence[int | None], dtype: DType) -> Tensor:
        """A value with a name of its own, like this one."""
        name = re.sub(r"\W", "_", name)
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return Tensor(f"{name}_{count}" if count else name, tuple(shape), dtype)

    # Message --------------------------------------------------------------------------------------

    def write(self, message: Any) -> None:
        """Fill in a `Function` message."""
        for tensor in (*self.inputs, *self.states):
            message.inputs.add(name=tensor.name, type=type_of(tensor))
        message.opset = OPSET
        block = message.block_specializations[OPSET]
        block.outputs.extend(tensor.name for tensor in self.outputs)
        block.operations.extend(map(_operation, self.ops))


def immediate(dtype: DType, shape: tuple[int, ...], content: bytes) -> Any:
    """A value in the program: little-endian, or UTF-8 for a string."""
    value = Value(type=_tensor_type(dtype, shape))
    tensor = value.immediateValue.tensor
    if dtype is DType.STRING:
        tensor.strings.values.append(content.decode())
    elif dtype is DType.BOOL:
        tensor.bools.values.extend(np.frombuffer(content, np.bool_).tolist())
    elif dtype is DType.INT32:
        tensor.ints.values.extend(np.frombuffer(content, np.int32).tolist())
    else:
        tensor.bytes.values = content
    return value


def blob(record: Record) -> Any:
    """A value in the weight file."""
    value = Value(type=_tensor_type(record.dtype, record.shape))
    value.blobFileValue.fileName = WEIGHT_FILE
    value.blobFileValue.offset = record.offset
    return value


def type_of(tensor: Tensor) -> Any:
    """The type of a value, as a message."""
    plain = _tensor_type(tensor.dtype, tensor.shape)
    if not tensor.is_state:
        return plain
    result = ValueType()
    result.stateType.wrappedType.CopyFrom(plain)
    return result


def _tensor_type(dtype: DType, shape: Sequence[int | None]) -> Any:
    result = ValueType()
    result.tensorType.dataType = dtype.program
    result.tensorType.rank = len(shape)
    for size in shape:
        dimension = result.tensorType.dimensions.add()
        if size is None:
            dimension.unknown.variadic = False
            dimension.unknown.SetInParent()
        else:
            dimension.constant.size = size
    return result


def _operation(op: Op) -> Any:
    message = Operation(type=op.kind)
    for name, argument in op.inputs.items():
        found = (argument,) if isinstance(argument, Tensor) else argument
        for tensor in found:
            message.inputs[name].arguments.add(name=tensor.name)
    attributes = dict(op.attributes)
    for name, value in attributes.pop("inputs", {}).items():
        message.inputs[name].arguments.add(value=value)
    # Every operation has a name; the loader of coremltools does not miss it, Apple's does.
    label = op.outputs[0].name if op.outputs else f"write_{_only(op.inputs['data']).name}"
    attributes["name"] = immediate(DType.STRING, (), label.encode())
    for name, value in attributes.items():
        message.attributes[name].CopyFrom(value)
    for tensor in op.outputs:
        message.outputs.add(name=tensor.name, type=type_of(tensor))
    return message


def _only(argument: Argument) -> Tensor:
    assert isinstance(argument, Tensor)
    return argument


def _is_argument(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value)
    )


def _known(x: Tensor) -> tuple[int, ...]:
    assert None not in x.shape
    return x.shape  # type: ignore[return-value]


_CAST = {
    DType.FLOAT16: "fp16",
    DType.INT32: "int32",
    DType.INT16: "int16",
    DType.UINT16: "uint16",
}
