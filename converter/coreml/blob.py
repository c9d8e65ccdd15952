"""A package's file of weights: records, each a tensor, laid out before any of them is read.

    header      u32 number of records, u32 version 2
    record      u32 0xDEADBEEF, u32 type, u64 bytes, u64 where its data is, u64 bits of padding
    data        of the record before it

Each begins on a border of 64 bytes. All numbers are little-endian. Elements below a byte are one
stream of bits over the whole tensor, the first element in the lowest bits. Source: coremltools'
MILBlob storage format, version 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF
RECORD_HEAD = struct.Struct("<IIQQQ32x")


class DType(Enum):
    """Element types: name, number in a record, number in a program, bits."""

    BOOL = (None, 1, 8)
    STRING = (None, 2, 0)
    FLOAT16 = (1, 10, 16)
    INT16 = (6, 22, 16)
    INT32 = (14, 23, 32)
    UINT1 = (9, 37, 1)
    UINT2 = (10, 36, 2)
    UINT3 = (12, 39, 3)
    UINT4 = (11, 35, 4)
    UINT6 = (13, 38, 6)
    UINT8 = (3, 31, 8)
    UINT16 = (7, 32, 16)

    def __init__(self, record: int | None, program: int, bits: int) -> None:
        self.record = record
        self.program = program
        self.bits = bits

    def nbytes(self, count: int) -> int:
        """Bytes that so many elements take."""
        return -(-count * self.bits // 8)


def indices(bits: int) -> DType:
    """The unsigned type of so many bits: 1, 2, 3, 4, 6 or 8."""
    return DType[f"UINT{bits}"]


@dataclass(frozen=True)
class Record:
    """A tensor's place.

    Attributes:
        offset: bytes from the start of the file to its record, which is what a program names.
    """

    dtype: DType
    shape: tuple[int, ...]
    offset: int
    count: int

    @property
    def data_offset(self) -> int:
        """Bytes from the start of the file to its data."""
        return self.offset + ALIGNMENT

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return self.dtype.nbytes(self.count)

    @property
    def head(self) -> bytes:
        """What stands before its data, 64 bytes."""
        padding = self.nbytes * 8 - self.count * self.dtype.bits if self.dtype.bits < 8 else 0
        return RECORD_HEAD.pack(SENTINEL, self.dtype.record, self.nbytes, self.data_offset, padding)


class BlobLayout:
    """Where every record of a file lies."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.nbytes = ALIGNMENT

    def add(self, dtype: DType, shape: tuple[int, ...]) -> Record:
        """A place after all others."""
        count = 1
        for size in shape:
            count *= size
        record = Record(dtype, shape, -(-self.nbytes // ALIGNMENT) * ALIGNMENT, count)
        self.records.append(record)
        self.nbytes = record.data_offset + record.nbytes
        return record

    def heads(self) -> Iterator[tuple[int, bytes]]:
        """What is not data, with its place: the file's header and those of its records."""
        yield 0, struct.pack("<II56x", len(self.records), VERSION)
        for record in self.records:
            yield record.offset, record.head
