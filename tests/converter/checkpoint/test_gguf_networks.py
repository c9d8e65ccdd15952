"""Models as GGUFs in every shape that converters give them, against transformers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.base import ModelConverter
from converter.checkpoint.gguf import open_gguf
from converter.errors import SourceError
from converter.options import ConvertOptions
from converter.registry import FAMILIES
from runner.interpreter import GraphRunner
from tests.gguf_files import Keys, write_gguf
from tests.small_tokenizers import SMALL_BPE
from tests.tiny_models import random_model, text_logits

TOKENS = np.random.default_rng(5).integers(0, 256, 16).tolist()
PROJECTIONS = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
GEMMA: dict[str, Any] = {
    **SMALL,
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
GEMMA_KEYS: Keys = {"attention.sliding_window": 8, "attention.key_length": 16}


def tensors_as_llama_cpp_writes(model: Any, arch: str) -> dict[str, np.ndarray]:
    """Under its names; q and k of `llama` permuted, Gemma's norms with their 1 added."""
    table = {ours: theirs for _, ours, theirs in FAMILIES[arch].names}
    tensors = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        plain, _, kind = name.removeprefix("model.").rpartition(".")
        parts = [*plain.split("."), "weight"]
        layer = parts[1]
        if parts[0] == "layers":
            parts[1] = "{i}"
        stored = table[".".join(parts)].replace("{i}", layer)
        stored = f"{stored.removesuffix('.weight')}.{kind}"
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            pairs = value.reshape(-1, 2, model.config.head_dim // 2, *value.shape[1:])
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        if arch == "gemma3" and "norm" in name:
            value = value + 1
        tensors[stored] = np.ascontiguousarray(value)
    return tensors


def keys_of(model: Any) -> Keys:
    config = model.config
    return {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "context_length": config.max_position_embeddings,
        **{f":tokenizer.{key}": value for key, value in SMALL_BPE.items()},
    }


def logits(path: Path) -> np.ndarray:
    """Of every position, one decode step after the other."""
    bundle = path.with_suffix(".litertlm")
    options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=64)
    with open_gguf(path) as checkpoint:
        ModelConverter(checkpoint, "tiny", options).convert(bundle)
    runner = GraphRunner(bundle)
    return np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(TOKENS)])


def assert_same(path: Path, model: Any) -> None:
    np.testing.assert_allclose(logits(path), text_logits(model, TOKENS), atol=1e-3, rtol=0)


# Biases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "biases",
    [
        "",
        "q k v o gate up down",  # Granite Code
        "q k v",  # llamafied Qwen
        "q k v o",
        "gate up down",
        "o",
        "q v",
        "gate up",
        "down",
        "k o up",
    ],
)
def test_biases_of_llama_are_those_that_the_file_holds(tmp_path: Path, biases: str) -> None:
    """transformers has all or none of a kind: one of zeros stands for one that is not there."""
    model = random_model("llama", {**SMALL, **BIASED})
    tensors = tensors_as_llama_cpp_writes(model, "llama")
    for projection, stored in PROJECTIONS.items():
        if projection not in biases.split():
            for name, parameter in model.named_parameters():
                if name.endswith(f"{projection}_proj.bias"):
                    parameter.data.zero_()
            for layer in range(SMALL["num_hidden_layers"]):
                del tensors[f"blk.{layer}.{stored}.bias"]
    path = write_gguf(tmp_path / "m.gguf", keys_of(model), tensors)
    assert_same(path, model)
    with open_gguf(path) as checkpoint:
        assert checkpoint.config["gguf_biases"] == biases.split()


@pytest.mark.parametrize(
    ("model_type", "arch", "values", "keys"),
    [
        ("qwen2", "qwen2", {}, {}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}, {}),
        ("qwen3", "qwen3", {}, {"attention.key_length": 16}),
        ("qwen3", "qwen3", {"attention_bias": True}, {}),
        ("gemma3_text", "gemma3", {"attention_bias": True}, GEMMA_KEYS),
        ("gemma3_text", "gemma3", {}, GEMMA_KEYS),
    ],
)
def test_every_family(
    tmp_path: Path, model_type: str, arch: str, values: dict[str, Any], keys: Keys
) -> None:
    model = random_model(model_type, {**(GEMMA if arch == "gemma3" else SMALL), **values})
    tensors = tensors_as_llama_cpp_writes(model, arch)
    assert_same(write_gguf(tmp_path / "m.gguf", keys_of(model) | keys, tensors, arch), model)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_bias_in_some_layers_is_in_those_alone(tmp_path: Path, arch: str) -> None:
    model = random_model(arch, SMALL if arch == "qwen2" else {**SMALL, "attention_bias": True})
    tensors = tensors_as_llama_cpp_writes(model, arch)
    for layer, projection in ((1, "k"), (0, "q")):
        getattr(model.model.layers[layer].self_attn, f"{projection}_proj").bias.data.zero_()
        del tensors[f"blk.{layer}.attn_{projection}.bias"]
    assert_same(write_gguf(tmp_path / "m.gguf", keys_of(model), tensors, arch), model)


