"""Runs the ML Programs that `converter.coreml` writes, in numpy: on any system.

All is computed in float32; with `rounds` every result is rounded to float16, which is what the
Neural Engine computes in. Operations are those of Core ML's model intermediate language, with its
argument names, as far as `converter.coreml.program` writes them; any other is refused by name.
`tests/runner/test_mlprogram.py` holds each against coremltools' own definition.

Any value may have one axis more than the program says, in front: that of several calls, which are
made at once. So axes are counted from the end here. States have no such axis: all calls write to
them before any reads, and it is for the caller's masks to hide from one what later ones wrote.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from converter.checkpoint.files import unreadable
from converter.coreml.blob import ALIGNMENT, DType
from converter.coreml.package import MODEL, WEIGHTS
from converter.coreml.schema import Model
from converter.errors import SourceError, UnsupportedError

States = dict[str, np.ndarray]

_DTYPES = {dtype.program: dtype for dtype in DType}
_NUMPY = {
    DType.BOOL: np.bool_,
    DType.FLOAT16: np.float16,
    DType.INT16: np.int16,
    DType.INT32: np.int32,
    DType.UINT16: np.uint16,
}
_BLOCK = 1 << 20  # weights that are taken out of their palette at once
# Of float32's bits: those of the exponent, those of float16's smallest and of infinity's there, and
# what multiplies a number with 2^13; and float32's first infinite power of two less float16's.
_EXPONENT, _THIRTEEN = np.uint32(0xFF << 23), np.uint32(13 << 23)
_EXPONENTS = (np.uint32(113 << 23), np.uint32(143 << 23))
_TO_THE_END = np.float32(2.0 ** (128 - 16))


# Weights ------------------------------------------------------------------------------------------


class WeightFile:
    """A package's file of weights, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise unreadable(path, error) from error
        except ValueError as error:  # an empty file cannot be mapped
            raise _damaged(path, "cannot be read as a file of weights") from error

    def record(self, offset: int, dtype: DType, count: int) -> np.ndarray:
        """The data of the record at `offset`: uint8 `(bytes,)`.

        Raises:
            SourceError: there is no such record.
        """
        head = self._bytes[offset : offset + ALIGNMENT]
        if len(head) == ALIGNMENT:
            _, kind = head[:8].view("<u4")
            nbytes, start = (int(number) for number in head[8:24].view("<u8"))
            data = self._bytes[start : start + nbytes]
            if kind == dtype.record and len(data) == nbytes == dtype.nbytes(count):
                return data
        raise _damaged(self._path, f"has no {count} values of {dtype.name.lower()} at {offset}")


