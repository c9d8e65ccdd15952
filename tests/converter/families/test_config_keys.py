"""Which keys of a config are read, refused or ignored: held against transformers' classes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from converter.errors import SourceError, UnsupportedError
from converter.families.config_keys import LIMITS, WITHOUT_EFFECT
from converter.registry import FAMILIES, family_of
from tests.converter.families.test_rope import TINY
from tests.tiny_models import OWN_CODE

# Larger models, whose class has the keys of its parts.
WRAPPERS = ("gemma3", "gemma4", "gemma4_unified", "qwen3_5")
MODEL_TYPES = tuple(name for name in FAMILIES if name not in OWN_CODE)


def config_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_key_of_transformers_is_known(model_type: str) -> None:
    """A new one has to be judged: it is read, or refused, or without effect, or it is ignored."""
    cls = FAMILIES[model_type]
    theirs = {field.name for field in dataclasses.fields(config_class(model_type))}
    known = cls.keys() | LIMITS.keys() | cls.limits.keys() | cls.beside | WITHOUT_EFFECT
    # Gemma 3's class has it, and its attention never takes it.
    ignored = {"attn_logit_softcapping"} if model_type == "gemma3_text" else set()
    assert theirs - known == ignored


# Keys that transformers 5 moved or renamed, or that its models read although no class has them.
_ELSEWHERE = {
    "head_dim", "rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern",
    "is_causal", "partial_rotary_factor", "per_layer_config", "block_ff_dim", "tie_embedding",
    "full_attention_interval", "hybrid_override_pattern", "layer_types", "num_hidden_layers",
    "num_experts", "num_local_experts", "swiglu_limit",
}  # fmt: skip


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in WRAPPERS])
def test_no_other_key_is_read(model_type: str) -> None:
    cls = FAMILIES[model_type]
    theirs = {field.name for field in dataclasses.fields(config_class(model_type))}
    assert (cls.keys() | LIMITS.keys() | cls.limits.keys()) - theirs <= _ELSEWHERE


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in WRAPPERS])
def test_what_is_left_out_has_the_default_of_transformers(model_type: str) -> None:
    theirs = {field.name: field.default for field in dataclasses.fields(config_class(model_type))}
    aliases = FAMILIES[model_type].aliases
    theirs |= {aliases[name]: theirs[name] for name in aliases if name in theirs}
    for field in dataclasses.fields(FAMILIES[model_type]):
        if field.default is not dataclasses.MISSING and field.name in theirs:
            # None stands for what is worked out: a head's width, a GGUF's unstated scalar.
            assert field.default in (theirs[field.name], None), field.name


@pytest.mark.parametrize(
    ("model_type", "changes", "ignored"),
    [
        ("qwen2", {"attention_bias": True}, ("attention_bias",)),
        ("qwen2", {"mlp_bias": True, "final_logit_softcapping": 30.0}, None),
        ("llama", {"sliding_window": 8, "use_sliding_window": True}, None),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, ("layer_types",)),
        ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
        ("llama", {"residual_multiplier": 0.2, "attention_multiplier": 0.3}, None),
        ("llama", {"embedding_multiplier": 12.0, "logits_scaling": 8.0}, None),
        ("llama", {"logit_scale": 2.0, "qk_layernorm": True, "num_experts": 8}, None),
        ("llama", {"pretraining_tp": 2, "attention_dropout": 0.5, "use_cache": False}, ()),
        ("llama", {"torch_dtype": "bfloat16", "dtype": "float16", "_name_or_path": "x"}, ()),
        ("llama", {"temperature": 0.6, "id2label": {"0": "A"}, "label2id": {"A": 0}}, ()),
        ("llama", {"unsloth_fixed": True, "auto_map": {"AutoModel": "x.Y"}}, None),
        ("llama", {"sliding_window": None, "rope_interleaved": False, "clip_qkv": 0}, ()),
        ("qwen3", {"mlp_bias": True}, ("mlp_bias",)),
        ("qwen3", {"rope_scaling": {"rope_type": "default", "x": 1}}, ("rope_scaling.x",)),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, ("attn_logit_softcapping",)),
        ("gemma3_text", {"hidden_act": "relu"}, ("hidden_act",)),
        ("nemotron", {"rms_norm_eps": 0.5}, ("rms_norm_eps",)),
        ("gemma3_text", {"mlp_bias": True, "cache_implementation": "hybrid"}, ("mlp_bias",)),
    ],
)
def test_keys_that_transformers_ignores_are_ignored_and_said(
    model_type: str, changes: dict[str, Any], ignored: tuple[str, ...] | None
) -> None:
    config = {**TINY, "model_type": model_type}
    family = family_of({**config, **changes})
    assert family.spec() == family_of(config).spec()
    found = family.ignored_keys({**config, **changes})
    assert found == (tuple(sorted(changes)) if ignored is None else ignored)
    assert _logits({**config, **changes}) == _logits(config)


def _logits(config: dict[str, Any]) -> Any:
    """transformers' logits of a model with seeded random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = copy.deepcopy({k: v for k, v in config.items() if k not in ("model_type", "dtype")})
    values.pop("torch_dtype", None)
    torch.manual_seed(0)
    made = AutoConfig.for_model(config["model_type"], **values)
    model = AutoModelForCausalLM.from_config(made).eval()
    with torch.no_grad():
        return model(torch.arange(24)[None], use_cache=False).logits.tolist()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"is_causal": False}),
        ("qwen3", {"is_encoder_decoder": True}),
        ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 1}}}),
        ("llama", {"hidden_act": "relu"}),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"hidden_activation": "relu"}),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(
    model_type: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        family_of({**TINY, "model_type": model_type, **changes})
    assert next(iter(changes)) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"partial_rotary_factor": 0.5},
        {"use_parallel_residual": True},
        {"residual_multiplier": 0.2},
        {"final_logit_softcapping": 30.0},
        {"layer_types": ["sliding_attention"] * 2},
        {"conv_L_cache": 3},
    ],
)
def test_a_gguf_says_what_it_means(changes: dict[str, Any]) -> None:
    """Nothing of it is ignored: llama.cpp knows all these keys, in every architecture."""
    with pytest.raises(UnsupportedError) as caught:
        family_of({**TINY, "model_type": "llama", **changes}, "gguf")
    assert f"{next(iter(changes))}=" in str(caught.value)


