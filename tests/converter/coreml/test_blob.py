"""The file of weights against coremltools' own writer and reader, byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.coreml.blob import BlobLayout, DType, indices

# Element types, as coremltools' classes call them.
NAMES = {
    DType.FLOAT16: "fp16",
    DType.INT16: "int16",
    DType.INT32: "int32",
    DType.UINT1: "uint1",
    DType.UINT2: "uint2",
    DType.UINT3: "uint3",
    DType.UINT4: "uint4",
    DType.UINT6: "uint6",
    DType.UINT8: "uint8",
    DType.UINT16: "uint16",
}
HELD = {
    DType.FLOAT16: np.uint16,  # as its bits
    DType.INT16: np.int16,
    DType.INT32: np.int32,
    DType.UINT16: np.uint16,
}


def some_values(dtype: DType, count: int) -> np.ndarray:
    held = HELD.get(dtype, np.uint8)
    least = np.iinfo(held).min
    most = min(np.iinfo(held).max, (1 << dtype.bits) - 1)
    return np.random.default_rng(count).integers(least, most, count, held, endpoint=True)


def packed(dtype: DType, values: np.ndarray) -> bytes:
    """As `Palette.pack` gives indices: one stream of bits, the first in the lowest."""
    if dtype.bits >= 8:
        return values.tobytes()
    bits = (values[:, None] >> np.arange(dtype.bits)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def file_of(tensors: list[tuple[DType, np.ndarray]]) -> tuple[bytes, list[int]]:
    """Our file, and the offsets of its records."""
    layout = BlobLayout()
    records = [layout.add(dtype, (len(values),)) for dtype, values in tensors]
    content = bytearray(layout.nbytes)
    for at, head in layout.heads():
        content[at : at + len(head)] = head
    for record, (dtype, values) in zip(records, tensors, strict=True):
        data = packed(dtype, values)
        assert len(data) == record.nbytes
        content[record.data_offset : record.data_offset + len(data)] = data
    return bytes(content), [record.offset for record in records]


def test_every_type_that_a_record_may_have_is_tried() -> None:
    assert set(NAMES) == {dtype for dtype in DType if dtype.record is not None}


@pytest.mark.parametrize("count", [1, 3, 31, 64, 1000])
@pytest.mark.parametrize("dtype", NAMES)
def test_bytes_are_those_of_coremltools(dtype: DType, count: int, tmp_path: Path) -> None:
    """Three tensors, one of another type, so that records stand at many offsets."""
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

    tensors = [
        (dtype, some_values(dtype, count)),
        (DType.UINT3, some_values(DType.UINT3, count + 5)),
        (dtype, some_values(dtype, count + 1)),
    ]
    content, offsets = file_of(tensors)

    theirs = tmp_path / "theirs.bin"
    writer = _BlobStorageWriter(str(theirs))
    written = [getattr(writer, f"write_{NAMES[kind]}_data")(values) for kind, values in tensors]
    del writer  # closes it
    assert written == offsets
    assert content == theirs.read_bytes()

    ours = tmp_path / "ours.bin"
    ours.write_bytes(content)
    reader = _BlobStorageReader(str(ours))
    for offset, (kind, values) in zip(offsets, tensors, strict=True):
        found = np.asarray(getattr(reader, f"read_{NAMES[kind]}_data")(offset))
        assert np.array_equal(found.astype(values.dtype), values)


def test_indices_have_the_type_of_their_bits() -> None:
    assert [indices(bits).bits for bits in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 6, 8]
    with pytest.raises(KeyError):
        indices(5)


def test_data_lies_on_borders_of_64_bytes() -> None:
    layout = BlobLayout()
    records = [layout.add(DType.UINT1, (n, 1)) for n in (1, 511, 512, 513)]
    assert [record.offset for record in records] == [64, 192, 320, 448]
    assert [record.nbytes for record in records] == [1, 64, 64, 65]
    assert layout.nbytes == 448 + 64 + 65  # nothing follows, and coremltools does not pad it
