"""Safetensors: what is read, exactly, and what is refused, by name."""

from __future__ import annotations

import codecs
import json
import math
import os
import random
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from converter.checkpoint.files import SIDE_FILES, PositionedFile
from converter.checkpoint.safetensors import SafetensorsCheckpoint, open_folder
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from tests.odd_files import LFS_POINTER

INDEX = "model.safetensors.index.json"
Header = dict[str, Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An empty folder for a model, with a config."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    return tmp_path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: bytes | Header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refusal(folder: Path, content: bytes | None = None) -> LiteRTLMError:
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(LiteRTLMError) as caught:
        open_folder(folder)
    assert str(caught.value).isprintable()
    return caught.value


def every_bf16() -> torch.Tensor:
    """All 65,536 bit patterns, NaNs and infinities too."""
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


# What is read.


def test_all_four_types_are_read_exactly(model: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "bf16": every_bf16().reshape(256, 256),
        "f16": torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16),
        "f32": torch.randn(33, 7, generator=rng),
        "f64": torch.randn(33, 7, generator=rng, dtype=torch.float64),
        "cube": torch.randn(4, 3, 2, generator=rng).bfloat16(),
        "norm": torch.randn(9, generator=rng),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 5),
    }
    save_torch(tensors, model / "model.safetensors", {"format": "pt"})
    with open_folder(model) as checkpoint:
        assert isinstance(checkpoint, SafetensorsCheckpoint)
        assert checkpoint.config == {"model_type": "llama", "hidden_size": 8}
        assert checkpoint.generation_config == {}
        assert set(checkpoint.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            rows = math.prod(tensor.shape[:-1])
            expected = tensor.float().reshape(rows, -1 if tensor.numel() else 5).numpy()
            for start, stop in {(0, rows), (0, rows // 2), (rows // 2, rows), (rows, rows)}:
                found = checkpoint.read_rows(name, start, stop)
                assert found.dtype == np.float32
                assert found.shape == expected[start:stop].shape
                # Bits, because NaN is not equal to itself. F16 NaN payloads have no float32 rule.
                same = found.view(np.uint32) == expected[start:stop].view(np.uint32)
                assert (same | (np.isnan(found) & (name == "f16"))).all()


def test_a_buffer_is_used_and_its_old_values_do_not_show(model: Path) -> None:
    save_torch({"x": every_bf16().reshape(512, 128)}, model / "model.safetensors")
    expected = every_bf16().float().reshape(512, 128).numpy()
    with open_folder(model) as checkpoint:
        buffer = np.full(10 * 128, 7, np.float32)
        for start, stop in ((100, 110), (3, 4)):  # a shorter read after a longer one
            rows = checkpoint.read_rows("x", start, stop, buffer)
            assert np.shares_memory(rows, buffer)
            assert rows.tobytes() == expected[start:stop].tobytes()
        too_small = checkpoint.read_rows("x", 100, 200, buffer)
        assert not np.shares_memory(too_small, buffer)
        assert too_small.tobytes() == expected[100:200].tobytes()


def test_rows_that_do_not_exist(model: Path) -> None:
    save_file({"x": np.zeros((4, 2), np.float32)}, model / "model.safetensors")
    with open_folder(model) as checkpoint:
        for start, stop in ((0, 5), (-1, 2), (3, 2)):
            with pytest.raises(IndexError):
                checkpoint.read_rows("x", start, stop)


def test_generation_config(model: Path) -> None:
    save_file({"x": np.zeros(1, np.float32)}, model / "model.safetensors")
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    with open_folder(model) as checkpoint:
        assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    (model / "generation_config.json").write_text("[]")
    assert "not a JSON object" in refusal(model).why


@pytest.mark.parametrize("portable", [False, True])
def test_many_threads(model: Path, monkeypatch: pytest.MonkeyPatch, portable: bool) -> None:
    if portable:  # the way without positioned reads
        monkeypatch.delattr(os, "preadv", raising=False)
    values = np.arange(4000 * 50, dtype=np.float32).reshape(4000, 50)
    save_file({"x": values}, model / "model.safetensors")
    with open_folder(model) as checkpoint, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: checkpoint.read_rows("x", i, i + 10), range(0, 4000, 10)))
    assert np.array_equal(np.concatenate(found), values)


def sharded(model: Path, index: dict[str, str] | None = None) -> None:
    save_file({"a": np.ones((2, 2), np.float32)}, model / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros((3, 2), np.float32)}, model / "model-00002-of-00002.safetensors")
    if index is not None:
        (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


GOOD_INDEX = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize("index", [None, GOOD_INDEX])
def test_shards(model: Path, index: dict[str, str] | None) -> None:
    sharded(model, index)
    with open_folder(model) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}
        assert checkpoint.read_rows("a", 0, 2).tolist() == [[1, 1], [1, 1]]
        assert checkpoint.read_rows("b", 1, 3).tolist() == [[0, 0], [0, 0]]


