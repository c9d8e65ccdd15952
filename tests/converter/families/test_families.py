"""Configs in, networks out: published configs, aliases, name tables and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest

from converter.decoder import Activation, DecoderSpec, Placement, Rope
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.families.base import Family
from converter.registry import FAMILIES, family_of
from tests.published_configs import PUBLISHED

LLAMA_32_1B = PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"][0]
QWEN3_06B = PUBLISHED["Qwen/Qwen3-0.6B"][0]
QWEN25_05B = PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"][0]
GEMMA3_4B = PUBLISHED["google/gemma-3-4b-it"][0]


def spec_of(config: dict[str, Any], **changes: Any) -> DecoderSpec:
    return family_of({**config, **changes}).spec()


def test_llama_32() -> None:
    spec = spec_of(LLAMA_32_1B)
    [mixer] = {layer.mixer for layer in spec.layers}
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == (32, 8, 64)
    assert spec.tied_head
    assert not any((mixer.biases, mixer.qk_norm))
    assert spec.placement is Placement.BEFORE
    assert mixer.rope is not None
    frequencies = mixer.rope.inverse_frequencies(64)
    # High frequencies are untouched, the lowest is divided by the factor.
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(500000.0 ** (-62 / 64) / 32)


def test_llama3_scaling_equals_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {k: v for k, v in LLAMA_32_1B.items() if k not in ("model_type", "torch_dtype")}
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**values), device="cpu")
    rope = spec_of(LLAMA_32_1B).layers[0].mixer.rope
    assert rope is not None
    assert rope.inverse_frequencies(64) == pytest.approx(expected.tolist(), rel=1e-6)


def test_qwen3() -> None:
    spec = spec_of(QWEN3_06B)
    [mixer] = {layer.mixer for layer in spec.layers}
    assert mixer.qk_norm is not None
    assert not mixer.biases
    assert mixer.head_dim == 128  # not hidden / heads
    assert {layer.mixer.sliding_window for layer in spec.layers} == {None}
    # 0.6 billion with the tied head counted once
    count = sum(math.prod(shape) for _, shape in spec.weight_shapes())
    assert count == 596_049_920


def test_qwen25_has_biases_and_a_window_that_is_switched_off() -> None:
    spec = spec_of(QWEN25_05B)
    assert spec.layers[0].mixer.biases == ("q", "k", "v")
    assert {layer.mixer.sliding_window for layer in spec.layers} == {None}
    # transformers' class has neither key.
    assert spec_of(QWEN25_05B, attention_bias=True, mlp_bias=True).layers[0].mixer.biases == (
        "q",
        "k",
        "v",
    )
    sliding = spec_of(QWEN25_05B, use_sliding_window=True, sliding_window=4096)
    assert [layer.mixer.sliding_window for layer in sliding.layers] == [None] * 21 + [4096] * 3


def test_gemma3_takes_the_text_part_and_transformers_defaults() -> None:
    spec = spec_of(GEMMA3_4B)
    mixer = spec.layers[0].mixer
    assert (spec.vocab_size, mixer.num_heads, mixer.num_kv_heads) == (262208, 8, 4)
    assert spec.layers[0].feed_forward.activation is Activation.GELU_TANH
    assert spec.embedding_scale == pytest.approx(math.sqrt(2560))
    assert mixer.scale == 256**-0.5
    windows = [layer.mixer.sliding_window for layer in spec.layers]
    assert windows[:12] == [1024] * 5 + [None] + [1024] * 5 + [None]
    assert mixer.rope == Rope(10_000)
    assert spec.layers[5].mixer.rope == Rope(1_000_000, (8.0,))


def test_gemma3_27b_of_a_gguf_has_its_own_attention_scale() -> None:
    text = {
        "num_hidden_layers": 62,
        "hidden_size": 5376,
        "num_attention_heads": 32,
        "head_dim": 128,
    }
    assert spec_of({"model_type": "gemma3", **text}).layers[0].mixer.scale == 168**-0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "big"}, "hidden_size='big' is not a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a positive integer"),
        ({"num_hidden_layers": 1 << 60}, "is more than any model has"),
        ({"hidden_size": 1 << 60, "head_dim": None}, "is more than any model has"),
        ({"hidden_size": 16, "head_dim": None}, "leaves num_attention_heads=32 no width"),
        ({"rms_norm_eps": True}, "rms_norm_eps=True is not a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' is not true or false"),
        ({"vocab_size": None}, "has no vocab_size"),
        ({"num_key_value_heads": 5}, "is no multiple of num_key_value_heads=5"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as error:
        family_of({**LLAMA_32_1B, **changes})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [{"num_experts_per_tok": 65}, {"num_local_experts": 7}, {"num_experts_per_tok": 0}],
)
def test_a_token_takes_no_more_experts_than_there_are(changes: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"is not 1 to (64|7), the experts"):
        family_of({"model_type": "olmoe", **changes})


def test_layer_types_name_every_layer() -> None:
    with pytest.raises(SourceError, match="layer_types names 1 layers, num_hidden_layers says 28"):
        family_of({**QWEN3_06B, "layer_types": ["full_attention"]})


def test_unsupported_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(UnsupportedError) as error:
        family_of({"model_type": "mamba"})
    assert str(error.value) == (
        "model_type mamba, its layers keep another state than keys and values, which is not "
        "supported yet, use a model of one of these families: "
        f"{', '.join(sorted({family.name for family in FAMILIES.values()}))}"
    )
    for config in (
        {},
        {"model_type": []},
        {"model_type": "mistral3", "text_config": {"model_type": 3}},
    ):
        with pytest.raises(SourceError, match="has no model_type"):
            family_of(config)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            {"model_type": "phimoe", "num_local_experts": 16},
            "its feed-forward blocks are 16 experts, a kind that is not supported",
        ),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": 256},
            "its feed-forward blocks are 256 experts",
        ),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "its attention caches a latent (MLA)"),
        ({"model_type": "lfm3"}, "transformers does not have it yet"),
        ({"model_type": "bamba"}, "transformers 5 rotates whole heads"),
        ({"model_type": "jamba"}, "its layers keep another state than keys and values"),
        ({"model_type": "qwen3_next", "text_config": {}}, "its layers keep another state"),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "ME*"},
            "only linear_attention, full_attention, mlp, mamba, attention are",
        ),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "--"}, "only beside attention"),
        ({"model_type": "nemotron_h_moe", "expert_count": 128}, "are 128 experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "no decoder that writes text"),
        ({"model_type": "xlm-roberta"}, "no decoder that writes text"),
        (
            {
                "model_type": "qwen2_vl",
                "text_config": {"model_type": "qwen2_vl_text"},
                "vision_config": {},
            },
            "a model of text and images; its text part, qwen2_vl_text, is not read yet",
        ),
        ({"model_type": "opt"}, "not a supported architecture"),
        ({"model_type": "own", "auto_map": {}}, "(its own code, in auto_map, is not run)"),
    ],
)
def test_why_an_architecture_is_not_supported(config: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        family_of(config)
    assert why in error.value.why


# Name tables ------------------------------------------------------------------------------------


def _tensors(family: Family, fmt: str) -> list[str]:
    column = 2 if fmt == "gguf" else 1
    table = {row[0]: row[column] for row in family.names}
    names = []
    for path, _ in family.spec().weight_shapes():
        parts = path.removesuffix(".bias").split(".")
        layer = parts[1:2]
        if parts[0] == "layers":
            parts[1] = "{i}"
        name = table[".".join(parts)].replace("{i}", *layer) if layer else table[parts[0]]
        names.append(name.replace(".weight", ".bias") if path.endswith(".bias") else name)
    return names


@pytest.mark.parametrize("fmt", ["safetensors", "gguf"])
@pytest.mark.parametrize("config", [LLAMA_32_1B, QWEN3_06B, QWEN25_05B, GEMMA3_4B])
def test_every_weight_has_a_name(config: dict[str, Any], fmt: str) -> None:
    family = family_of(config)
    sources = family.weight_sources(_tensors(family, fmt), fmt)
    assert list(sources) == [path for path, _ in family.spec().weight_shapes()]


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_the_decoder_is_found_inside_larger_models(prefix: str) -> None:
    family = family_of(GEMMA3_4B)
    tensors = [prefix + name for name in _tensors(family, "safetensors")]
    extra = ["vision_tower.encoder.weight", "model.multi_modal_projector.weight"]
    sources = family.weight_sources([*tensors, *extra], "safetensors")
    assert sources["embedding"].tensor == f"{prefix}embed_tokens.weight"


def test_missing_and_unknown_tensors_are_listed() -> None:
    family = family_of(QWEN3_06B)
    tensors = _tensors(family, "safetensors")
    gone = {"layers.0.mlp.up_proj.weight", "norm.weight"}
    with pytest.raises(SourceError) as error:
        family.weight_sources([name for name in tensors if name not in gone], "safetensors")
    assert "lacks 2 tensors: layers.0.mlp.up_proj.weight, norm.weight" in str(error.value)
    with pytest.raises(SourceError) as error:
        family.weight_sources([*tensors, "model.layers.0.self_attn.sinks"], "safetensors")
    assert "holds 1 tensors that this network does not have: model.layers.0.self_attn.sinks" in str(
        error.value
    )
    with pytest.raises(SourceError, match="holds the same weight twice"):
        family.weight_sources([*tensors, "model.norm.weight"], "safetensors")


def test_a_tied_checkpoint_may_hold_its_head_again() -> None:
    family = family_of(QWEN3_06B)
    sources = family.weight_sources(
        [*_tensors(family, "safetensors"), "lm_head.weight"], "safetensors"
    )
    assert "head" not in sources
    untied = family_of({**QWEN3_06B, "tie_word_embeddings": False})
    with pytest.raises(LiteRTLMError, match=r"lacks 1 tensors: lm_head\.weight"):
        untied.weight_sources(_tensors(family, "safetensors"), "safetensors")


def test_what_formats_store_differently() -> None:
    llama, gemma = family_of(LLAMA_32_1B), family_of(GEMMA3_4B)
    q, k, v = (f"layers.3.attention.{part}" for part in "qkv")
    stored = llama.weight_sources(_tensors(llama, "gguf"), "gguf")
    assert [stored[path].interleaved for path in (q, k, v)] == [(64, 64), (64, 64), None]
    plain = llama.weight_sources(_tensors(llama, "safetensors"), "safetensors")
    assert {source.interleaved for source in plain.values()} == {None}
    less_one = gemma.weight_sources(_tensors(gemma, "safetensors"), "safetensors")
    assert less_one["final_norm"].add == less_one["layers.0.attention.q_norm"].add == 1
    assert less_one[q].add == 0
    added = gemma.weight_sources(_tensors(gemma, "gguf"), "gguf")
    assert {source.add for source in added.values()} == {0}
