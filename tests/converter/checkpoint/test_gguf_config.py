"""A GGUF's metadata as a config: what is carried over, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from converter.checkpoint.gguf import open_gguf
from converter.errors import SourceError, UnsupportedError
from tests.gguf_files import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCAB,
    Keys,
    refused,
    tensors_of_a_model,
    write_gguf,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# What is carried over.


def config(file: Path, keys: Keys | None = None, **more: Any) -> dict[str, Any]:
    with open_gguf(write_gguf(file, keys, **more)) as checkpoint:
        return checkpoint.config


def test_config_of_a_plain_model(file: Path) -> None:
    assert config(file) == {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-6,  # float32 in the file
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "gguf_biases": [],
    }


def test_sampling_is_what_generation_config_said(file: Path) -> None:
    """By the names of llama.cpp's own library; what the runtime has no word for is left."""
    said: Keys = {
        f":{gguf.Keys.General.SAMPLING_TEMP}": 0.25,
        f":{gguf.Keys.General.SAMPLING_TOP_K}": 7,
        f":{gguf.Keys.General.SAMPLING_TOP_P}": 0.5,
        f":{gguf.Keys.General.SAMPLING_MIN_P}": 0.125,
    }
    with open_gguf(write_gguf(file, said)) as checkpoint:
        assert checkpoint.generation_config == {"temperature": 0.25, "top_k": 7, "top_p": 0.5}
    with open_gguf(write_gguf(file)) as checkpoint:
        assert checkpoint.generation_config == {}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"attention.head_count_kv": 2}, {"num_key_value_heads": 2}),
        ({"attention.head_count_kv": [2, 2]}, {"num_key_value_heads": 2}),
        (
            {"attention.key_length": 32, "attention.value_length": 32},
            {"head_dim": 32},
        ),
        ({"rope.freq_base": 1e6}, {"rope_theta": 1e6}),
        ({"rope.dimension_count": 8}, {"partial_rotary_factor": 0.5}),
        ({"rope.dimension_count": 16}, {}),
        ({"rope.freq_base_swa": 1e4}, {"rope_local_base_freq": 1e4}),
        ({"attention.sliding_window": 32}, {"sliding_window": 32}),
        ({"attention.sliding_window": 0}, {}),
        ({"attention.sliding_window_pattern": 6}, {"sliding_window_pattern": 6}),
        (
            {"attention.sliding_window_pattern": [True, False]},
            {"layer_types": ["sliding_attention", "full_attention"]},
        ),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        ({"rope.scaling.factor": 4.0}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ({"rope.scale_linear": 2.0}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32768,
                "rope.scaling.yarn_beta_fast": 32.0,
                "rope.scaling.yarn_ext_factor": 1.0,
            },
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                    "beta_fast": 32.0,
                },
            },
        ),
        ({"logit_scale": 8.0}, {"logits_scaling": 8.0}),
        ({"residual_scale": 0.22}, {"residual_multiplier": 0.22}),
        ({"embedding_scale": 12.0}, {"embedding_multiplier": 12.0}),
        ({"attention.scale": 0.015625}, {"attention_multiplier": 0.015625}),
        ({"attn_logit_softcapping": 50.0}, {"attn_logit_softcapping": 50.0}),
        ({"final_logit_softcapping": 30.0}, {"final_logit_softcapping": 30.0}),
        (
            {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 64},
            {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        ),
        ({"expert_count": 0}, {}),
        ({"use_parallel_residual": True}, {"use_parallel_residual": True}),
        # What says nothing.
        ({"new_key": 0, "use_alibi": False, "new_list": [0, 0], "new_name": "", "scale": 0.0}, {}),
        ({"attention.causal": True, "pooling_type": 3, "expert_shared_count": 2}, {}),
        ({"embedding_length_out": 64, "nextn_predict_layers": 0}, {}),
        ({"rope.scaling.yarn_log_multiplier": 0.1, "rope.scaling.yarn_beta_fast": 32.0}, {}),
        ({"rope.scaling.attn_factor": 1.0, "rope.scaling.original_context_length": 512}, {}),
    ],
)
def test_config_carries_what_changes_the_numbers(file: Path, keys: Keys, expected: Keys) -> None:
    plain = config(file)
    assert config(file, keys) == plain | expected