def test_the_single_file_wins_as_in_transformers(model: Path) -> None:
    sharded(model, {"a": "gone.safetensors"})
    save_file({"c": np.ones(1, np.float32)}, model / "model.safetensors")
    with open_folder(model) as checkpoint:
        assert set(checkpoint.tensors) == {"c"}


def test_copies_for_other_programs_are_left_alone(model: Path) -> None:
    sharded(model)
    save_file({"a": np.ones(1, np.float32)}, model / "consolidated.safetensors")
    with open_folder(model) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}


def test_quantised_tensors_are_listed_and_refused_when_read(model: Path) -> None:
    save_torch(
        {"w8": torch.zeros(2, 2).to(torch.float8_e4m3fn), "q": torch.zeros(4, dtype=torch.int8)},
        model / "model.safetensors",
    )
    with open_folder(model) as checkpoint:
        assert checkpoint.tensors["w8"].dtype == "F8_E4M3"
        for name, dtype in (("w8", "F8_E4M3"), ("q", "I8")):
            with pytest.raises(UnsupportedError) as caught:
                checkpoint.read_rows(name, 0, 1)
            assert caught.value.what == f"tensor {name}"
            assert caught.value.why.startswith(f"it is stored as {dtype}, and pre-quantised")


# Files that change.


def test_a_file_that_shrinks_or_changes(model: Path) -> None:
    path = model / "model.safetensors"
    save_file({"x": np.zeros((100, 100), np.float32)}, path)
    with open_folder(model) as checkpoint:
        checkpoint.check_unchanged()
        with open(path, "r+b") as stream:
            stream.truncate(5000)
        with pytest.raises(SourceError, match="ended early"):
            checkpoint.read_rows("x", 50, 100)
        with pytest.raises(SourceError, match="changed while it was read"):
            checkpoint.check_unchanged()


