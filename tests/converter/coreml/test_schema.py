"""Our messages against the classes that coremltools has of the same format."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from converter.coreml import schema

# What stands inside another message there.
_INSIDE = {
    "Shape": ("ArrayFeatureType", "Shape"),
    "EnumeratedShapes": ("ArrayFeatureType", "EnumeratedShapes"),
    "Binding": ("Argument", "Binding"),
    "ConstantDimension": ("Dimension", "ConstantDimension"),
    "UnknownDimension": ("Dimension", "UnknownDimension"),
    "ImmediateValue": ("Value", "ImmediateValue"),
    "BlobFileValue": ("Value", "BlobFileValue"),
    "Ints": ("TensorValue", "RepeatedInts"),
    "Bools": ("TensorValue", "RepeatedBools"),
    "Strings": ("TensorValue", "RepeatedStrings"),
    "Bytes": ("TensorValue", "RepeatedBytes"),
}


def theirs(name: str) -> Any:
    """coremltools' descriptor of a message."""
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

    outer, *inner = _INSIDE.get(name, (name,))
    files = (Model_pb2, FeatureTypes_pb2, MIL_pb2)
    found = [file.DESCRIPTOR.message_types_by_name.get(outer) for file in files]
    (message,) = [one for one in found if one is not None]
    for part in inner:
        message = message.nested_types_by_name[part]
    return message


def described(field: FieldDescriptor) -> tuple[Any, ...]:
    """Everything that its bytes depend on; those of an enumeration are those of its number."""
    kind = field.type
    if kind == FieldDescriptor.TYPE_ENUM:
        kind = FieldDescriptor.TYPE_INT32
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    entry = tuple(map(described, field.message_type.fields)) if is_map else ()
    return field.name, field.number, kind, field.is_repeated, is_map, entry


OURS = schema.Model.DESCRIPTOR.file.message_types_by_name


@pytest.mark.parametrize("name", OURS)
def test_a_message_has_the_fields_of_the_format(name: str) -> None:
    other = theirs(name)
    for field in OURS[name].fields:
        assert described(field) == described(other.fields_by_number[field.number])
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = theirs(field.message_type.name)
            assert inner == other.fields_by_number[field.number].message_type


def test_what_is_written_is_read_by_coremltools() -> None:
    from coremltools.proto import Model_pb2

    model = schema.Model(specificationVersion=9)
    model.description.metadata.userDefined["a"] = "b"
    function = model.mlProgram.functions["main"]
    value = function.block_specializations["CoreML8"].operations.add().attributes["val"]
    value.immediateValue.tensor.ints.values.extend([1, -2])
    dimension = value.type.tensorType.dimensions.add()
    dimension.unknown.SetInParent()
    other = Model_pb2.Model.FromString(model.SerializeToString())
    assert other.specificationVersion == 9
    assert other.description.metadata.userDefined == {"a": "b"}
    (op,) = other.mlProgram.functions["main"].block_specializations["CoreML8"].operations
    assert op.attributes["val"].immediateValue.tensor.ints.values == [1, -2]
    (dimension,) = op.attributes["val"].type.tensorType.dimensions
    assert dimension.WhichOneof("dimension") == "unknown"
