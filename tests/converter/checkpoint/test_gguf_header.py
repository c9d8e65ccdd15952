"""GGUF headers: what is refused, by name, however the file is damaged."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from converter.checkpoint import gguf_header
from converter.checkpoint.gguf import open_gguf
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from tests.gguf_files import header, refused, tensor, text, write_gguf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_type_table_is_ggml_s() -> None:
    for type_id, kind in gguf_header.TENSOR_TYPES.items():
        theirs = GGMLQuantizationType(type_id)
        assert (kind.name, (kind.block, kind.size)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])
    ours = gguf_header.TENSOR_TYPES.keys() | gguf_header._UNSUPPORTED_TYPES.keys()
    assert {int(kind) for kind in GGMLQuantizationType} <= ours


def test_another_format(file: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    assert "a Git LFS pointer" in refused(file, pointer).why
    assert refused(file, b"GGU").why == "not a GGUF file: it starts with b'GGU'"


def test_big_endian(file: Path) -> None:
    error = refused(file, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    assert isinstance(error, UnsupportedError)
    assert error.why == "big-endian GGUF: only little-endian files are supported"


@pytest.mark.parametrize("version", [0, 1, 4])
def test_other_versions(file: Path, version: int) -> None:
    error = refused(file, header(version=version))
    assert isinstance(error, UnsupportedError)
    assert error.why == f"GGUF version {version}: only versions 2 and 3 are supported"


KEY = text("general.alignment") + struct.pack("<II", 4, 32)
HUGE = 1 << 60


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"it declares {HUGE} tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), f"and {HUGE} metadata keys"),
        (
            header([struct.pack("<Q", HUGE)]),
            f"truncated: it ends at byte 32, and {HUGE} bytes are wanted from byte 32 on",
        ),
        (
            header([text("a") + struct.pack("<IQ", 8, HUGE)]),
            f"truncated: it ends at byte 45, and {HUGE} bytes are wanted",
        ),
        (
            header([text("a") + struct.pack("<IIQ", 9, 8, HUGE)]),
            f"truncated: it ends at byte 49, and {8 * HUGE} bytes are wanted from byte 49 on",
        ),
        (
            header([text("a") + struct.pack("<IIQ", 9, 4, HUGE)]),
            f"truncated: it ends at byte 49, and {4 * HUGE} bytes are wanted",
        ),
        (
            header([text("a") + struct.pack("<IIQQ", 9, 8, 1, HUGE)]),
            "truncated: it ends after 0 of 1 strings of metadata key 'a'",
        ),
        (
            header([text("a") + struct.pack("<IIQ", 9, 9, 1)]),
            "metadata key 'a' is an array of arrays",
        ),
        (header([text("a") + struct.pack("<I", 77)]), "'a' has the unknown value type 77"),
        (header([KEY, KEY]), "metadata key 'general.alignment' appears twice"),
        (
            header([text("a") + struct.pack("<IQ", 8, 1) + b"\xff"]),
            "text before byte 46 is not UTF-8",
        ),
        (
            header([text("a") + struct.pack("<IIQQ", 9, 8, 1, 1) + b"\xff"]),
            "metadata key 'a' holds text that is not UTF-8",
        ),
        (
            header([text("general.alignment") + struct.pack("<II", 4, 24)]),
            "general.alignment is 24, not a power of two",
        ),
        (
            header([text("general.alignment") + struct.pack("<I", 8) + text("x")]),
            "general.alignment is 'x', not a power of two",
        ),
        (
            header([], [tensor("t", (4,), 0, 0), tensor("t", (4,), 0, 32)]),
            "tensor 't' appears twice",
        ),
        (header([], [tensor("t", (), 0, 0)]), "tensor 't' has 0 dimensions"),
        (header([], [tensor("t", (1,) * 5, 0, 0)]), "tensor 't' has 5 dimensions"),
        (header([], [tensor("t", (4, 0), 0, 0)]), "tensor 't' is empty: shape (0, 4)"),
        (
            header([], [tensor("t", (33,), 8, 0)]),
            "tensor 't' has rows of 33, not a multiple of Q8_0's block of 32",
        ),
        (header([], [tensor("t", (4,), 0, 8)]), "tensor 't' lies at 8, not a multiple of 32"),
        (
            header([], [tensor("t", (16,), 0, 0), tensor("u", (4,), 0, 32)]) + bytes(200),
            "tensors 't' and 'u' overlap",
        ),
        (
            header([], [tensor("t", (HUGE, HUGE), 0, 0)]),
            f"truncated: tensor 't' ends at byte {96 + 4 * HUGE * HUGE}, the file at",
        ),
        (
            header([], [tensor("t", (4,), 0, 1 << 63)]),
            f"truncated: tensor 't' ends at byte {64 + (1 << 63) + 16}, the file at",
        ),
        (header(), "metadata key 'general.architecture' is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_headers(file: Path, data: bytes, why: str) -> None:
    error = refused(file, data)
    assert isinstance(error, SourceError)
    assert why in error.why


@pytest.mark.parametrize(
    ("type_id", "name"), [(9, "Q8_1"), (4, "Q4_2"), (40, "NVFP4"), (99, "type 99")]
)
def test_unsupported_tensor_types(file: Path, type_id: int, name: str) -> None:
    error = refused(file, header([], [tensor("blk.0.x", (256,), type_id, 0)]))
    assert isinstance(error, UnsupportedError)
    assert error.why.startswith(f"tensor 'blk.0.x' is stored as {name}: only F32, F16, Q4_0, ")
    assert error.why.endswith("MXFP4 are supported")


def test_header_without_end(file: Path, monkeypatch: Any) -> None:
    write_gguf(file, {":a.long": "x" * 5000})
    monkeypatch.setattr(gguf_header, "_MAX_HEADER", 1 << 10)
    assert "its header is longer than" in refused(file).why


def test_header_of_a_file_that_shrinks(file: Path) -> None:
    data = header([KEY])
    with pytest.raises(SourceError) as caught:
        gguf_header.read_header(io.BytesIO(data[:-2]), "m.gguf", len(data))
    assert caught.value.why == f"ended early, at byte {len(data) - 2}"


def test_truncated_at_any_byte(file: Path, tmp_path: Path) -> None:
    keys = {":tokenizer.ggml.tokens": ["a", "b", "c"], ":tokenizer.ggml.scores": [0.5, 1.0, 2.0]}
    small = {"token_embd.weight": np.zeros((3, 8), np.float32), "x": np.zeros(8, np.float16)}
    whole = write_gguf(file, keys | {"block_count": 1, "embedding_length": 8}, small).read_bytes()
    end = len(whole) - 16  # the last tensor's data; what follows it is padding
    for length in range(end):
        why = refused(tmp_path / "cut.gguf", whole[:length]).why
        assert "truncated" in why or length < len(b"GGUF")


def test_any_damaged_byte_gives_our_error_or_a_model(file: Path, tmp_path: Path) -> None:
    small = {"token_embd.weight": np.zeros((3, 8), np.float32), "x": np.zeros(8, np.float16)}
    keys = {":tokenizer.ggml.tokens": ["a", "b"], "rope.scaling.type": "yarn"}
    whole = write_gguf(file, keys | {"block_count": 1, "embedding_length": 8}, small).read_bytes()
    cut = tmp_path / "damaged.gguf"
    for position in range(len(whole)):
        for value in (0x00, 0x7F, 0xFF, whole[position] ^ 1):
            cut.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                with open_gguf(cut) as checkpoint:
                    for name, info in checkpoint.tensors.items():
                        checkpoint.read_rows(name, 0, min(info.shape[0], 1))
            except LiteRTLMError:
                pass