def test_config_reads_the_tensors(file: Path) -> None:
    extra = {
        "output.weight": np.zeros((VOCAB, HIDDEN), np.float32),
        **{f"blk.{i}.attn_q.bias": np.zeros(HIDDEN, np.float32) for i in range(LAYERS)},
        "rope_freqs.weight": np.arange(1, 9, dtype=np.float32),
    }
    got = config(file, tensors=tensors_of_a_model(**extra))
    assert got["tie_word_embeddings"] is False
    assert got["gguf_biases"] == ["q"]
    assert got["rope_scaling"] == {"rope_type": "factors", "factors": [1, 2, 3, 4, 5, 6, 7, 8]}
    stretched = config(file, {"rope.scaling.factor": 2.0}, tensors=tensors_of_a_model(**extra))
    assert stretched["rope_scaling"]["factors"] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_attention_factor_of_yarn_is_multiplied_by_its_own(file: Path) -> None:
    """In llama.cpp. Hugging Face's `attention_factor` is the product."""
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.attn_factor": 2.0,
    }
    scaling = config(file, keys, arch="qwen2")["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(2 * (0.1 * np.log(4) + 1))


def test_longrope_tensors_are_told(file: Path) -> None:
    long = {"rope_factors_long.weight": np.full(8, 2, np.float32)}
    short = {"rope_factors_short.weight": np.ones(8, np.float32)}
    got = config(file, tensors=tensors_of_a_model(**long, **short))
    assert got["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    alone = write_gguf(file.with_name("alone.gguf"), tensors=tensors_of_a_model(**long))
    assert "rope_factors_short.weight" in str(refused(alone))


@pytest.mark.parametrize(
    ("arch", "keys", "why"),
    [
        ("falcon-h1", {}, "metadata key 'falcon-h1.ssm.time_step_rank' is missing"),
        (
            "granitehybrid",
            {"ssm.inner_size": 96},
            "metadata key 'granitehybrid.ssm.inner_size' is 96, no multiple of 64",
        ),
        (
            "granitehybrid",
            {"ssm.inner_size": 128, "ssm.conv_kernel": 0},
            "metadata key 'granitehybrid.ssm.conv_kernel' is 0, not a positive whole number",
        ),
        (
            "nemotron_h",
            {"feed_forward_length": [0, 96], "ssm.inner_size": 90},
            "metadata key 'nemotron_h.ssm.inner_size' is 90, no multiple of 4",
        ),
    ],
)
def test_sizes_of_a_state_space_model(
    file: Path, arch: str, keys: dict[str, Any], why: str
) -> None:
    sizes = {"conv_kernel": 4, "state_size": 8, "group_count": 1, "time_step_rank": 4}
    said = {f"ssm.{key}": value for key, value in sizes.items()} if keys else {}
    assert refused(write_gguf(file, {**said, **keys}, arch=arch)).why == why


def test_gemma_s_attention_scale_is_a_query_scalar(file: Path) -> None:
    got = config(file, {"attention.scale": 0.0625}, arch="gemma3")
    assert got["query_pre_attn_scalar"] == 256.0
    assert "query_pre_attn_scalar" not in config(file, arch="gemma3")


# What is refused.


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"block_count": 0}, "metadata key 'llama.block_count' is 0, not a positive whole number"),
        (
            {"block_count": 1 << 31},
            "metadata key 'llama.block_count' is 2147483648, but the file has only 4 tensors",
        ),
        ({"embedding_length": "x"}, "metadata key 'llama.embedding_length' is 'x', not a number"),
        (
            {"rope.freq_base": float("nan")},
            "metadata key 'llama.rope.freq_base' is nan, not a number",
        ),
        ({"rope.scaling.type": 7}, "metadata key 'llama.rope.scaling.type' is 7, not a name"),
        (
            {"attention.head_count": 5},
            "metadata key 'llama.attention.head_count' is 5, which does not divide 64",
        ),
        (
            {"attention.sliding_window_pattern": [True]},
            "metadata key 'llama.attention.sliding_window_pattern' has 1 entries",
        ),
    ],
)
def test_wrong_metadata(file: Path, keys: Keys, why: str) -> None:
    error = refused(write_gguf(file, keys))
    assert isinstance(error, SourceError)
    assert error.why == why


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count"])
def test_missing_metadata(file: Path, key: str) -> None:
    error = refused(write_gguf(file, drop=(key,)))
    assert error.why == f"metadata key 'llama.{key}' is missing"


