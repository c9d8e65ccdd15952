"""Reads Core ML packages, ours or anybody's: functions, how weights are stored, meta.yaml.

The files are hostile input: whatever is wrong with them ends in a `SourceError`. Of the weights no
more than the heads of records is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from converter.checkpoint.files import files_below, status_of, unreadable
from converter.coreml.blob import ALIGNMENT, RECORD_HEAD, SENTINEL
from converter.coreml.meta import META
from converter.coreml.package import MANIFEST
from converter.coreml.program import WEIGHT_FILE
from converter.coreml.schema import Model
from converter.errors import SourceError

ENDING = ".mlpackage"
COMPILED = ".mlmodelc"
_LARGEST = {MANIFEST: 1 << 20, META: 1 << 16, "model": 1 << 28}  # bytes that are read of a file
_IN_PROGRAM = "@model_path/"
_ENTRY = re.compile(r"[^/\\.][^/\\]*")  # of a folder, no hidden one
_MOST_CHUNKS = 99  # as names have two digits

# MIL.proto's DataType -> name, number in a record of the weight file, bits. More than we write.
_TYPES = {
    1: ("bool", None, 8), 2: ("string", None, 0), 10: ("float16", 1, 16), 11: ("float32", 2, 32),
    12: ("float64", None, 64), 13: ("bfloat16", 5, 16), 21: ("int8", 4, 8), 22: ("int16", 6, 16),
    23: ("int32", 14, 32), 24: ("int64", None, 64), 25: ("int4", 8, 4), 31: ("uint8", 3, 8),
    32: ("uint16", 7, 16), 33: ("uint32", 15, 32), 34: ("uint64", None, 64), 35: ("uint4", 11, 4),
    36: ("uint2", 10, 2), 37: ("uint1", 9, 1), 38: ("uint6", 13, 6), 39: ("uint3", 12, 3),
    40: ("float8e4m3fn", 16, 8), 41: ("float8e5m2", 17, 8),
}  # fmt: skip


@dataclass(frozen=True)
class TensorSummary:
    """An input, an output or a state.

    Attributes:
        shape: None is any size.
        choices: the shapes that an input may have, where these are listed.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    choices: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class FunctionSummary:
    """A function of a package."""

    name: str
    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    states: tuple[TensorSummary, ...]


@dataclass(frozen=True)
class Storage:
    """How some weights are stored.

    Attributes:
        kind: `matrices`; `vectors`, which are norms and biases; or `rope tables`.
        dtype: of what is read.
        operation: what makes it of what is stored, where that is something else.
        bits: of an index into a table, where there are tables.
        group: rows that share a table; 0 for all.
    """

    kind: str
    dtype: str
    operation: str | None = None
    bits: int | None = None
    group: int | None = None


@dataclass(frozen=True)
class PackageSummary:
    """A `.mlpackage`.

    Attributes:
        nbytes: of all its files.
        functions: the default first.
        counts, weight_bytes: how many weights are stored so, and the bytes that they take; what
            functions share is counted once.
    """

    path: Path
    nbytes: int
    specification: int
    metadata: Mapping[str, str]
    functions: tuple[FunctionSummary, ...]
    counts: Mapping[Storage, int]
    weight_bytes: Mapping[Storage, int]


@dataclass(frozen=True)
class Meta:
    """What meta.yaml tells runtimes, as far as it is names and numbers."""

    name: str
    parameters: Mapping[str, Any]

    @property
    def scheme(self) -> str:
        """`fp16/lut4/lut6`: how embedding, layers and head are stored; once where all are alike."""
        layers = "lut_bits" if "monolithic_model" in self.parameters else "lut_ffn"
        bits = [self.parameters.get(key) for key in ("lut_embeddings", layers, "lut_lmhead")]
        names = [f"lut{each}" if isinstance(each, int) else "fp16" for each in bits]
        return names[0] if len(set(names)) == 1 else "/".join(names)

    @property
    def context(self) -> int | None:
        """Positions that a chat may have."""
        found = self.parameters.get("context_length")
        return found if isinstance(found, int) else None

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of its packages, without endings, in the order in which a token goes through them.

        It has them as compiled, and of chunks the first alone. Empty where it does not say them.
        """
        said = self.parameters
        if "monolithic_model" in said:
            names = [said["monolithic_model"]]
        else:
            first, count = said.get("ffn"), said.get("num_chunks")
            if not isinstance(first, str) or not isinstance(count, int):
                return ()
            count = min(count, _MOST_CHUNKS)
            chunks = [re.sub(r"_chunk_\d+of", f"_chunk_{i + 1:02}of", first) for i in range(count)]
            names = [said.get("embeddings"), *chunks, said.get("lm_head")]
        if not all(isinstance(name, str) and _ENTRY.fullmatch(name) for name in names):
            return ()
        return tuple(name.removesuffix(COMPILED) for name in names)


def read_meta(folder: Path) -> Meta:
    """The meta.yaml of a folder of packages.

    Raises:
        SourceError: it is missing or damaged.
    """
    import yaml

    path = folder / META
    content = _content(path, META)
    with _refusing(path, "it is not what ANEMLL's runtimes read", yaml.YAMLError):
        about = yaml.safe_load(content)["model_info"]
        parameters = {str(key): _plain(value) for key, value in about["parameters"].items()}
        return Meta(str(_plain(about.get("name", folder.name))), parameters)


def packages_of(folder: Path, meta: Meta) -> list[Path]:
    """Its packages, in the order in which a token goes through them, and then any others there.

    One that is there compiled alone is named so.

    Raises:
        SourceError: meta.yaml names one that is missing, or the folder cannot be read.
    """
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from error
    found: dict[str, None] = {}
    for name in meta.packages:
        there = [name + ending for ending in (ENDING, COMPILED) if name + ending in entries]
        if not there:
            raise SourceError(
                str(folder / f"{name}{ENDING}"),
                f"it is missing, and {META} names it",
                "convert the model again",
            )
        found[there[0]] = None
    others = [name for name in entries if name.endswith(ENDING) and not name.startswith(".")]
    return [folder / name for name in found | dict.fromkeys(others)]


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder.

    Raises:
        SourceError: it cannot be read.
    """
    return sum(files_below(folder).values())


