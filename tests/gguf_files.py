"""Small GGUF files, written with the `gguf` library, and the bytes that a header is made of."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from converter.checkpoint.gguf import open_gguf
from converter.errors import LiteRTLMError

HIDDEN, LAYERS, HEADS, VOCAB = 64, 2, 4, 96
Keys = dict[str, Any]


def tensors_of_a_model(**extra: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes[f"blk.{layer}.attn_q.weight"] = (HIDDEN, HIDDEN)
    tensors = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return tensors | extra


def write_gguf(
    path: Path,
    keys: Keys | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    arch: str = "llama",
    drop: tuple[str, ...] = (),
) -> Path:
    """Write a small model; `keys` are added to `{arch}.*`, or as they are where they hold `:`."""
    writer = GGUFWriter(path, arch)
    required = {
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "feed_forward_length": 128,
        "attention.head_count": HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "context_length": 512,
    }
    for key, value in (required | (keys or {})).items():
        if key not in drop:
            _add(writer, key[1:] if key.startswith(":") else f"{arch}.{key}", value)
    for name, tensor in (tensors_of_a_model() if tensors is None else tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(keys: list[bytes] = [], tensors: list[bytes] = [], version: int = 3) -> bytes:  # noqa: B006
    counts = struct.pack("<IQQ", version, len(tensors), len(keys))
    return b"GGUF" + counts + b"".join(keys) + b"".join(tensors)


def tensor(name: str, shape: tuple[int, ...], type_id: int, offset: int) -> bytes:
    """An entry of the tensor table; `shape` in the file's order."""
    return (
        text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        + struct.pack("<IQ", type_id, offset)
    )


def refused(path: Path, data: bytes | None = None) -> LiteRTLMError:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(LiteRTLMError) as caught:
        open_gguf(path)
    assert caught.value.what
    assert caught.value.fix
    return caught.value
