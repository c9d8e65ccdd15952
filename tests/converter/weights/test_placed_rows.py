"""Rows out of a tensor that holds them in turn with others, to be multiplied, or as a matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from converter.checkpoint.safetensors import open_folder
from converter.errors import UnsupportedError
from converter.families.qwen3_5 import Qwen35
from converter.families.tensors import WeightSource
from converter.weights.placed_rows import read_placed

HEADS, SIZE, COLUMNS = 5, 3, 4


@pytest.mark.parametrize("has_buffer", [True, False])
@pytest.mark.parametrize(("start", "stop"), [(0, 15), (3, 9), (12, 15)])
@pytest.mark.parametrize("which", [0, 1])
def test_blocks_in_turn(
    tmp_path: Path, which: int, start: int, stop: int, has_buffer: bool
) -> None:
    """Queries and gates of Qwen3.5: each head's stand one after the other."""
    values = np.arange(2 * HEADS * SIZE * COLUMNS, dtype=np.float32).reshape(-1, COLUMNS)
    biases = np.ascontiguousarray(values[:, 0])
    save_file({"both": values, "both.bias": biases}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    expected = values.reshape(HEADS, 2, SIZE, COLUMNS)[:, which].reshape(-1, COLUMNS)[start:stop]
    buffer = np.empty(expected.size, np.float32) if has_buffer else None
    source = WeightSource("both", turns=SIZE, is_second=bool(which))
    with open_folder(tmp_path) as checkpoint:
        rows = read_placed(checkpoint, "both", source, start, stop, buffer)
        vector = read_placed(checkpoint, "both.bias", source, start, stop)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(vector, expected[None, :, 0])
    assert buffer is None or np.shares_memory(rows, buffer)


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 6), (5, 9)])
def test_rows_times_factors(tmp_path: Path, start: int, stop: int) -> None:
    """Those of a fused matrix, each group by its own; a bias has what its rows have."""
    values = np.arange(1, 1 + 12 * COLUMNS, dtype=np.float32).reshape(12, COLUMNS)
    biases = np.ascontiguousarray(values[:, 0])
    save_file({"fused": values, "fused.bias": biases}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    source = WeightSource("fused", first_row=3, factors=((4, 0.5), (5, 3.0)))
    expected = (values[3:] * np.float32([0.5] * 4 + [3.0] * 5)[:, None])[start:stop]
    with open_folder(tmp_path) as checkpoint:
        np.testing.assert_array_equal(
            read_placed(checkpoint, "fused", source, start, stop), expected
        )
        vector = read_placed(checkpoint, "fused.bias", source, start, stop)
    np.testing.assert_array_equal(vector, expected[None, :, 0])


@pytest.mark.parametrize("shape", [(12,), (12, 1), (3, 4)])
def test_a_vector_that_is_stored_as_a_matrix(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(12, dtype=np.float32)
    save_file({"norm": values.reshape(shape)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_folder(tmp_path) as checkpoint:
        source = WeightSource("norm", is_flattened=True)
        vector = read_placed(checkpoint, "norm", source, 0, 12)
    np.testing.assert_array_equal(vector, values[None])


def test_an_adapter_of_the_other_format_has_value_heads_in_another_order() -> None:
    """llama.cpp's converter reorders them, and an adapter of PEFT's has the source's order."""
    names = ["layers.0.linear_attn.out_proj.weight", "layers.3.self_attn.o_proj.weight"]
    gguf = Qwen35(gguf_tiled_heads=True)
    with pytest.raises(UnsupportedError, match=r"adapter='layers.0.linear_attn.out_proj.weight'"):
        gguf.places(names, "safetensors")
    assert list(gguf.places(names[1:], "safetensors")) == ["layers.3.attention.o"]
    as_many = Qwen35(gguf_tiled_heads=True, linear_num_value_heads=16)
    assert len(as_many.places(names, "safetensors")) == 2
    assert len(Qwen35().places(names, "safetensors")) == 2