def test_a_file_that_is_written_again(model: Path) -> None:
    path = model / "model.safetensors"
    save_file({"x": np.zeros((4, 4), np.float32)}, path)
    with open_folder(model) as checkpoint:
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceError, match="changed while it was read"):
            checkpoint.read_rows("x", 0, 1)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_file_that_is_replaced_or_removed(model: Path, replacement: bool) -> None:
    """Its bytes are still to be read, but the receipt is of what has its name."""
    path = model / "model.safetensors"
    save_file({"x": np.zeros((4, 4), np.float32)}, path)
    status = path.stat()
    with open_folder(model) as checkpoint:
        if replacement:
            shutil.copy(path, model / "other")
            os.utime(model / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
            os.replace(model / "other", path)
        else:
            path.unlink()
        why = "changed while it was read" if replacement else "no such file"
        with pytest.raises(SourceError, match=why):
            checkpoint.check_unchanged()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        PositionedFile(tmp_path / "pipe")


def test_nothing_stays_open(model: Path) -> None:
    sharded(model, GOOD_INDEX)
    (model / "model-00002-of-00002.safetensors").write_bytes(b"short")
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("counts open files in /proc")
    before = len(list(folder.iterdir()))
    for _ in range(20):
        refusal(model)
    assert len(list(folder.iterdir())) == before


# Headers that are refused.


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has 0 bytes, too few"),
        (b"1234567", "it has 7 bytes, too few"),
        (raw(b"{}", length=3), "its header claims 3 bytes, but the file has 10"),
        (raw(b"{}", length=2**63), "its header claims 9223372036854775808 bytes, more than"),
        (raw(b"{}", length=100_000_001), "its header claims 100000001 bytes, more than 100000000"),
        (raw(b""), "it is a file of zeros"),
        (raw(b"{"), "its header is not JSON"),
        (raw(b"\xff\xfe{}"), "its header is not JSON"),
        (raw(b'{"a": 1' + b"0" * 5000 + b"}"), "its header is not JSON"),
        (raw(b"[]"), "its header is not a JSON object"),
        (raw(b"[" * 100_000 + b"]" * 100_000), "its header is nested too deeply"),
        (raw(b'{"a": {}, "a": {}}'), "the key 'a' stands there twice"),
        (raw({"__metadata__": 1}), "its __metadata__ is not a JSON object"),
        (raw({"a": 1}), "tensor a is not described by dtype, shape and data_offsets"),
        (raw({"a": {"dtype": "F32", "shape": [1]}}), "tensor a is not described by"),
        (raw({"a\x1b": 1}), "the tensor name 'a\\x1b' is not printable text"),
        (raw(b'{"\\ud800": 1}'), "the tensor name '\\ud800' is not printable text"),
        (raw({"a": entry("F33", [1], 0, 4)}, bytes(4)), "tensor a has the unknown dtype 'F33'"),
        (raw({"a": entry([], [1], 0, 4)}, bytes(4)), "tensor a has the unknown dtype '[]'"),  # type: ignore[arg-type]
        (raw({"a": entry("F32", [-1], 0, 4)}, bytes(4)), "tensor a has the impossible shape [-1]"),
        (raw({"a": entry("F32", [1.0], 0, 4)}, bytes(4)), "the impossible shape [1.0]"),  # type: ignore[list-item]
        (raw({"a": entry("F32", [True], 0, 4)}, bytes(4)), "the impossible shape [True]"),
        (raw({"a": entry("F32", [1] * 17, 0, 4)}, bytes(4)), "the impossible shape [1, 1"),
        (raw({"a": entry("F32", [2**63], 0, 4)}, bytes(4)), "the impossible shape"),
        (raw({"a": entry("F32", [2**60, 2**60], 0, 4)}, bytes(4)), "tensor a has 4 bytes, but F32"),
        (raw({"a": entry("F32", [1], 4, 0)}, bytes(4)), "the impossible data_offsets [4, 0]"),
        (raw({"a": entry("F32", [1], -4, 0)}, bytes(4)), "the impossible data_offsets [-4, 0]"),
        (
            raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
            "the impossible data_offsets [0, 4, 8]",
        ),
        (
            raw({"a": entry("F32", [3], 0, 8)}, bytes(8)),
            "tensor a has 8 bytes, but F32 [3] takes 12",
        ),
        (raw({"a": entry("F4", [3], 0, 1)}, bytes(1)), "tensor a has 1 bytes, but F4 [3] takes 2"),
        (
            raw({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6)),
            "tensor b overlaps the one before it",
        ),
        (
            raw({"a": entry("U8", [4], 0, 4), "b": entry("U8", [2], 0, 2)}, bytes(4)),
            "tensor a overlaps the one before it",
        ),
        (
            raw({"a": entry("U8", [4], 0, 4), "b": entry("U8", [1], 6, 7)}, bytes(7)),
            "2 bytes before tensor b are unused",
        ),
        (raw({"a": entry("U8", [4], 0, 4)}, bytes(3)), "it ended early: the last 1 bytes"),
        (raw({"a": entry("U8", [4], 0, 4)}, bytes(5)), "1 bytes after the last tensor are unused"),
    ],
)
def test_headers_that_are_refused(model: Path, content: bytes, why: str) -> None:
    error = refusal(model, content)
    assert isinstance(error, SourceError)
    assert why in error.why
    assert error.what == str(model / "model.safetensors")


def test_padding_and_metadata_are_allowed(model: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry("F32", [1], 0, 4)}).encode()
    (model / "model.safetensors").write_bytes(raw(header + b"   ", struct.pack("<f", 1.5)))
    with open_folder(model) as checkpoint:
        assert checkpoint.read_rows("a", 0, 1).tolist() == [[1.5]]


# Folders that are refused.


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({**GOOD_INDEX, "c": "gone.safetensors"}, f"gone.safetensors is missing, which {INDEX}"),
        ({"a": "../x.safetensors"}, "no file in or below this folder"),
        ({"a": "/etc/x.safetensors"}, "no file in or below this folder"),
        ({"a": "sub/../x.safetensors"}, "no file in or below this folder"),
        ({"a": "C:\\x.safetensors"}, "no file in or below this folder"),
        ({"a": "x\0.safetensors"}, "no file in or below this folder"),
        ({"a": 1}, "no file in or below this folder"),
        ({"a\n": "a.safetensors"}, "no file in or below this folder"),
        ({"a": "pytorch_model.bin"}, "it names pytorch_model.bin, which is not a safetensors file"),
        ({}, "it has no weight_map"),
    ],
)
def test_an_index_that_is_wrong(model: Path, index: dict[str, str], why: str) -> None:
    sharded(model, index)
    assert why in refusal(model).why


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', "\0", "[" * 99999])
def test_an_index_that_is_not_one(model: Path, text: str) -> None:
    sharded(model)
    (model / INDEX).write_text(text)
    assert refusal(model).what == str(model / INDEX)