def test_missing_embedding(file: Path) -> None:
    tensors = tensors_of_a_model()
    del tensors["token_embd.weight"]
    why = "tensor 'token_embd.weight' is missing or not two-dimensional"
    assert refused(write_gguf(file, tensors=tensors)).why == why


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"new_key": "x", "ssm.state_size": 16}, "llama.new_key='x', llama.ssm.state_size=16"),
        ({"attention.causal": False}, "llama.attention.causal=False"),
        ({"attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv=8.0"),
        ({"attention.max_alibi_bias": 8.0}, "llama.attention.max_alibi_bias=8.0"),
        ({"attention.kv_lora_rank": 512}, "llama.attention.kv_lora_rank=512"),
        ({"rope.dimension_sections": [8, 8, 0, 0]}, "llama.rope.dimension_sections"),
        ({"embedding_length_out": 32}, "llama.embedding_length_out=32"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": 0.5},
            "llama.rope.scaling.yarn_log_multiplier=0.5",
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5},
            "YaRN with yarn_ext_factor 0.5",
        ),
        ({"rope.scaling.attn_factor": 1.5}, "an attention factor of 1.5 without YaRN"),
    ],
)
def test_keys_that_change_the_numbers_are_refused_by_name(
    file: Path, keys: Keys, said: str
) -> None:
    error = refused(write_gguf(file, keys))
    assert isinstance(error, UnsupportedError)
    assert said in error.why


@pytest.mark.parametrize("arch", ["gptneox", "bloom", "x" * 500])
def test_other_architectures_are_refused_before_anything_else(file: Path, arch: str) -> None:
    error = refused(write_gguf(file, arch=arch, drop=("block_count", "attention.head_count")))
    assert isinstance(error, UnsupportedError)
    assert error.why == "not a supported architecture"
    assert arch in error.what
    experts = refused(write_gguf(file, {"expert_count": 60}, arch="deepseek"))
    assert experts.why == "its feed-forward blocks are 60 experts, a kind that is not supported"


def test_keys_and_values_of_different_size(file: Path) -> None:
    error = refused(write_gguf(file, {"attention.key_length": 32, "attention.value_length": 16}))
    assert isinstance(error, UnsupportedError)
    assert error.why == "llama.attention.key_length 32 differs from value_length 16"


def test_layers_of_different_shape(file: Path) -> None:
    error = refused(write_gguf(file, {"attention.head_count_kv": [2, 4]}))
    assert isinstance(error, UnsupportedError)
    assert error.why == "llama.attention.head_count_kv differs between layers"


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([2, 4], "lfm2.attention.head_count_kv differs between layers"),
        ([2], "metadata key 'lfm2.attention.head_count_kv' is not a number for each of 2 layers"),
        (
            [0, -2],
            "metadata key 'lfm2.attention.head_count_kv' is not a number for each of 2 layers",
        ),
    ],
)
def test_layers_with_and_without_heads(file: Path, counts: list[int], why: str) -> None:
    assert refused(write_gguf(file, {"attention.head_count_kv": counts}, arch="lfm2")).why == why


@pytest.mark.parametrize(
    ("widths", "why"),
    [
        ([48, 96], "differs between layers"),
        (96, "is not a number for each of 2 layers"),
        ([96], "is not a number for each of 2 layers"),
        ([0, -1], "is not a number for each of 2 layers"),
    ],
)
def test_layers_with_and_without_a_feed_forward_block(file: Path, widths: Any, why: str) -> None:
    error = refused(write_gguf(file, {"feed_forward_length": widths}, arch="nemotron_h"))
    assert "nemotron_h.feed_forward_length" in error.why
    assert error.why.endswith(why)


def test_gemma_s_attention_scale_out_of_range(file: Path) -> None:
    error = refused(write_gguf(file, {"attention.scale": 1e-30}, arch="gemma3"))
    assert error.why == "metadata key 'gemma3.attention.scale' is 1e-30"


def test_rope_factors_with_another_scaling(file: Path) -> None:
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    error = refused(write_gguf(file, {"rope.scaling.type": "yarn"}, tensors_of_a_model(**factors)))
    assert isinstance(error, UnsupportedError)
    assert error.why == "rope_freqs.weight together with yarn rope scaling"


def test_rope_factors_of_another_length(file: Path) -> None:
    factors = {"rope_freqs.weight": np.ones(4, np.float32)}
    error = refused(write_gguf(file, tensors=tensors_of_a_model(**factors)))
    assert error.why == "tensor 'rope_freqs.weight' has shape (4,), not (8,)"


# Real files.


def test_config_of_smollm2(smollm2_gguf: Path) -> None:
    with open_gguf(smollm2_gguf) as checkpoint:
        assert len(checkpoint.tensors) == 272
        assert checkpoint.config == {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "gguf_biases": [],
        }


def test_config_of_gemma3(gemma3_gguf: Path) -> None:
    with open_gguf(gemma3_gguf) as checkpoint:
        assert len(checkpoint.tensors) == 236
        assert checkpoint.config == {
            "model_type": "gemma3",
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "tie_word_embeddings": True,
            "gguf_biases": [],
        }
