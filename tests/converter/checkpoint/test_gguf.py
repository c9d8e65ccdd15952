"""GGUF files: what is read, exactly, and what happens to a file that changes."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from converter.checkpoint.gguf import GGUFCheckpoint, open_gguf
from converter.checkpoint.gguf_header import TENSOR_TYPES
from converter.errors import SourceError
from tests.gguf_files import (
    HIDDEN,
    VOCAB,
    header,
    refused,
    tensor,
    tensors_of_a_model,
    text,
    write_gguf,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# What is read.


def test_tensors_are_those_of_the_library(file: Path) -> None:
    tensors = tensors_of_a_model()
    with open_gguf(write_gguf(file, tensors=tensors)) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.path == file
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
            name: values.shape for name, values in tensors.items()
        }
        for name, values in tensors.items():
            matrix = values.reshape(-1, values.shape[-1])
            got = checkpoint.read_rows(name, 0, len(matrix))
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, matrix)


def test_metadata_is_kept_as_it_is(file: Path) -> None:
    keys = {":a.text": "grüße", ":a.flag": True, ":a.words": ["x", "ÿ", ""], ":a.numbers": [1, 2]}
    with open_gguf(write_gguf(file, keys)) as checkpoint:
        metadata = checkpoint.metadata
    assert metadata["a.text"] == "grüße"
    assert metadata["a.flag"] is True
    assert metadata["a.words"] == ["x", "ÿ", ""]
    assert metadata["a.numbers"].tolist() == [1, 2]


def test_version_2_reads_like_version_3(file: Path) -> None:
    data = bytearray(write_gguf(file).read_bytes())
    data[4:8] = struct.pack("<I", 2)
    file.write_bytes(data)
    with open_gguf(file) as checkpoint:
        assert checkpoint.config["hidden_size"] == HIDDEN


def test_alignment_of_the_file_is_honoured(file: Path) -> None:
    writer = GGUFWriter(file, "llama")
    writer.data_alignment = 256
    for key, value in {
        "general.alignment": 256, "llama.block_count": 1,
        "llama.embedding_length": 8, "llama.attention.head_count": 1,
    }.items():  # fmt: skip
        writer.add_uint32(key, value)
    values = np.arange(24, dtype=np.float32).reshape(3, 8)
    writer.add_tensor("token_embd.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(file) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read_rows("token_embd.weight", 0, 3), values)


_INTEGERS = {24: "<i1", 25: "<i2", 26: "<i4", 27: "<i8"}
_PLAIN = {**_INTEGERS, 28: "<f8"}  # the library has no dequantisation of these


@pytest.mark.parametrize("type_id", TENSOR_TYPES.keys() - _PLAIN.keys())
def test_row_ranges_equal_the_library_s_dequantisation(file: Path, type_id: int) -> None:
    kind = GGMLQuantizationType(type_id)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = 300, max(512 // block, 1)  # more than one step of the chunked dequantiser
    rng = np.random.default_rng(type_id)
    raw = rng.integers(0, 256, (rows, blocks * size), dtype=np.uint8)
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        *(
            text(f"llama.{key}") + struct.pack("<II", 4, value)
            for key, value in (
                ("block_count", 1), ("embedding_length", 64), ("attention.head_count", 1),
            )
        ),
    ]  # fmt: skip
    data = header(keys, [tensor("token_embd.weight", (blocks * block, rows), type_id, 0)])
    file.write_bytes(data + bytes(-len(data) % 32) + raw.tobytes())
    with np.errstate(all="ignore"), open_gguf(file) as checkpoint:
        for start, stop in ((0, rows), (0, 1), (7, 7), (13, 290), (rows - 1, rows)):
            expected = gguf.quants.dequantize(raw[start:stop], kind) if stop > start else raw[:0]
            got = checkpoint.read_rows("token_embd.weight", start, stop)
            assert got.shape == (stop - start, blocks * block)
            assert got.tobytes() == expected.astype(np.float32, copy=False).tobytes()


@pytest.mark.parametrize("type_id", _PLAIN)
def test_plain_numbers_become_float32(file: Path, type_id: int) -> None:
    values = np.array([[1, -2, 3], [4, 100, -128]], _PLAIN[type_id])
    if type_id == 28:
        values += 0.1
    named = {"a": values, "token_embd.weight": np.ones((2, 3), np.float32)}
    with open_gguf(write_gguf(file, {"block_count": 1}, named)) as checkpoint:
        assert checkpoint.tensors["a"].dtype == TENSOR_TYPES[type_id].name
        got = checkpoint.read_rows("a", 0, 2)
    np.testing.assert_array_equal(got, values.astype(np.float32))


def test_rows_outside_the_tensor_are_a_programming_error(file: Path) -> None:
    with open_gguf(write_gguf(file)) as checkpoint:
        for start, stop in ((0, VOCAB + 1), (-1, 1), (2, 1)):
            with pytest.raises(ValueError, match=r"token_embd\.weight: rows"):
                checkpoint.read_rows("token_embd.weight", start, stop)


class SlowSeeker(io.BytesIO):
    """A file that lets other threads in between finding a place and reading there."""

    def seek(self, offset: int, whence: int = 0) -> int:
        found = super().seek(offset, whence)
        time.sleep(1e-5)
        return found


@pytest.mark.parametrize("positioned", [True, False])
def test_threads_read_at_once(file: Path, monkeypatch: Any, positioned: bool) -> None:
    values = tensors_of_a_model()["token_embd.weight"]
    with open_gguf(write_gguf(file)) as checkpoint, ThreadPoolExecutor(8) as pool:
        if not positioned:  # as on Windows
            monkeypatch.delattr(os, "preadv", raising=False)
            monkeypatch.setattr(checkpoint._files[0], "_file", SlowSeeker(file.read_bytes()))

        def read(row: int) -> bool:
            got = checkpoint.read_rows("token_embd.weight", row, row + 1)
            return np.array_equal(got[0], values[row])

        assert all(pool.map(read, [row % VOCAB for row in range(2000)]))


# What is refused.


def test_missing_file(file: Path) -> None:
    error = refused(file)
    assert isinstance(error, SourceError)
    assert (error.what, error.why) == (str(file), "no such file or directory")
    assert error.fix == "check the path and its permissions"


def test_folder(tmp_path: Path) -> None:
    assert refused(tmp_path).why == "it is not a regular file"


# A file that changes.


def truncate(file: Path) -> None:
    os.truncate(file, 1000)


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 0))


@pytest.mark.parametrize("change", [truncate, touch])
def test_a_file_that_changed_is_told(file: Path, change: Callable[[Path], None]) -> None:
    with open_gguf(write_gguf(file)) as checkpoint:
        checkpoint.check_unchanged()
        change(file)
        with pytest.raises(SourceError, match="it changed while it was read"):
            checkpoint.check_unchanged()


def test_a_short_read_is_told(file: Path) -> None:
    with open_gguf(write_gguf(file)) as checkpoint:
        truncate(file)
        with pytest.raises(SourceError, match="the file ended early"):
            checkpoint.read_rows("token_embd.weight", 0, VOCAB)


def test_a_disk_that_fails_is_told(file: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with open_gguf(write_gguf(file)) as checkpoint:
        monkeypatch.setattr(checkpoint._files[0], "_read_some", fail)
        with pytest.raises(SourceError, match="input/output error"):
            checkpoint.read_rows("token_embd.weight", 0, 1)


def test_closing_twice_is_allowed(file: Path) -> None:
    checkpoint = open_gguf(write_gguf(file))
    checkpoint.close()
    checkpoint.close()


# Real files.


def sampled(checkpoint: GGUFCheckpoint) -> list[str]:
    """One tensor of each stored type."""
    return list({info.dtype: name for name, info in checkpoint.tensors.items()}.values())


@pytest.mark.parametrize(("fixture", "seconds"), [("smollm2_gguf", 0.5), ("gemma3_gguf", 1.5)])
def test_real_files_open_fast_and_read_exactly(
    request: pytest.FixtureRequest, fixture: str, seconds: float
) -> None:
    path = request.getfixturevalue(fixture)
    start = time.perf_counter()
    checkpoint = open_gguf(path)
    assert time.perf_counter() - start < seconds  # 0.04 s and 0.1 s here
    names = sampled(checkpoint)
    with checkpoint:
        for name in names:
            place = checkpoint._places[name]
            info = checkpoint.tensors[name]
            rows = info.shape[0] if len(info.shape) > 1 else 1
            raw = np.fromfile(path, np.uint8, place.nbytes, offset=place.offset).reshape(rows, -1)
            first, last = rows // 3, min(rows // 3 + 37, rows) or 1
            expected = gguf.quants.dequantize(raw[first:last], GGMLQuantizationType(place.type_id))
            np.testing.assert_array_equal(checkpoint.read_rows(name, first, last), expected)
