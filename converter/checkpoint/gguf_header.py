"""The head of a GGUF file: its metadata and its table of tensors.

Parsed here rather than with `gguf.GGUFReader`, which needs seconds for it (3.5 s for SmolLM2, 20 s
for Gemma 3) and maps the whole file: here it is one buffered pass.

The file is treated as hostile: every count and length is held against the bytes that are left
before anything is allocated for it.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.file_kinds import HEAD_BYTES, what_it_is
from converter.errors import SourceError, UnsupportedError

DAMAGED = "download the file again, or convert the model to GGUF again"
_MAX_HEADER = 1 << 28  # bytes; the largest vocabularies need under 40 MB
_MAX_KEYS = 1 << 16  # a real file has under a hundred
_MAX_TENSORS = 1 << 17
_MAX_DIMENSIONS = 4  # ggml's own limit

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class TensorType(NamedTuple):
    """How ggml stores a type: `block` elements in `size` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}
_UNSUPPORTED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


class Place(NamedTuple):
    """Where a tensor lies: the type's number, absolute offset and length in bytes."""

    type_id: int
    offset: int
    nbytes: int


class Header(NamedTuple):
    """What stands before the data: key-value pairs as they are, tensors and their places."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    places: dict[str, Place]


def read_header(stream: BinaryIO, path: str, size: int) -> Header:
    """Read the header at the start of `stream`, in time that follows the vocabulary's size.

    Args:
        stream: a buffered file, at its first byte.
        path: the file as the user knows it.
        size: its length in bytes.

    Raises:
        SourceError: the file is truncated or damaged.
        UnsupportedError: it is big-endian, version 1, or uses a type that is not supported.
    """
    return _HeaderReader(stream, path, size).read()


def first_keys(head: bytes, path: str) -> dict[str, Any]:
    """The key-value pairs that stand whole in the first bytes of a file.

    Raises:
        SourceError, UnsupportedError: it is no GGUF, or none that can be read.
    """
    reader = _HeaderReader(io.BytesIO(head), path, len(head))
    return reader.first_keys()


class _HeaderReader:
    """Reads a header front to back, never past the end of the file."""

    def __init__(self, stream: BinaryIO, path: str, size: int) -> None:
        self._read = stream.read
        self._path = path
        self._size = size
        self._end = min(size, _MAX_HEADER)
        self._position = 0

    def read(self) -> Header:
        tensor_count, key_count = self._preamble()
        metadata = self._metadata(key_count)
        tensors, places = self._tensor_table(tensor_count)
        alignment = self._alignment(metadata)
        start = -(-self._position // alignment) * alignment
        return Header(metadata, tensors, self._placed(places, start, alignment))

    def first_keys(self) -> dict[str, Any]:
        """The keys before the end of what there is."""
        _, count = self._preamble()
        metadata: dict[str, Any] = {}
        with contextlib.suppress(SourceError):
            for _ in range(count):
                key = self._string()
                metadata[key] = self._value(key)
        return metadata

    def _damaged(self, why: str) -> SourceError:
        return SourceError(self._path, why, DAMAGED)

    def _preamble(self) -> tuple[int, int]:
        """Check magic and version; return the counts of tensors and of keys."""
        magic = self._read(4)
        self._position = len(magic)
        if magic != b"GGUF":
            kind = what_it_is(magic + self._read(HEAD_BYTES - len(magic)))
            if kind is not None:
                raise SourceError(self._path, f"not a GGUF file but {kind.what}", kind.fix)
            raise SourceError(
                self._path,
                f"not a GGUF file: it starts with {magic!r}",
                "give a .gguf file or a Hugging Face model folder",
            )
        version = self._number("<I")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedError(
                self._path,
                "big-endian GGUF: only little-endian files are supported",
                "convert it with gguf_convert_endian.py of llama.cpp",
            )
        if version not in (2, 3):
            raise UnsupportedError(
                self._path,
                f"GGUF version {version}: only versions 2 and 3 are supported",
                "convert the model to GGUF again with a current llama.cpp",
            )
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
            raise self._damaged(f"it declares {tensor_count} tensors and {key_count} metadata keys")
        return tensor_count, key_count

    def _require(self, count: int) -> None:
        """Raise SourceError unless so many bytes are left."""
        if count > self._end - self._position:
            if self._end < self._size:
                raise self._damaged(f"its header is longer than {_MAX_HEADER >> 20} MiB")
            raise self._damaged(
                f"truncated: it ends at byte {self._size}, and {count} bytes are wanted from byte "
                f"{self._position} on"
            )

    def _take(self, count: int) -> bytes:
        self._require(count)
        data = self._read(count)
        if len(data) != count:
            raise self._damaged(f"ended early, at byte {self._position + len(data)}")
        self._position += count
        return data

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _string(self) -> str:
        data = self._take(self._number("<Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"text before byte {self._position} is not UTF-8") from None

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"metadata key {key!r:.80} appears twice")
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> Any:
        type_id = self._number("<I")
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array(key)
        return self._scalars(key, type_id, 1)[0].item()

    def _array(self, key: str) -> list[str] | np.ndarray:
        type_id, count = self._number("<I"), self._number("<Q")
        if type_id == _STRING:
            return self._strings(key, count)
        if type_id == _ARRAY:
            raise self._damaged(f"metadata key {key!r:.80} is an array of arrays")
        return self._scalars(key, type_id, count)

    def _scalars(self, key: str, type_id: int, count: int) -> np.ndarray:
        if type_id not in _SCALARS:
            raise self._damaged(f"metadata key {key!r:.80} has the unknown value type {type_id}")
        dtype = np.dtype(_SCALARS[type_id])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _strings(self, key: str, count: int) -> list[str]:
        """Read an array of strings; a vocabulary has 262144, so this loop is the header's cost."""
        self._require(8 * count)  # their lengths alone
        position, end, read = self._position, self._end, self._read
        strings: list[str] = []
        append, from_bytes = strings.append, int.from_bytes
        try:
            for _ in range(count):
                length = from_bytes(read(8), "little")
                position += 8 + length
                if position > end:
                    break
                append(read(length).decode())
        except UnicodeDecodeError:
            raise self._damaged(f"metadata key {key!r:.80} holds text that is not UTF-8") from None
        if len(strings) != count:
            raise self._damaged(
                f"truncated: it ends after {len(strings)} of {count} strings of metadata key "
                f"{key!r:.80}"
            )
        self._position = position
        return strings

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r:.80}, not a power of two")
        return alignment

    def _tensor_table(self, count: int) -> tuple[dict[str, TensorInfo], dict[str, Place]]:
        """Read the tensor table; offsets in it are relative to the start of the data."""
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, Place] = {}
        for _ in range(count):
            name = self._string()
            if name in tensors:
                raise self._damaged(f"tensor {name!r:.80} appears twice")
            shape = self._shape(name)
            type_id, offset = self._number("<I"), self._number("<Q")
            stored = self._tensor_type(name, type_id)
            if shape[-1] % stored.block:
                raise self._damaged(
                    f"tensor {name!r:.80} has rows of {shape[-1]}, not a multiple of "
                    f"{stored.name}'s block of {stored.block}"
                )
            elements = 1
            for dimension in shape:
                elements *= dimension
            nbytes = elements // stored.block * stored.size
            grid = stored.block if stored.name == "Q4_0" else None
            tensors[name] = TensorInfo(name, shape, stored.name, nbytes, grid)
            places[name] = Place(type_id, offset, nbytes)
        return tensors, places

    def _shape(self, name: str) -> tuple[int, ...]:
        """Read a shape and turn it rows first: the file stores the contiguous dimension first."""
        count = self._number("<I")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r:.80} has {count} dimensions")
        shape = struct.unpack(f"<{count}Q", self._take(8 * count))[::-1]
        if 0 in shape:
            raise self._damaged(f"tensor {name!r:.80} is empty: shape {shape}")
        return shape

    def _tensor_type(self, name: str, type_id: int) -> TensorType:
        if type_id not in TENSOR_TYPES:
            stored = _UNSUPPORTED_TYPES.get(type_id, f"type {type_id}")
            supported = ", ".join(kind.name for kind in TENSOR_TYPES.values())
            raise UnsupportedError(
                self._path,
                f"tensor {name!r:.80} is stored as {stored}: only {supported} are supported",
                "use a GGUF of this model in one of these types",
            )
        return TENSOR_TYPES[type_id]

    def _placed(self, places: dict[str, Place], start: int, alignment: int) -> dict[str, Place]:
        """Make offsets absolute; check that every tensor is aligned, inside the file and alone."""
        placed: dict[str, Place] = {}
        end, previous = start, ""
        for name, place in sorted(places.items(), key=lambda item: item[1].offset):
            offset = start + place.offset
            if place.offset % alignment:
                raise self._damaged(
                    f"tensor {name!r:.80} lies at {place.offset}, not a multiple of {alignment}"
                )
            if offset < end:
                raise self._damaged(f"tensors {previous!r:.80} and {name!r:.80} overlap")
            end, previous = offset + place.nbytes, name
            if end > self._size:
                raise self._damaged(
                    f"truncated: tensor {name!r:.80} ends at byte {end}, the file at {self._size}"
                )
            placed[name] = place._replace(offset=offset)
        return {name: placed[name] for name in places}