@pytest.mark.parametrize(
    ("keys", "change", "said"),
    [
        ({}, {"blk.1.ffn_up.weight": None}, "lacks 1 tensors: blk.1.ffn_up.weight"),
        ({}, {"blk.1.attn_sinks.weight": np.ones(4, np.float32)}, "holds 1 tensors that this"),
        ({}, {"output_norm.weight": np.ones(8, np.float32)}, "its metadata says [64]"),
        ({"attention.head_count_kv": 3}, {}, "is no multiple of num_key_value_heads=3"),
        ({"rope.freq_base": 1.0}, {}, "rope_theta=1.0 is not above 1"),
    ],
)
def test_a_gguf_has_no_config_to_be_mended(
    tmp_path: Path, keys: Keys, change: dict[str, np.ndarray | None], said: str
) -> None:
    model = random_model("llama", SMALL)
    tensors = tensors_as_llama_cpp_writes(model, "llama") | change
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(SourceError) as caught:
        logits(write_gguf(tmp_path / "m.gguf", keys_of(model) | keys, present))
    assert said in caught.value.why
    assert caught.value.fix == "use another GGUF of this model, or its Hugging Face folder"


# Positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (
            {"head_dim": 32},
            {
                "attention.key_length": 32,
                "attention.value_length": 32,
                "rope.dimension_count": 32,
            },
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.freq_base": 5e5},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            {"rope.scale_linear": 4.0},
        ),
    ],
    ids=["wide heads", "linear", "linear, an old file"],
)
def test_positions_of_llama(tmp_path: Path, values: dict[str, Any], keys: Keys) -> None:
    model = random_model("llama", {**SMALL, **values})
    tensors = tensors_as_llama_cpp_writes(model, "llama")
    assert_same(write_gguf(tmp_path / "m.gguf", keys_of(model) | keys, tensors), model)


def test_positions_of_llama_3_stand_in_a_tensor(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_model("llama", {**SMALL, "rope_parameters": rope})
    tensors = tensors_as_llama_cpp_writes(model, "llama")
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 1e4 ** (-np.arange(0, 16, 2, dtype=np.float32) / 16)
    tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    assert tensors["rope_freqs.weight"].max() > 7
    assert_same(write_gguf(tmp_path / "m.gguf", keys_of(model), tensors), model)


# Ollama ------------------------------------------------------------------------------------------


VISION = {
    "v.blk.0.attn_q.weight": np.ones((8, 8), np.float32),
    "v.patch_embedding.weight": np.ones((8, 8), np.float32),
    "mm.mm_input_projection.weight": np.ones((8, 64), np.float32),
}
VISION_KEYS: Keys = {
    "vision.block_count": 1,
    "vision.attention.layer_norm_epsilon": 1e-6,
    "mm.tokens_per_image": 256,
}


@pytest.mark.parametrize("positions", [4096, 131072])
def test_gemma_3_of_ollama_with_its_vision_part(tmp_path: Path, positions: int) -> None:
    """Its converter names no base of the frequencies, no epsilon and no stretch by 8."""
    stretch = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": stretch if positions == 131072 else {**stretch, "rope_type": "default"},
    }
    values = {**GEMMA, "max_position_embeddings": positions, "rope_parameters": rope}
    model = random_model("gemma3_text", values)
    keys = keys_of(model) | GEMMA_KEYS | VISION_KEYS
    keys[":tokenizer.ggml.tokens"] = [
        *SMALL_BPE["ggml.tokens"],
        *(f"<unused{i}>" for i in range(60)),
        "<image_soft_token>",  # one more than the embedding has rows
    ]
    keys[":tokenizer.ggml.token_type"] = [*SMALL_BPE["ggml.token_type"], *([3] * 61)]
    tensors = tensors_as_llama_cpp_writes(model, "gemma3") | VISION
    drop = ("attention.layer_norm_rms_epsilon",)
    assert_same(write_gguf(tmp_path / "m.gguf", keys, tensors, "gemma3", drop), model)


def test_gemma_3_of_ollama_names_its_frequencies_otherwise(tmp_path: Path) -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        "full_attention": {"rope_type": "default", "rope_theta": 2e5},
    }
    model = random_model("gemma3_text", {**GEMMA, "rope_parameters": rope})
    keys = keys_of(model) | GEMMA_KEYS
    keys |= {"rope.global.freq_base": 2e5, "rope.local.freq_base": 5e3}
    tensors = tensors_as_llama_cpp_writes(model, "gemma3")
    assert_same(write_gguf(tmp_path / "m.gguf", keys, tensors, "gemma3"), model)


# Wide numbers ------------------------------------------------------------------------------------


def test_float64(tmp_path: Path) -> None:
    model = random_model("llama", SMALL)
    tensors = tensors_as_llama_cpp_writes(model, "llama")
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    assert_same(write_gguf(tmp_path / "m.gguf", keys_of(model), wide), model)