@dataclass
class Weight:
    """A tensor of the weight file, which is read when it is used.

    Attributes:
        data: uint8; float16 numbers, or a stream of indices.
        bits: of an index.
        tables: what indices stand for, float32 `(groups, 2^bits)`, each for as many consecutive
            rows; None where `data` is numbers.
    """

    shape: tuple[int, ...]
    data: np.ndarray
    bits: int = 16
    tables: np.ndarray | None = None
    _dense: np.ndarray | None = None

    def dense(self) -> np.ndarray:
        """All of it in float32, kept for the next time."""
        if self._dense is None:
            rows, step = self.shape[0], max(1, _BLOCK * self.shape[0] // math.prod(self.shape))
            self._dense = np.empty(self.shape, np.float32)
            for first in range(0, rows, step):
                last = min(first + step, rows)
                self._dense[first:last] = self._rows(first, last)
        return self._dense

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Some rows in float32: `(*numbers.shape, *shape[1:])`."""
        if self._dense is not None:
            return self._dense[numbers]
        found = np.concatenate([self._rows(n, n + 1) for n in numbers.ravel().tolist()])
        return found.reshape(*numbers.shape, *self.shape[1:])

    def _rows(self, first: int, last: int) -> np.ndarray:
        shape, columns = (last - first, *self.shape[1:]), math.prod(self.shape[1:])
        if self.tables is None:
            halves = self.data.view(np.float16)[first * columns : last * columns]
            return halves.astype(np.float32).reshape(shape)
        indices = unpack(self.data, self.bits, first * columns, last * columns)
        groups, entries = self.tables.shape
        group = np.arange(first, last) // (self.shape[0] // groups)
        places = indices.reshape(-1, columns) + (group * entries)[:, None]
        return self.tables.ravel().take(places).reshape(shape)


def unpack(stream: np.ndarray, bits: int, first: int, last: int) -> np.ndarray:
    """Numbers `first` to `last` of a stream of bits, the first in the lowest bits."""
    nbytes = math.lcm(bits, 8) // 8  # of a word, which holds whole numbers
    per_word = nbytes * 8 // bits
    start, stop = first // per_word, -(-last // per_word)
    content = stream[start * nbytes : stop * nbytes]
    content = np.pad(content, (0, (stop - start) * nbytes - len(content))).reshape(-1, nbytes)
    words = content[:, 0]
    for i in range(1, nbytes):
        words = words | content[:, i].astype(np.uint32) << 8 * i
    shifts = np.arange(0, nbytes * 8, bits).astype(words.dtype)
    numbers = (words[:, None] >> shifts) & words.dtype.type((1 << bits) - 1)
    return numbers.ravel()[first - start * per_word : last - start * per_word]


# Operations ---------------------------------------------------------------------------------------


def _gelu(x: np.ndarray, mode: str) -> np.ndarray:
    if mode == "TANH_APPROXIMATION":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        inner = np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))
    return x * (1 + inner) / 2


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = x - x.max(axis=axis, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=axis, keepdims=True)
    return powers


def _layer_norm(x: np.ndarray, axes: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    over = tuple(axes.tolist())
    centred = x - x.mean(axis=over, keepdims=True)
    variance = np.square(centred).mean(axis=over, keepdims=True)
    centred /= np.sqrt(variance + epsilon)
    return centred


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """(1, in, 1, n) by (out, in, 1, 1)."""
    matrix = weight[:, :, 0, 0]
    if x.shape[-1] == 1:  # of several calls all in one product
        rows = x[..., 0, 0].reshape(-1, x.shape[-3]) @ matrix.T
        result = rows.reshape(*x.shape[:-3], len(matrix), 1, 1)
    else:
        result = (matrix @ x[..., 0, :])[..., None, :]
    if bias is not None:
        result += bias[:, None, None]
    return result


def _matmul(x: np.ndarray, y: np.ndarray, transpose_y: bool) -> np.ndarray:
    y = y.swapaxes(-1, -2) if transpose_y else y
    if x.ndim > y.ndim and x.shape[-2] == 1:  # rows of several calls in one product
        return (x.swapaxes(0, -2)[0] @ y)[None].swapaxes(0, -2)
    return x @ y


def _concat(values: Sequence[np.ndarray], axis: int) -> np.ndarray:
    most = max(values, key=lambda value: value.ndim)
    same = [
        value if value.ndim == most.ndim else np.broadcast_to(value, (len(most), *value.shape))
        for value in values
    ]
    return np.concatenate(same, axis=axis)


def _gather(x: Weight | np.ndarray, indices: np.ndarray) -> np.ndarray:
    return x.rows(indices) if isinstance(x, Weight) else x[indices]


def _cast(x: np.ndarray, dtype: str) -> np.ndarray:
    kinds = {"fp16": np.float32, "int32": np.int32, "int16": np.int16, "uint16": np.uint16}
    return x.astype(kinds[dtype])


def _tile(x: np.ndarray, reps: np.ndarray) -> np.ndarray:
    return np.tile(x, reps.tolist())


def _reshape(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    wanted = shape.tolist()
    return x.reshape(wanted if x.size == math.prod(wanted) else (-1, *wanted))


def _transpose(x: np.ndarray, perm: np.ndarray) -> np.ndarray:
    before = x.ndim - len(perm)
    return x.transpose(*range(before), *(x.ndim + perm).tolist())


def _slice(x: np.ndarray, begin: np.ndarray, end: np.ndarray, end_mask: np.ndarray) -> np.ndarray:
    return x[_place(begin, end, end_mask)]


def _place(begin: np.ndarray, end: np.ndarray, end_mask: np.ndarray) -> tuple[Any, ...]:
    bounds = zip(begin.tolist(), end.tolist(), end_mask.tolist(), strict=True)
    return (..., *(slice(first, None if whole else last) for first, last, whole in bounds))


def _slice_update(
    x: np.ndarray, update: np.ndarray, begin: np.ndarray, end: np.ndarray, end_mask: np.ndarray
) -> np.ndarray:
    result = x.copy()
    _put(result, update, begin, end, end_mask)
    return result


def _put(
    x: np.ndarray, update: np.ndarray, begin: np.ndarray, end: np.ndarray, end_mask: np.ndarray
) -> None:
    if begin.ndim > 1:  # several calls
        for one in zip(update, begin, end, strict=True):
            _put(x, *one, end_mask)
        return
    place = x[_place(begin, end, end_mask)]
    assert place.shape == update.shape, "a slice of another shape than its update"
    place[...] = update


def _reduce_argmax(x: np.ndarray, axis: int) -> np.ndarray:
    return x.argmax(axis=axis, keepdims=True).astype(np.int32)


_Operation = Callable[..., np.ndarray]
# Their results are rounded.
_ARITHMETIC: Mapping[str, _Operation] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": _gelu,
    "tanh": lambda x: np.tanh(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "square": lambda x: np.square(x),
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "conv": _conv,
    "matmul": _matmul,
}
# Their results may be views of what goes in.
_VIEWS: Mapping[str, _Operation] = {
    "slice_by_index": _slice,
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes.tolist())),
}
_COPIES: Mapping[str, _Operation] = {
    "concat": _concat,
    "tile": _tile,
    "gather": _gather,
    "cast": _cast,
    "slice_update": _slice_update,
    "reduce_max": lambda x, axes: x.max(axis=tuple(axes.tolist()), keepdims=True),
    "reduce_argmax": _reduce_argmax,
}
_OPERATIONS = {**_ARITHMETIC, **_VIEWS, **_COPIES}
# Arguments of which one value alone is known here.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "concat": {"interleave": False},
    "conv": {
        "strides": [1, 1],
        "pad_type": "valid",
        "pad": [0, 0, 0, 0],
        "dilations": [1, 1],
        "groups": 1,
    },
    "gather": {"axis": 0, "batch_dims": 0, "validate_indices": False},
    "matmul": {"transpose_x": False},
    "reduce_argmax": {"keep_dims": True, "output_dtype": "int32"},
    "reduce_max": {"keep_dims": True},
}
# Arguments that count axes of the result; for `squeeze`, of what goes in.
_AXES = ("axis", "axes", "perm")


# Programs -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Step:
    """One operation of a function, ready to run.

    Attributes:
        inputs: names of values, a tuple of them where the argument is a list.
        state: what it reads or writes, if it does.
        dead: values that nobody needs after it.
    """

    kind: str
    inputs: dict[str, str | tuple[str, ...]]
    output: str | None
    state: str | None = None
    dead: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All values that go in."""
        return [
            name
            for value in self.inputs.values()
            for name in (value if isinstance(value, tuple) else (value,))
        ]

    def writes(self, state: str | None) -> bool:
        """Whether it changes a state."""
        return self.kind in ("write_state", _UPDATE_STATE) and self.state == state


# What `_Step.kind` is beside operations of a program: `slice_update` of a state's own array, and
# `read_state` as a copy.
_UPDATE_STATE, _COPY_STATE = "update_state", "copy_state"


class Function:
    """One function of a package.

    Attributes:
        inputs: shapes by name; None for a dimension of any size.
        states: shapes by name.
        outputs: names.
        whole: weights that are used as they are, so that they are kept in float32; of others, rows
            are looked up.
    """

    def __init__(self, package: Package, message: Any) -> None:
        self._package = package
        self.inputs: dict[str, tuple[int | None, ...]] = {}
        self.states: dict[str, tuple[int, ...]] = {}
        for value in message.inputs:
            if value.type.HasField("stateType"):
                self.states[value.name] = _shape(value.type.stateType.wrappedType)
            else:
                self.inputs[value.name] = _shape(value.type)
        [block] = message.block_specializations.values()
        self.outputs = tuple(block.outputs)
        self._constants: dict[str, Any] = {}
        steps = [step for op in block.operations if (step := self._read(op)) is not None]
        self._steps = _freeing(_in_place(steps, self.outputs), self._constants, self.outputs)
        tables = {step.inputs["x"] for step in self._steps if step.kind == "gather"}
        self.whole = {
            name: value
            for name, value in self._constants.items()
            if isinstance(value, Weight) and name not in tables
        }

    def run(self, inputs: Mapping[str, np.ndarray], states: States) -> dict[str, np.ndarray]:
        """One call, or several at once; `states` are changed."""
        for name, shape in self.inputs.items():
            _check_shape(name, inputs[name], shape)
        for name, weight in self.whole.items():  # those that are used for the first time
            if self._constants[name] is weight:
                self._constants[name] = weight.dense()
        values = dict(self._constants)
        values |= {name: _as_float(inputs[name]) for name in self.inputs}
        with np.errstate(all="ignore"):  # what exceeds float16 becomes infinite, as it does there
            for step in self._steps:
                result = self._result(step, values, states)
                if step.output is not None:
                    values[step.output] = result
                for name in step.dead:
                    del values[name]
        return {name: values[name] for name in self.outputs}

    def _result(self, step: _Step, values: dict[str, Any], states: States) -> Any:
        arguments: dict[str, Any] = {
            name: [values[one] for one in value] if isinstance(value, tuple) else values[value]
            for name, value in step.inputs.items()
        }
        if step.state is None:
            result = _OPERATIONS[step.kind](**arguments)
            is_rounded = step.kind in _ARITHMETIC and self._package.rounds
            return _rounded(result) if is_rounded else result
        held = states[step.state]
        if step.kind == "read_state":
            return held
        if step.kind == _COPY_STATE:
            return held.copy()
        if step.kind == _UPDATE_STATE:
            _put(held, **arguments)
        else:
            held[...] = arguments["data"]
        return None

    def _read(self, op: Any) -> _Step | None:
        """A step; None for a constant, which is put where constants are."""
        if op.type == "const":
            self._constants[op.outputs[0].name] = self._package.constant(op.attributes["val"])
            return None
        if op.type == "constexpr_lut_to_dense":
            indices, tables = (op.inputs[n].arguments[0].value for n in ("indices", "lut"))
            self._constants[op.outputs[0].name] = self._package.palettized(indices, tables)
            return None
        names = {
            name: tuple(binding.name for binding in argument.arguments)
            for name, argument in op.inputs.items()
        }
        output = op.outputs[0].name if op.outputs else None
        if op.type in ("read_state", "write_state"):
            [state] = names.pop("input")
            return _Step(op.type, {n: v[0] for n, v in names.items()}, output, state)
        if op.type not in _OPERATIONS:
            raise self._package.unsupported(f"the operation {op.type}")
        for name, value in _FIXED.get(op.type, {}).items():
            found = self._constants.get(names.pop(name, ("",))[0])
            if found is None or np.asarray(found).tolist() != value:
                raise self._package.unsupported(f"{op.type} with another {name} than {value}")
        if op.type == "gather" and names["x"][0] not in self._constants:
            raise self._package.unsupported("gather from what is computed")
        rank = op.outputs[0].type.tensorType.rank
        for name in _AXES:
            if name in names:
                names[name] = (self._from_the_end(names[name][0], rank, op.type),)
        unknown = names.keys() - inspect.signature(_OPERATIONS[op.type]).parameters
        if unknown:
            raise self._package.unsupported(f"{op.type} with {', '.join(sorted(unknown))}")
        return _Step(op.type, {n: v if n == "values" else v[0] for n, v in names.items()}, output)

    def _from_the_end(self, name: str, rank: int, kind: str) -> str:
        """A constant of axes, as one that counts them from the end."""
        axes = np.asarray(self._constants[name])
        rank += axes.size if kind == "squeeze" else 0
        counted = np.where(axes < 0, axes, axes - rank)
        made = f"{name} of {rank}"
        self._constants[made] = counted if counted.ndim else counted.item()
        return made


class Package:
    """A `.mlpackage`.

    Attributes:
        functions: by name; the one of a package with one function is `main`.
        metadata: what its author says of it, by name.

    Raises:
        SourceError: it is none, or damaged.
        UnsupportedError: it has operations that `converter.coreml` does not write.
    """

    def __init__(self, path: Path, rounds: bool = False) -> None:
        """
        Args:
            rounds: every result to float16.
        """
        self.path = path
        self.rounds = rounds
        try:
            model = Model.FromString((path / MODEL).read_bytes())
        except OSError as error:
            raise unreadable(path / MODEL, error) from error
        except DecodeError as error:
            raise _damaged(path, "cannot be read as a Core ML model") from error
        if not model.HasField("mlProgram"):
            raise _damaged(path, "holds no ML Program")
        self._file = WeightFile(path / WEIGHTS)
        self._weights: dict[tuple[int, ...], Weight] = {}
        self.metadata = dict(model.description.metadata.userDefined)
        self.functions = {
            name: Function(self, message) for name, message in model.mlProgram.functions.items()
        }

    @property
    def dense_bytes(self) -> int:
        """Of the float32 weights that stay in memory when all functions have run."""
        functions = self.functions.values()
        found = {id(weight): weight for f in functions for weight in f.whole.values()}
        return sum(4 * math.prod(weight.shape) for weight in found.values())

    def new_states(self) -> States:
        """Zeros, as a runtime makes them."""
        function = next(iter(self.functions.values()))
        return {name: np.zeros(shape, np.float32) for name, shape in function.states.items()}

    def run(
        self, function: str, inputs: Mapping[str, np.ndarray], states: States | None = None
    ) -> dict[str, np.ndarray]:
        """One call of a function, or several at once; `states` are changed."""
        return self.functions[function].run(inputs, {} if states is None else states)

    def constant(self, value: Any) -> Any:
        """What a `const` holds: an array, a string, or a `Weight`."""
        tensor = value.type.tensorType
        dtype, shape = _DTYPES[tensor.dataType], _shape(value.type)
        if value.HasField("blobFileValue"):
            if dtype is not DType.FLOAT16:
                raise self.unsupported(f"a weight of {dtype.name.lower()}")
            return self._weight(shape, value.blobFileValue.offset)
        held = value.immediateValue.tensor
        if dtype is DType.STRING:
            return held.strings.values[0]
        if dtype is DType.BOOL:
            content: Any = np.array(held.bools.values, np.bool_)
        elif dtype is DType.INT32:
            content = np.array(held.ints.values, np.int32)
        else:
            content = np.frombuffer(held.bytes.values, _NUMPY[dtype])
        array = _as_float(content.reshape(shape))
        return array if shape or dtype is DType.FLOAT16 else array.item()

    def palettized(self, indices: Any, tables: Any) -> Weight:
        """A weight as indices into tables, each of which is for a group of rows."""
        shape, groups = _shape(indices.type), _shape(tables.type)
        dtype = _DTYPES[indices.type.tensorType.dataType]
        ones = (1,) * (len(shape) - 1)
        if groups != (groups[0], *ones, 1 << dtype.bits, 1) or shape[0] % groups[0]:
            raise self.unsupported(f"tables of the shape {list(groups)}")
        return self._weight(
            shape, indices.blobFileValue.offset, dtype, (tables.blobFileValue.offset, groups[0])
        )

    def _weight(
        self,
        shape: tuple[int, ...],
        offset: int,
        dtype: DType = DType.FLOAT16,
        tables: tuple[int, int] | None = None,
    ) -> Weight:
        """One for each place in the file, so that functions share it."""
        key = (offset, *(tables or ()))
        if key not in self._weights:
            weight = Weight(shape, self._file.record(offset, dtype, math.prod(shape)), dtype.bits)
            if tables is not None:
                at, groups = tables
                halves = self._file.record(at, DType.FLOAT16, groups << dtype.bits)
                weight.tables = halves.view(np.float16).astype(np.float32).reshape(groups, -1)
            self._weights[key] = weight
        return self._weights[key]

    def unsupported(self, what: str) -> UnsupportedError:
        """For what `converter.coreml` does not write."""
        return UnsupportedError(
            str(self.path),
            f"has {what}, which the interpreter does not know",
            "convert the model with litert-lm-cli convert --target coreml",
        )


def _in_place(steps: Sequence[_Step], outputs: Sequence[str]) -> list[_Step]:
    """Let caches be written where they are: copies of all of them would take most of the time.

    A state that is read, changed in one place by `slice_update` and written back is one step, if
    nothing else uses the values between. What is read otherwise is the state's own array, unless
    it is still in use when that is written to again.
    """
    uses = Counter(name for step in steps for name in step.names)
    uses.update(outputs)
    made_at = {step.output: i for i, step in enumerate(steps)}

    def source(name: str | tuple[str, ...], kind: str) -> int | None:
        """Which step makes a value, if it is of this kind and made for one use."""
        at = made_at.get(str(name))
        return at if at is not None and steps[at].kind == kind and uses[str(name)] == 1 else None

    found: list[_Step | None] = list(steps)
    for i, step in enumerate(steps):
        if step.kind != "write_state":
            continue
        update = source(step.inputs["data"], "slice_update")
        read = None if update is None else source(steps[update].inputs["x"], "read_state")
        if update is None or read is None or steps[read].state != step.state:
            continue
        if not any(other.writes(step.state) for other in steps[read + 1 : i]):
            where = {name: value for name, value in steps[update].inputs.items() if name != "x"}
            found[read] = found[update] = None
            found[i] = _Step(_UPDATE_STATE, where, None, step.state)
    result = [step for step in found if step is not None]
    for i, step in enumerate(result):
        if step.kind == "read_state" and _is_overwritten(step, result[i + 1 :], outputs):
            step.kind = _COPY_STATE
    return result


def _is_overwritten(read: _Step, after: Sequence[_Step], outputs: Sequence[str]) -> bool:
    """Whether a state is written to while what was read of it is still in use."""
    views = {read.output}
    is_written = False
    for step in after:
        if views.intersection(step.names):
            if is_written:
                return True
            if step.kind in _VIEWS:
                views.add(step.output)
        is_written = is_written or step.writes(read.state)
    return not views.isdisjoint(outputs)


def _freeing(
    steps: Sequence[_Step], constants: Mapping[str, Any], outputs: Sequence[str]
) -> list[_Step]:
    """Steps that say which values are used for the last time."""
    needed = {*constants, *outputs}
    for step in reversed(steps):
        made = {*step.names, *([step.output] if step.output else ())}
        step.dead = tuple(made - needed)
        needed |= made
    return list(steps)


def _shape(value_type: Any) -> Any:
    return tuple(
        size.constant.size if size.HasField("constant") else None
        for size in value_type.tensorType.dimensions
    )


def _check_shape(name: str, value: np.ndarray, shape: tuple[int | None, ...]) -> None:
    last = value.shape[value.ndim - len(shape) :]
    is_so = 0 <= value.ndim - len(shape) <= 1 and all(
        wanted in (None, size) for wanted, size in zip(shape, last, strict=True)
    )
    if not is_so:
        raise ValueError(f"{name} is {value.shape}, the function takes {shape}")


def _as_float(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _rounded(values: np.ndarray) -> np.ndarray:
    """The nearest float16 numbers, as float32, but for the sign of zeros.

    In a quarter of the time that numpy's own float16 takes. Beside 1.5 times 2^13 of its own power
    of two, float32 has as many digits left of a number as float16 has.
    """
    if values.dtype.kind != "f":  # positions
        return values
    exponents = values.view(np.uint32) & _EXPONENT
    np.clip(exponents, *_EXPONENTS, out=exponents)
    exponents += _THIRTEEN
    beside = exponents.view(np.float32)
    beside *= 1.5
    rounded = values + beside
    rounded -= beside
    rounded *= _TO_THE_END  # beyond float16 is now beyond float32
    rounded /= _TO_THE_END
    return rounded


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(str(path), why, "convert the model again")