@pytest.mark.parametrize("index", [None, GOOD_INDEX])
def test_a_tensor_in_two_shards(model: Path, index: dict[str, str] | None) -> None:
    sharded(model, index)
    save_file(
        {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)},
        model / "model-00002-of-00002.safetensors",
    )
    assert refusal(model).why == "tensor a is in it and in model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "config.json is missing"),
        ("", "it is not JSON"),
        ("{'a': 1}", "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        ('{"a":' * 99999, "it is nested too deeply"),
    ],
)
def test_a_config_that_is_wrong(model: Path, text: str | None, why: str) -> None:
    sharded(model)
    (model / "config.json").unlink()
    if text is not None:
        (model / "config.json").write_text(text)
    error = refusal(model)
    assert isinstance(error, SourceError)
    assert why in error.why


def test_the_last_of_a_config_s_values_counts(model: Path) -> None:
    sharded(model)
    (model / "config.json").write_text('{"rope_theta": 1, "rope_theta": 2}')
    with open_folder(model) as checkpoint:
        assert checkpoint.config == {"rope_theta": 2}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_byte_order_mark_is_no_part_of_a_config(model: Path, name: str) -> None:
    save_file({"x": np.zeros(1, np.float32)}, model / "model.safetensors")
    (model / name).write_bytes(codecs.BOM_UTF8 + b'{"model_type": "llama"}')
    with open_folder(model) as checkpoint:
        assert checkpoint.config["model_type"] == "llama"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_config_in_utf_16(model: Path, encoding: str) -> None:
    save_file({"x": np.zeros(1, np.float32)}, model / "model.safetensors")
    (model / "config.json").write_bytes('{"model_type": "llama"}'.encode(encoding))
    assert "UTF-16 text, and has to be saved as UTF-8" in refusal(model).why


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", INDEX]
)
def test_a_pointer_in_place_of_a_file(model: Path, name: str) -> None:
    sharded(model) if name == INDEX else save_file({"x": np.ones(1)}, model / "model.safetensors")
    (model / name).write_bytes(LFS_POINTER)
    error = refusal(model)
    assert (error.what, error.why) == (
        str(model / name),
        "it is a Git LFS pointer, which stands for a file that was not fetched",
    )
    assert "git lfs pull" in error.fix


def test_a_page_in_place_of_a_file(model: Path) -> None:
    save_file({"x": np.ones(1)}, model / "model.safetensors")
    (model / "config.json").write_text("<!DOCTYPE html><html><title>Sign in</title></html>")
    assert refusal(model).why == "it is a web page (HTML)"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX, *SIDE_FILES])
def test_a_link_to_a_file_that_is_not_there(model: Path, name: str) -> None:
    sharded(model) if name == INDEX else save_file({"x": np.ones(1)}, model / "model.safetensors")
    (model / name).unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(model / "blobs" / "4d7a")
    error = refusal(model)
    assert isinstance(error, SourceError)
    assert error.what == str(model / name)
    assert error.why == "it is a link to a file that is not there"


def test_a_link_is_as_good_as_a_file(model: Path) -> None:
    (model / "blobs").mkdir()
    save_file({"x": np.ones(1)}, model / "blobs" / "4d7a")
    (model / "model.safetensors").symlink_to("blobs/4d7a")
    with open_folder(model) as checkpoint:
        assert checkpoint.read_rows("x", 0, 1) == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none").why
    (tmp_path / "config.json").touch()
    assert refusal(tmp_path / "config.json").why == "not a directory"


def test_damage_of_any_kind_is_refused_or_harmless(model: Path) -> None:
    """2,000 truncations, flipped bytes and moved pieces: our errors only, and no wrong sizes."""
    path = model / "model.safetensors"
    save_file(
        {f"layers.{i}.w": np.ones((3, 5), np.float32) for i in range(6)}
        | {"norm": np.ones(7, np.float16)},
        path,
    )
    good = path.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(0)
    refused = 0
    for turn in range(2000):
        bad = bytearray(good)
        if turn % 4 == 0:
            del bad[rng.randrange(len(bad)) :]
        elif turn % 4 == 1:
            start = rng.randrange(header_end)
            piece = bytes(bad[start : start + rng.randrange(20)])
            at = rng.randrange(header_end)
            bad[at : at + rng.randrange(20)] = piece
        else:
            for _ in range(rng.randrange(1, 4)):
                bad[rng.randrange(header_end)] = rng.choice(b'0123456789[]{}",:-\\\x00\xff')
        path.write_bytes(bad)
        try:
            with open_folder(model) as checkpoint:
                for name, info in checkpoint.tensors.items():
                    rows = info.shape[0] if len(info.shape) > 1 else 1
                    assert checkpoint.read_rows(name, 0, rows).size == int(np.prod(info.shape))
        except LiteRTLMError:
            refused += 1
    assert refused > 1500
