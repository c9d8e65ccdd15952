"""A `.mlpackage`: the folder that holds a model's message and its weights.

Source: coremltools' ModelPackage, file format 1.0.0.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from converter.coreml.blob import DType
from converter.coreml.program import Function, Tensor
from converter.coreml.schema import FeatureDescription, Model

SPECIFICATION_VERSION = 9  # iOS 18, macOS 15
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MANIFEST = "Manifest.json"

# FeatureTypes.proto's ArrayDataType.
_ARRAY_TYPES = {DType.FLOAT16: 65552, DType.INT32: 131104}


def model_message(
    functions: Sequence[Function],
    metadata: Mapping[str, str],
    shapes: Mapping[str, Sequence[Sequence[int]]],
    described: Mapping[str, Sequence[int]],
) -> bytes:
    """The model: one function is `main`; of several, the first is the default.

    Args:
        metadata: what others may want to know, by name.
        shapes: of inputs that may have one of several shapes, the default first.
        described: shapes that descriptions of outputs give in place of the true ones.
    """
    model = Model(specificationVersion=SPECIFICATION_VERSION)
    model.mlProgram.version = 1
    for function in functions:
        function.write(model.mlProgram.functions[function.name])
    description = model.description
    for name, value in metadata.items():
        description.metadata.userDefined[name] = value
    if len(functions) == 1:
        _describe(description, functions[0], shapes, described)
    else:
        description.defaultFunctionName = functions[0].name
        for function in functions:
            target = description.functions.add(name=function.name)
            _describe(target, function, shapes, described)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def manifest(model: bytes) -> bytes:
    """Which file is what, under names made from the content.

    In the very bytes in which coremltools writes it anew whenever it opens a package.
    """
    root, weights = (
        str(uuid.UUID(bytes=hashlib.sha256(part + model).digest()[:16], version=4))
        for part in (b"model", b"weights")
    )
    entries = {
        root: ("CoreML Model Specification", "model.mlmodel", "com.apple.CoreML/model.mlmodel"),
        weights: ("CoreML Model Weights", "weights", "com.apple.CoreML/weights"),
    }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            key: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": path,
            }
            for key, (description, name, path) in entries.items()
        },
        "rootModelIdentifier": root,
    }
    return json.dumps(content, indent=4, sort_keys=True).encode() + b"\n"


def _describe(
    target: Any,
    function: Function,
    shapes: Mapping[str, Sequence[Sequence[int]]],
    described: Mapping[str, Sequence[int]],
) -> None:
    for tensor in function.inputs:
        choice = shapes.get(tensor.name)
        feature = _feature(tensor, choice[0] if choice else tensor.shape)
        for shape in choice or ():
            feature.type.multiArrayType.enumeratedShapes.shapes.add(shape=shape)
        target.input.append(feature)
    for tensor in function.outputs:
        target.output.append(_feature(tensor, described.get(tensor.name, tensor.shape)))
    for tensor in function.states:
        state = FeatureDescription(name=tensor.name)
        state.type.stateType.arrayType.CopyFrom(_feature(tensor, tensor.shape).type.multiArrayType)
        target.state.append(state)


def _feature(tensor: Tensor, shape: Sequence[int | None]) -> Any:
    feature = FeatureDescription(name=tensor.name)
    array = feature.type.multiArrayType
    array.shape.extend(shape)
    array.dataType = _ARRAY_TYPES[tensor.dtype]
    return feature
