"""The protobuf messages of a Core ML model that is an ML Program, as far as we write them.

Names and numbers are those of Apple's format (Model.proto, FeatureTypes.proto, MIL.proto of
coremltools). They stand here as a table, since the package that has the generated classes is for
macOS and Linux on x86 alone, and takes a second to import. `tests/converter/coreml/test_schema.py`
holds them against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "coreml"

# Message -> its fields: number, type, name. `*` is repeated; `map` has strings for keys.
_MESSAGES = {
    # Model.proto
    "Model": """
        1 int32 specificationVersion
        2 ModelDescription description
        502 Program mlProgram""",
    "ModelDescription": """
        1 FeatureDescription* input
        10 FeatureDescription* output
        13 FeatureDescription* state
        20 FunctionDescription* functions
        21 string defaultFunctionName
        100 Metadata metadata""",
    "FunctionDescription": """
        1 string name
        2 FeatureDescription* input
        3 FeatureDescription* output
        6 FeatureDescription* state""",
    "FeatureDescription": """
        1 string name
        2 string shortDescription
        3 FeatureType type""",
    "Metadata": """
        1 string shortDescription
        2 string versionString
        3 string author
        4 string license
        100 map<string> userDefined""",
    # FeatureTypes.proto
    "FeatureType": """
        5 ArrayFeatureType multiArrayType
        8 StateFeatureType stateType""",
    "ArrayFeatureType": """
        1 int64* shape
        2 int32 dataType
        21 EnumeratedShapes enumeratedShapes""",
    "EnumeratedShapes": "1 Shape* shapes",
    "Shape": "1 int64* shape",
    "StateFeatureType": "1 ArrayFeatureType arrayType",
    # MIL.proto
    "Program": """
        1 int64 version
        2 map<Function> functions
        4 map<Value> attributes""",
    "Function": """
        1 NamedValueType* inputs
        2 string opset
        3 map<Block> block_specializations""",
    "Block": """
        2 string* outputs
        3 Operation* operations""",
    "Operation": """
        1 string type
        2 map<Argument> inputs
        3 NamedValueType* outputs
        5 map<Value> attributes""",
    "Argument": "1 Binding* arguments",
    "Binding": """
        1 string name
        2 Value value""",
    "NamedValueType": """
        1 string name
        2 ValueType type""",
    "ValueType": """
        1 TensorType tensorType
        5 StateType stateType""",
    "StateType": "1 ValueType wrappedType",
    "TensorType": """
        1 int32 dataType
        2 int64 rank
        3 Dimension* dimensions""",
    "Dimension": """
        1 ConstantDimension constant
        2 UnknownDimension unknown""",
    "ConstantDimension": "1 uint64 size",
    "UnknownDimension": "1 bool variadic",
    "Value": """
        2 ValueType type
        3 ImmediateValue immediateValue
        5 BlobFileValue blobFileValue""",
    "ImmediateValue": "1 TensorValue tensor",
    "TensorValue": """
        2 Ints ints
        3 Bools bools
        4 Strings strings
        7 Bytes bytes""",
    "Ints": "1 int32* values",
    "Bools": "1 bool* values",
    "Strings": "1 string* values",
    "Bytes": "1 bytes values",
    "BlobFileValue": """
        1 string fileName
        2 uint64 offset""",
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
}


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, kind: str, name: str) -> None:
    field = message.field.add(name=name, number=int(number))
    inner = kind.removeprefix("map<").rstrip(">*")
    field.label = _Field.LABEL_OPTIONAL if kind == inner else _Field.LABEL_REPEATED
    if kind.startswith("map"):
        entry = message.nested_type.add(
            name="".join(part.title() for part in name.split("_")) + "Entry"
            if "_" in name
            else f"{name[0].upper()}{name[1:]}Entry"
        )
        entry.options.map_entry = True
        _add_field(entry, "1", "string", "key")
        _add_field(entry, "2", inner, "value")
        inner = f"{message.name}.{entry.name}"
    if inner in _SCALARS:
        field.type = _SCALARS[inner]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{inner}"


def _fields(lines: str) -> Iterator[list[str]]:
    return (line.split() for line in lines.strip().splitlines())


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="coreml.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, lines in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, kind, field in _fields(lines):
            _add_field(message, number, kind, field)
    pool = descriptor_pool.DescriptorPool()  # its own: coremltools may be there, too
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
Model = _CLASSES["Model"]
FeatureDescription = _CLASSES["FeatureDescription"]
FunctionDescription = _CLASSES["FunctionDescription"]
Operation = _CLASSES["Operation"]
Value = _CLASSES["Value"]
ValueType = _CLASSES["ValueType"]
