"""What must hold of a `.mlpackage` and coremltools' loader does not check.

The loader infers the type of every operation's result anew, and finds every record of the weight
file. It does not look at the model's description, at which function is the default, at the types
that constants and tables say they have, at names of operations, or at the type of an epsilon.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# DataType of MIL.proto -> bits, number in a record of the weight file, ArrayDataType.
_TYPES = {
    1: (8, None, None),  # bool
    2: (0, None, None),  # string
    10: (16, 1, 65552),  # float16
    22: (16, 6, None),  # int16
    23: (32, 14, 131104),  # int32
    31: (8, 3, None),  # uint8
    32: (16, 7, None),  # uint16
    35: (4, 11, None),  # uint4
    36: (2, 10, None),
    37: (1, 9, None),
    38: (6, 13, None),
    39: (3, 12, None),
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_@]*")

Shape = tuple[int | None, ...]
Type = tuple[int, Shape]


def check_package(folder: Path) -> None:
    """Every check, on a folder."""
    import coremltools

    model = coremltools.utils.load_spec(str(folder))
    check_model(model, (folder / "Data/com.apple.CoreML/weights/weight.bin").read_bytes())


def check_model(model: Any, weights: bytes) -> None:
    """Every check, on coremltools' own message and the content of its weight file.

    Raises:
        AssertionError: one fails.
    """
    program, description = model.mlProgram, model.description
    assert model.specificationVersion == 9
    assert program.version == 1
    if description.functions:
        assert not description.input
        assert not description.output
        assert not description.state
        described = {one.name: one for one in description.functions}
        assert len(described) == len(description.functions)
        assert description.defaultFunctionName == description.functions[0].name
    else:
        assert not description.defaultFunctionName
        described = {"main": description}
    assert set(program.functions) == set(described)
    for name, function in program.functions.items():
        assert list(function.block_specializations) == [function.opset] == ["CoreML8"]
        _Function(function, described[name], weights).check()
    records = {blob.offset for blob in _blobs(program)}
    assert records == set(_record_offsets(weights)), "records that nobody names"


class _Function:
    def __init__(self, function: Any, description: Any, weights: bytes) -> None:
        self.function = function
        self.block = function.block_specializations[function.opset]
        self.description = description
        self.weights = weights
        self.types: dict[str, Type] = {}
        self.states: set[str] = set()

    def check(self) -> None:
        inputs = []
        for one in self.function.inputs:
            assert _IDENTIFIER.fullmatch(one.name), one.name
            is_state = one.type.HasField("stateType")
            inner = one.type.stateType.wrappedType if is_state else one.type
            self.add(one.name, _type(inner))
            (self.states.add if is_state else inputs.append)(one.name)
        for op in self.block.operations:
            self.check_operation(op)
        used = {
            op.inputs["input"].arguments[0].name
            for op in self.block.operations
            if op.type in ("read_state", "write_state")
        }
        assert used == self.states, "a state that is not used"
        self.check_described(self.description.input, inputs)
        self.check_described(self.description.state, sorted(self.states))
        self.check_described(self.description.output, list(self.block.outputs))

    def add(self, name: str, found: Type) -> None:
        assert _IDENTIFIER.fullmatch(name), name
        assert name not in self.types, f"two values are named {name}"
        self.types[name] = found

    def check_operation(self, op: Any) -> None:
        kind = op.type
        label = op.attributes["name"].immediateValue.tensor.strings.values
        assert len(label) == 1, kind
        assert label[0], kind
        given: dict[str, list[Type]] = {}
        for name, argument in op.inputs.items():
            assert argument.arguments, (kind, name)
            given[name] = []
            for one in argument.arguments:
                is_value = one.HasField("value")
                assert is_value or one.name in self.types, (kind, name, "is not made before")
                given[name].append(self.value(one.value) if is_value else self.types[one.name])
        results = [(one.name, _type(one.type)) for one in op.outputs]
        for name, found in results:
            self.add(name, found)
        if kind == "const":
            assert self.value(op.attributes["val"]) == results[0][1], "a constant of another type"
        elif kind == "constexpr_lut_to_dense":
            check_palette(given["indices"][0], given["lut"][0], results[0][1])
        elif "epsilon" in given:
            assert given["epsilon"][0] == (given["x"][0][0], ()), "an epsilon of another type"
        elif kind == "write_state":
            assert given["input"] == given["data"]

    def value(self, value: Any) -> Type:
        """The type of a value, which its content has, too."""
        dtype, shape = _type(value.type)
        count = int(np.prod(shape))
        if value.HasField("blobFileValue"):
            bits, record, _ = _TYPES[dtype]
            blob = value.blobFileValue
            assert blob.fileName == "@model_path/weights/weight.bin"
            found = struct.unpack_from("<IIQQQ", self.weights, blob.offset)
            nbytes = -(-count * bits // 8)
            padding = nbytes * 8 - count * bits
            data = blob.offset + 64
            assert found == (0xDEADBEEF, record, nbytes, data, padding), "a record of another type"
            assert data + nbytes <= len(self.weights)
        else:
            tensor = value.immediateValue.tensor
            kind = tensor.WhichOneof("value")
            wanted = {1: "bools", 2: "strings", 23: "ints"}.get(dtype, "bytes")
            assert kind == wanted, (kind, wanted)
            held = getattr(tensor, kind).values
            assert len(held) == (count * _TYPES[dtype][0] // 8 if kind == "bytes" else count)
        return dtype, shape

    def check_described(self, features: Any, names: list[str]) -> None:
        found = {one.name: one for one in features}
        assert len(found) == len(features)
        assert sorted(found) == sorted(names), (sorted(found), sorted(names))
        for name, feature in found.items():
            array = feature.type.multiArrayType
            if name in self.states:
                array = feature.type.stateType.arrayType
            dtype, shape = self.types[name]
            assert array.dataType == _TYPES[dtype][2], name
            choice = [tuple(one.shape) for one in array.enumeratedShapes.shapes]
            if choice:  # the default first
                assert tuple(array.shape) == choice[0]
                assert all(map(_fits, choice, [shape] * len(choice))), name
            elif array.shape or None not in shape:
                assert _fits(tuple(array.shape), shape), (name, array.shape, shape)


def check_palette(indices: Type, tables: Type, result: Type) -> None:
    """Of types: `tables` is (groups, 1, .., 2^bits, 1), and groups divide."""
    bits = _TYPES[indices[0]][0]
    *groups, entries, width = tables[1]
    assert indices[0] in (31, 35, 36, 37, 38, 39)
    assert len(groups) == len(indices[1])
    assert (entries, width) == (1 << bits, 1)
    assert all(
        size % group == 0 and (i == 0 or group == 1)
        for i, (size, group) in enumerate(zip(indices[1], groups, strict=True))
    )
    assert result == (tables[0], indices[1])


def _type(value: Any) -> Type:
    tensor = value.tensorType
    assert tensor.rank == len(tensor.dimensions)
    assert tensor.dataType in _TYPES
    return tensor.dataType, tuple(
        one.constant.size if one.HasField("constant") else None for one in tensor.dimensions
    )


def _fits(shape: Shape, declared: Shape) -> bool:
    return len(shape) == len(declared) and all(
        wanted in (size, None) for size, wanted in zip(shape, declared, strict=True)
    )


def _blobs(program: Any) -> Iterator[Any]:
    for function in program.functions.values():
        for op in function.block_specializations[function.opset].operations:
            values = list(op.attributes.values())
            for argument in op.inputs.values():
                values += [one.value for one in argument.arguments if one.HasField("value")]
            yield from (one.blobFileValue for one in values if one.HasField("blobFileValue"))


def _record_offsets(weights: bytes) -> Iterator[int]:
    count, version = struct.unpack_from("<II", weights)
    assert version == 2
    end = 64
    for _ in range(count):
        at = -(-end // 64) * 64
        yield at
        (nbytes,) = struct.unpack_from("<Q", weights, at + 8)
        end = at + 64 + nbytes
    assert end == len(weights), "the file ends elsewhere"


def interface(model: Any) -> Mapping[str, Any]:
    """A model's functions: inputs, outputs and states by name, each [type, shape], as described.

    Beside them how often each operation is there, without constants.
    """
    found = {}
    several = {one.name: one for one in model.description.functions}
    for name, function in model.mlProgram.functions.items():
        described = several.get(name, model.description)
        ops: dict[str, int] = {}
        for op in function.block_specializations[function.opset].operations:
            if op.type != "const":
                ops[op.type] = ops.get(op.type, 0) + 1
        found[name] = {
            "input": {one.name: _array(one.type.multiArrayType) for one in described.input},
            "output": {one.name: _array(one.type.multiArrayType) for one in described.output},
            "state": {one.name: _array(one.type.stateType.arrayType) for one in described.state},
            "ops": dict(sorted(ops.items())),
        }
    return found


def _array(array: Any) -> list[Any]:
    choice = [list(one.shape) for one in array.enumeratedShapes.shapes]
    return [array.dataType, list(array.shape), *([choice] if choice else [])]