def read_package(folder: Path) -> PackageSummary:
    """A `.mlpackage`: its functions, and how its weights are stored.

    Raises:
        SourceError: it is none, or a damaged one.
    """
    refuse_compiled(folder)
    content = _content(folder / MANIFEST, MANIFEST)
    with _refusing(folder / MANIFEST, "it names no model"):
        listed = json.loads(content)
        inside = PurePosixPath(listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"])
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError("it is elsewhere")
        path = folder / "Data" / inside
    content = _content(path, "model")
    with _refusing(path, "it is no model of Core ML's"):
        model = Model.FromString(content)
    if not model.HasField("mlProgram"):
        raise SourceError(
            str(path),
            "it is a model of Core ML's, but no ML Program",
            "pass one for iOS 15 or later",
        )
    with _refusing(path, "its program cannot be read"):
        weights = _Weights(path.parent / WEIGHT_FILE.removeprefix(_IN_PROGRAM))
        with weights.opened():
            functions = _functions(model, weights)
    return PackageSummary(
        folder,
        folder_bytes(folder),
        model.specificationVersion,
        dict(sorted(model.description.metadata.userDefined.items())),
        functions,
        weights.counts,
        weights.nbytes,
    )


def refuse_compiled(package: Path) -> None:
    """Raise SourceError for a `.mlmodelc`."""
    if package.suffix == COMPILED:
        raise SourceError(
            str(package), "it is compiled, for Apple's systems alone", "pass what it was made of"
        )


def _functions(model: Any, weights: _Weights) -> tuple[FunctionSummary, ...]:
    description = model.description
    inputs_of = {one.name: one.input for one in description.functions}
    inputs_of = inputs_of or {"main": description.input}
    functions = dict(model.mlProgram.functions)
    order = {
        name: i for i, name in enumerate([*inputs_of, *sorted(functions.keys() - inputs_of.keys())])
    }
    order[description.defaultFunctionName] = -1
    found = []
    for name in sorted(functions, key=lambda name: order[name]):
        function = functions[name]
        [block] = [
            block
            for opset, block in function.block_specializations.items()
            if opset == function.opset
        ]
        types = {one.name: one.type for one in function.inputs}
        states = [one.name for one in function.inputs if one.type.HasField("stateType")]
        constants = {}
        for operation in block.operations:
            types |= {one.name: one.type for one in operation.outputs}
            if operation.type == "const" and operation.outputs:
                constants[operation.outputs[0].name] = operation.attributes["val"]
            weights.count(operation, constants)
        inputs = [one.name for one in function.inputs if one.name not in states]
        described = {one.name: one.type for one in inputs_of.get(name, ())}
        groups = [
            tuple(TensorSummary(n, *_type(types[n]), _choices(described.get(n))) for n in names)
            for names in (inputs, block.outputs, states)
        ]
        found.append(FunctionSummary(name, *groups))
    return tuple(found)


def _choices(described: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes that a description lists for an input."""
    if described is None:
        return ()
    return tuple(tuple(one.shape) for one in described.multiArrayType.enumeratedShapes.shapes)


class _Weights:
    """The weights that functions name, each counted once."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[Storage] = Counter()
        self.nbytes: Counter[Storage] = Counter()
        self._path = path
        self._file: BinaryIO | None = None
        self._end = 0
        self._seen: set[tuple[int, ...]] = set()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around `count`; a package whose values all stand in its program has no such file."""
        status = status_of(self._path)
        if status is None or not stat.S_ISREG(status.st_mode):
            yield
            return
        self._end = status.st_size
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise unreadable(self._path, error) from error
        with self._file:
            yield

    def count(self, operation: Any, constants: Mapping[str, Any]) -> None:
        """Count an operation that makes a weight of what is stored."""
        if operation.type == "const":
            values = {"val": operation.attributes["val"]}
        elif operation.type.startswith("constexpr_"):
            values = {
                name: binding.value if binding.HasField("value") else constants[binding.name]
                for name, argument in operation.inputs.items()
                for binding in argument.arguments
            } | {name: value for name, value in operation.attributes.items() if name != "name"}
        else:
            return
        blobs = {name: one for name, one in values.items() if one.HasField("blobFileValue")}
        places = tuple(sorted(one.blobFileValue.offset for one in blobs.values()))
        if not blobs or places in self._seen:
            return
        self._seen.add(places)
        [output] = operation.outputs
        storage = _storage(operation.type, output, values)
        self.counts[storage] += 1
        self.nbytes[storage] += sum(self._record_bytes(one) for one in blobs.values())

    def _record_bytes(self, value: Any) -> int:
        """Of a record's data, which must be there in the type and size that the program says.

        Raises:
            SourceError: it is not.
            ValueError: the program says what cannot be.
        """
        place = value.blobFileValue
        shape, name = _type(value.type)
        _, number, bits = _TYPES[value.type.tensorType.dataType]
        wanted = -(-math.prod(size or 0 for size in shape) * bits // 8)
        if place.fileName != WEIGHT_FILE or number is None:
            raise ValueError(f"there is no file of weights with {name}")
        if self._file is None:
            raise _damaged(self._path, "it is missing, and the program has weights in it")
        head = b""
        if place.offset < self._end:
            try:
                self._file.seek(place.offset)
                head = self._file.read(ALIGNMENT)
            except OSError as error:
                raise unreadable(self._path, error) from error
        start = place.offset + ALIGNMENT
        if len(head) == ALIGNMENT:
            sentinel, dtype, nbytes, start, _ = RECORD_HEAD.unpack(head)
            if (sentinel, dtype, nbytes) != (SENTINEL, number, wanted):
                what = f"{wanted} bytes of {name} at {place.offset}"
                raise _damaged(self._path, f"it has no {what}, as the program says")
        if start + wanted > self._end:
            where = f"in or before the record at {place.offset}"
            raise _damaged(self._path, f"it ends after {self._end} bytes, {where}")
        return wanted


def _storage(operation: str, output: Any, values: Mapping[str, Any]) -> Storage:
    shape, dtype = _type(output.type)
    kind = "matrices" if sum(size != 1 for size in shape) > 1 else "vectors"
    if output.name.startswith("rope_"):
        kind = "rope tables"
    if operation == "const":
        return Storage(kind, dtype)
    if operation != "constexpr_lut_to_dense" or not {"indices", "lut"} <= values.keys():
        return Storage(kind, dtype, operation)
    tables, _ = _type(values["lut"].type)
    _, _, bits = _TYPES[values["indices"].type.tensorType.dataType]
    # Tables are (groups, 1, .., entries, 1), the groups along one of the axes of what is read.
    groups = [(size or 0) // (count or 1) for size, count in zip(shape, tables, strict=False)
              if count != 1]  # fmt: skip
    return Storage(kind, dtype, operation, bits, groups[0] if groups else 0)


def _type(message: Any) -> tuple[tuple[int | None, ...], str]:
    """Shape and type of elements; those of what a state holds."""
    if message.HasField("stateType"):
        message = message.stateType.wrappedType
    if not message.HasField("tensorType"):
        raise ValueError("it is no tensor")
    tensor = message.tensorType
    shape = tuple(
        one.constant.size if one.HasField("constant") else None for one in tensor.dimensions
    )
    name, _, _ = _TYPES[tensor.dataType]
    return shape, name


def _plain(value: Any) -> Any:
    """A name, a number or a list of these, as YAML has them.

    Raises:
        ValueError: it is something else, or of no sensible size.
    """
    if isinstance(value, list):
        return [_scalar(one) for one in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    if not isinstance(value, str | int | float | None):
        raise ValueError("it is neither name nor number")
    return value


def _content(path: Path, kind: str) -> bytes:
    """A file that must be there, of a size that makes sense."""
    status = status_of(path)
    if status is None or not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise SourceError(
            str(path),
            "it is missing" if status is None else "it is no file",
            f"pass a {ENDING} or a folder of them, as convert --target coreml makes",
        )
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST[kind] + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > _LARGEST[kind]:
        raise _damaged(path, f"it has more than {_LARGEST[kind]} bytes")
    return content


@contextmanager
def _refusing(path: Path, why: str, *more: type[Exception]) -> Iterator[None]:
    """Whatever a reader stumbles over in damaged bytes becomes one refusal."""
    from google.protobuf.message import DecodeError

    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        DecodeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
        *more,
    ) as error:
        raise _damaged(path, why) from error


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(str(path), f"damaged: {why}", "convert the model again")
