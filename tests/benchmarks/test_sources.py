"""Peers get the weights that we get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkpoints import SHAPES, make_checkpoint
from benchmarks.sources import GEMMA3_270M, SMOLLM2_135M, bfloat16, widen_gguf, write_gguf
from converter.checkpoint.gguf import open_gguf
from converter.checkpoint.safetensors import open_folder
from converter.registry import family_of
from runner.interpreter import GraphRunner
from tests.tiny_models import text_logits

GEMMA_TINY = {
    **GEMMA3_270M,
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_bfloat16_rounds_to_the_nearest() -> None:
    values = np.array([1.0, -2.5, 1.00390625, 1.0065], np.float32)  # 1 + 2^-8 lies between two
    assert bfloat16(values).tolist() == [0x3F80, 0xC020, 0x3F81, 0x3F81]


def test_a_shape_as_gguf_holds_the_same_weights(tmp_path: Path, tokenizer: Path) -> None:
    make_checkpoint("qwen3-tiny", tmp_path / "folder", tokenizer)
    write_gguf(tmp_path / "folder", tmp_path / "model.gguf")
    family = family_of(SHAPES["qwen3-tiny"])
    with open_folder(tmp_path / "folder") as folder, open_gguf(tmp_path / "model.gguf") as gguf:
        assert family_of(gguf.config).spec() == family.spec()
        assert len(gguf.tensors) == len(folder.tensors)
        for path, shape in family.spec().weight_shapes():
            rows = shape[0] if len(shape) > 1 else 1
            ours = folder.read_rows(f"model.{family.stored_name(path, 'safetensors')}", 0, rows)
            theirs = gguf.read_rows(family.stored_name(path, "gguf"), 0, rows)
            np.testing.assert_array_equal(ours, theirs, err_msg=path)


def test_gemma_there_and_back_is_the_same(tmp_path: Path, tokenizer: Path) -> None:
    """Norms lose their 1 on the way to safetensors and get it back on the way to GGUF."""
    family = family_of(GEMMA_TINY)
    rng = np.random.default_rng(0)
    tensors = {
        family.stored_name(path, "gguf"): 1 + rng.integers(-64, 64, shape).astype(np.float32) / 128
        for path, shape in family.spec().weight_shapes()
    }
    from tests.gguf_files import write_gguf as write_small_gguf

    keys = {
        "block_count": 6,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.sliding_window": 512,
    }
    first = write_small_gguf(tmp_path / "first.gguf", keys, tensors, arch="gemma3")
    widen_gguf(first, GEMMA_TINY, tokenizer, tmp_path / "folder")
    with open_folder(tmp_path / "folder") as folder:
        norm = folder.read_rows("model.norm.weight", 0, 1)[0]
        np.testing.assert_array_equal(norm, tensors["output_norm.weight"] - 1)
    write_gguf(tmp_path / "folder", tmp_path / "second.gguf")
    with open_gguf(tmp_path / "second.gguf") as second:
        for name, values in tensors.items():
            rows = values.shape[0] if values.ndim > 1 else 1
            found = second.read_rows(name, 0, rows)
            np.testing.assert_array_equal(found, values.reshape(found.shape), err_msg=name)


def test_smollm2_widened_is_the_same_model(
    smollm2_gguf: Path, smollm2_fp32_bundle: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """llama.cpp stores the rows of q and k in pairs, Hugging Face in halves."""
    from transformers import AutoModelForCausalLM

    widen_gguf(smollm2_gguf, SMOLLM2_135M, tokenizer, tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype="float32").eval()
    tokens = [504, 3575, 282, 4649, 314]
    runner = GraphRunner(smollm2_fp32_bundle)
    ours = np.stack([runner.decode(token, i) for i, token in enumerate(tokens)])
    # BF16 rounds what was a Q4_1.
    np.testing.assert_allclose(ours, text_logits(model, tokens), atol=0.5)
