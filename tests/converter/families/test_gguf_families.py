"""Every family read from a GGUF, against transformers' numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.base import ModelConverter
from converter.checkpoint.gguf import open_gguf
from converter.errors import LiteRTLMError, UnsupportedError
from converter.options import ConvertOptions
from converter.registry import FAMILIES
from runner.interpreter import GraphRunner
from tests.gguf_models import WRITTEN, write_model
from tests.tiny_models import TINY_CONFIGS, make_model, random_model, text_logits

TOKENS = np.random.default_rng(5).integers(0, 256, 64).tolist()
# What the config of a test says, and llama.cpp has no key for.
NOT_IN_A_GGUF = {
    "exaone4-full", "falcon_h1-norm-first-biases", "gemma3", "gemma3_text-linear",
    "gemma3_text-yarn-llama3", "gemma3n", "gemma3n_text-widths", "gemma4", "gemma4_unified",
    "granitemoehybrid-experts", "granitemoehybrid-mamba-groups", "helium", "lfm2-biases-untied",
    "lfm2_moe-without-bias", "llama-gelu-dynamic", "llama-rope-linear", "llama-rope-llama3",
    "llama-rope-longrope", "ministral", "mixtral-window", "nemotron_h-biases",
    "olmoe-renormalised-bias",
    "qwen2-rope-yarn", "qwen2-window", "qwen2_moe-some", "qwen3-tied-bias", "qwen3_moe-some",
    "qwen3_5", "qwen3_5_text-biases-tied", "smollm3-window", "vaultgemma", "vaultgemma-full",
}  # fmt: skip
# Larger models around a text part, which a GGUF holds alone.
WRAPPERS = {"gemma3", "gemma3n", "gemma4", "gemma4_unified", "qwen3_5"}
# What such a config says instead, where no other row of its family can be written.
INSTEAD: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "mistral": {"sliding_window": None},
    "nemotron_h": {"time_step_min": 1e-9, "vocab_size": 288},
    "starcoder2": {"sliding_window": None},
}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({":xielu.beta": 0.7}, "its xielu.beta is 0.7"),
        ({":xielu.alpha_p": [0.5] * 3}, "'xielu.alpha_p' is not a number for each layer"),
        ({":xielu.alpha_n": "x"}, "'xielu.alpha_n' is not a number for each layer"),
        ({":xielu.alpha_n": None}, "blk.0.ffn_act.alpha_n"),
    ],
)
def test_numbers_of_layers_that_are_none(tmp_path: Path, keys: Any, why: str) -> None:
    path = write_model(make_model("apertus"), tmp_path / "tiny.gguf", keys)
    with pytest.raises(LiteRTLMError) as caught, open_gguf(path) as checkpoint:
        ModelConverter(checkpoint, "tiny", ConvertOptions(cache_length=64)).plan()
    assert why in str(caught.value)


def test_layers_that_predict_a_token_more_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3.5's stand after the others; a list says which layers are delta nets."""

    def with_more(config: Any, tensors: Any) -> Any:
        block = f"blk.{config.num_hidden_layers}"
        norm = tensors["blk.0.attn_norm.weight"]
        return tensors | {f"{block}.attn_norm.weight": norm, f"{block}.nextn.enorm.weight": norm}

    written = dataclasses.replace(WRITTEN["qwen3_5_text"], change=with_more)
    monkeypatch.setitem(WRITTEN, "qwen3_5_text", written)
    kinds = ["full_attention", "linear_attention"] * 2
    values = {**TINY_CONFIGS["qwen3_5_text"][1], "layer_types": kinds}
    is_linear = [*(kind == "linear_attention" for kind in kinds), False]
    keys = {
        "block_count": 5,
        "nextn_predict_layers": 1,
        "attention.recurrent_layers": is_linear,
        "full_attention_interval": None,
    }
    model = random_model("qwen3_5_text", values, seed=7)
    path = write_model(model, tmp_path / "tiny.gguf", keys)
    options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=128)
    with open_gguf(path) as checkpoint:
        plan = ModelConverter(checkpoint, "tiny", options).convert(tmp_path / "tiny.litertlm")
    assert plan.found["left out"].startswith("blk.4.* (2 tensors)")
    runner = GraphRunner(tmp_path / "tiny.litertlm")
    got = np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(TOKENS)])
    np.testing.assert_allclose(got, text_logits(model, TOKENS), atol=1e-3, rtol=0)
    for wrong in ({"nextn_predict_layers": 5}, {"attention.recurrent_layers": [True] * 3}):
        path = write_model(model, tmp_path / "wrong.gguf", keys | wrong)
        with pytest.raises(LiteRTLMError, match=next(iter(wrong))), open_gguf(path):
            pass


def test_experts_in_tensors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama.cpp wrote Mixtral until April 2024."""

    def one_by_one(_: Any, tensors: Any) -> Any:
        stacked = {name for name in tensors if "_exps." in name}
        alone = {
            name.replace("_exps.", f".{e}."): expert
            for name in stacked
            for e, expert in enumerate(tensors[name])
        }
        return {n: value for n, value in tensors.items() if n not in stacked} | alone

    written = dataclasses.replace(WRITTEN["mixtral"], change=one_by_one)
    monkeypatch.setitem(WRITTEN, "mixtral", written)
    test_the_numbers_are_those_of_transformers("mixtral", tmp_path)


def test_half_a_head_rotated_is_another_model_s(tmp_path: Path) -> None:
    """Bamba is called granitehybrid, too."""
    keys = {"rope.dimension_count": 8}
    path = write_model(make_model("granitemoehybrid-mamba"), tmp_path / "tiny.gguf", keys)
    with pytest.raises(UnsupportedError) as caught, open_gguf(path) as checkpoint:
        ModelConverter(checkpoint, "tiny", ConvertOptions(cache_length=64)).plan()
    assert "rope.dimension_count=0.5" in str(caught.value)


def test_every_family_that_llama_cpp_knows_is_written() -> None:
    types = {model_type for model_type, _ in TINY_CONFIGS.values()} - WRAPPERS
    assert set(WRITTEN) <= types <= set(FAMILIES)
    compared = {TINY_CONFIGS[test_id][0] for test_id in TINY_CONFIGS.keys() - NOT_IN_A_GGUF}
    assert compared == set(WRITTEN)


@pytest.mark.parametrize("test_id", [name for name in TINY_CONFIGS if name not in NOT_IN_A_GGUF])
def test_the_numbers_are_those_of_transformers(test_id: str, tmp_path: Path) -> None:
    model_type, values = TINY_CONFIGS[test_id]
    model = random_model(model_type, {**values, **INSTEAD.get(test_id, {})}, seed=7)
    path = write_model(model, tmp_path / "tiny.gguf", model_type=model_type)
    options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=128)
    with open_gguf(path) as checkpoint:
        ModelConverter(checkpoint, "tiny", options).convert(tmp_path / "tiny.litertlm")
    runner = GraphRunner(tmp_path / "tiny.litertlm")
    got = np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(TOKENS)])
    np.testing.assert_allclose(got, text_logits(model, TOKENS), atol=1e-3, rtol=0)