def test_the_text_part_of_a_larger_model_is_read_alone() -> None:
    text = {**TINY, "sliding_window": 64}
    top = {
        "model_type": "gemma3",
        "hidden_size": 7,
        "boi_token_index": 5,
        "vision_config": {"a": 1},
    }
    family = family_of({**top, "text_config": text})
    assert (family.hidden_size, family.tie_word_embeddings) == (64, True)
    untied = family_of({**top, "text_config": text, "tie_word_embeddings": False})
    assert not untied.tie_word_embeddings
    # Its own switch is another one than the larger model's.
    assert family_of({**top, "text_config": {**text, "tie_word_embeddings": False}}) == family


def test_null_is_not_the_same_as_nothing() -> None:
    heads = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    assert family_of({**heads, "model_type": "qwen2", "num_key_value_heads": None}).kv_heads == 4
    assert family_of({**heads, "model_type": "llama"}).kv_heads == 4


def test_a_number_without_a_point_is_a_float_where_one_is_meant() -> None:
    family = family_of({**TINY, "model_type": "llama", "rms_norm_eps": 1, "rope_theta": 1000000})
    assert (type(family.rms_norm_eps), type(family.rope_theta)) == (float, float)
    with pytest.raises(SourceError, match="rope_theta=1000000"):
        family_of({**TINY, "model_type": "llama", "rope_theta": 10**400})


def test_windows_from_the_first_layer_on() -> None:
    config = {**TINY, "model_type": "qwen2", "sliding_window": 4, "max_window_layers": 0}
    assert {layer.mixer.sliding_window for layer in family_of(config).spec().layers} == {None}
    layers = family_of({**config, "use_sliding_window": True}).spec().layers
    assert {layer.mixer.sliding_window for layer in layers} == {4}
