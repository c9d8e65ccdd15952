"""config.json of published models, as they are: which network they are read as."""

from __future__ import annotations

import math
from typing import Any

import pytest

from converter.decoder import (
    Activation,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    GatedDeltaNet,
    Mamba2,
    NormKind,
    Placement,
    Rope,
    ShortConv,
)
from converter.errors import UnsupportedError
from converter.registry import FAMILIES, family_of
from tests.published_configs import PUBLISHED
from tests.tiny_models import OWN_CODE

# A Llama of its own numbers; what is as here is not said in the table.
PLAIN: dict[str, Any] = {
    "tied": False, "stretch": 1.0, "attention_factor": 1.0, "long": None, "local": None,
    "windows": set(), "nope": [], "score_scale": None, "score_softcap": None, "qk_norm": None,
    "position_scale": None, "embedding_scale": None, "residual_scale": None, "logits_scale": None,
    "logits_softcap": None, "norm": NormKind.RMS, "placement": Placement.BEFORE, "biases": "",
    "activation": Activation.SILU, "gate": True, "convs": {}, "deltas": {}, "mambas": {},
    "output_gate": False, "value_norm": False,
    "shared": 0, "keys_are_values": 0, "heads": None, "widths": None, "cutoffs": 0,
    "per_layer": None, "layer_scales": False, "streams": 1, "laurel": None,
    "experts": None, "sinks": 0, "limit": None,
}  # fmt: skip


def described(spec: DecoderSpec) -> dict[str, Any]:
    """What makes this network another one than others: see `tests/published_configs.py`.

    `theta` and `stretch`, by which the slowest frequency is divided, are those of the layers that
    see everything, where there are such with a rotary embedding; `local` is for the others.
    """
    by_layer = {i: layer.mixer for i, layer in enumerate(spec.layers) if layer.mixer}
    attention = {i: mixer for i, mixer in by_layer.items() if isinstance(mixer, Attention)}
    mixers = list(attention.values())
    windows = [mixer.sliding_window for mixer in mixers]
    ropes = {mixer.sliding_window: mixer.rope for mixer in mixers if mixer.rope}
    main = ropes.get(None) or next(iter(ropes.values()), None)
    blocks = [_dense(layer.feed_forward) for layer in spec.layers if layer.feed_forward]
    mixer, feed_forward = mixers[0], blocks[0]
    given = spec.per_layer_input
    heads = {(m.num_heads, m.num_kv_heads, m.head_dim) for m in mixers}
    widths = {block.width for block in blocks}
    head_bias = ("head",) if spec.head_bias else ()
    said = {
        "parameters": sum(math.prod(shape) for _, shape in spec.weight_shapes()),
        "rotated": main and (main.width or mixer.head_dim),
        "theta": main and main.theta,
        "stretch": round(main.factors[-1], 3) if main else 1.0,
        "attention_factor": round(main.attention_factor, 4) if main else 1.0,
        "long": main and main.longer and (main.positions, main.longer.factors[-1]),
        "local": _theta_and_stretch([rope for rope in ropes.values() if rope != main]),
        "windows": windows if len(set(windows)) > 1 else set(windows) - {None},
        "nope": [i for i, mixer in attention.items() if mixer.rope is None],
        "score_scale": None if mixer.scale == mixer.head_dim**-0.5 else mixer.scale,
        "score_softcap": mixer.softcap,
        "qk_norm": _qk_norm(mixer),
        "position_scale": mixer.position_scale
        and (mixer.position_scale.beta, mixer.position_scale.length),
        "embedding_scale": spec.embedding_scale,
        "residual_scale": spec.residual_scale,
        "logits_scale": spec.logits_scale,
        "logits_softcap": spec.logits_softcap,
        "norm": spec.norm.kind,
        "placement": spec.placement,
        "biases": " ".join(mixer.biases + feed_forward.biases + head_bias),
        "activation": feed_forward.activation,
        "gate": feed_forward.is_gated,
        "convs": {i: m.kernel for i, m in by_layer.items() if isinstance(m, ShortConv)},
        "deltas": {
            i: (m.num_key_heads, m.num_value_heads, m.key_dim, m.value_dim, m.kernel)
            for i, m in by_layer.items()
            if isinstance(m, GatedDeltaNet)
        },
        "mambas": {
            i: (m.num_heads, m.head_dim, m.groups, m.state_dim, m.kernel)
            for i, layer in enumerate(spec.layers)
            for m in layer.mixers
            if isinstance(m, Mamba2)
        },
        "output_gate": mixer.is_gated,
        "tied": spec.tied_head,
        "value_norm": mixer.value_norm is not None,
        "shared": sum(m.cache_of is not None for m in mixers),
        "keys_are_values": sum(m.keys_are_values for m in mixers),
        "heads": heads if len(heads) > 1 else None,
        "widths": widths if len(widths) > 1 else None,
        "cutoffs": sum(block.cutoff is not None for block in blocks),
        "per_layer": given and (given.width, given.rows),
        "layer_scales": spec.has_layer_scales,
        "streams": spec.altup.streams if spec.altup else 1,
        "laurel": spec.laurel_rank,
        "experts": _experts(spec),
        "sinks": sum(m.has_sinks for m in mixers),
        "limit": feed_forward.limit and (feed_forward.limit, feed_forward.up_offset),
    }
    return {key: value for key, value in said.items() if key not in PLAIN or value != PLAIN[key]}


def _theta_and_stretch(ropes: list[Rope]) -> tuple[float, float] | None:
    return (ropes[0].theta, ropes[0].factors[-1]) if ropes else None


def _dense(block: FeedForward | Experts) -> FeedForward:
    """A block, or one of its experts."""
    return block.expert if isinstance(block, Experts) else block


def _experts(spec: DecoderSpec) -> tuple[int, int, int, int, str] | None:
    """In how many layers they are, how many of how many are taken, how wide, and by what."""
    found = [b for layer in spec.layers if isinstance(b := layer.feed_forward, Experts)]
    if not found:
        return None
    [experts] = set(found)
    assert experts.scale == 1
    how = ("renormalised " if experts.renormalises else "") + experts.router
    how += ", chosen with a bias" if experts.choice_bias else ""
    how += ", biased" if experts.router_bias else ""
    how += ", scaled" if experts.has_scales else ""
    if experts.shared is not None:
        how += f", beside {experts.shared.width}"
        how += ", gated" if experts.shared_is_gated else ""
    return len(found), experts.active, experts.count, experts.expert.width, how


def _qk_norm(mixer: Attention) -> str | None:
    if mixer.qk_norm is None:
        return None
    width = "full width" if mixer.qk_norm.is_full_width else "per head"
    return f"{width}, after rope" if mixer.qk_norm.after_rope else width


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def written_by_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 saves of a config: rotary settings in `rope_parameters`."""
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    return AutoConfig.for_model(config["model_type"], **values).to_dict()


def test_every_family_has_a_published_config() -> None:
    configs = [config for config, _ in PUBLISHED.values()]
    assert {config["model_type"] for config in map(text_part, configs)} | {
        config["model_type"] for config in configs
    } >= FAMILIES.keys()


@pytest.mark.parametrize("model", PUBLISHED)
def test_it_is_read_as_it_is(model: str) -> None:
    config, said = PUBLISHED[model]
    assert described(family_of(config).spec()) == said


# transformers has no class that would spell the others' anew.
OF_TRANSFORMERS = [
    m for m, (config, _) in PUBLISHED.items() if config["model_type"] not in OWN_CODE
]


@pytest.mark.parametrize("model", OF_TRANSFORMERS)
def test_transformers_5_spells_it_anew(model: str) -> None:
    config, _ = PUBLISHED[model]
    new = written_by_transformers(config)
    assert "rope_theta" not in text_part(new)
    assert family_of(new).spec() == family_of(config).spec()


@pytest.mark.parametrize(
    ("model", "ignored"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", ()),
        ("mistralai/Ministral-3-3B-Reasoning-2512", ()),
        ("google/translategemma-4b-it", ("_sliding_window_pattern",)),
        (
            "tencent/Hunyuan-0.5B-Instruct",
            ("attention_head_dim", "use_qk_norm", "use_rotary_pos_emb"),
        ),
    ],
)
def test_what_is_read_is_not_called_ignored(model: str, ignored: tuple[str, ...]) -> None:
    """Nor is what a larger model says of its vision part."""
    config = PUBLISHED[model][0]
    assert family_of(config).ignored_keys(config) == ignored


def test_a_class_of_the_repositorys_own_code_tells_the_family() -> None:
    """Some of MiniCPM's configs have no model_type."""
    config, _ = PUBLISHED["openbmb/MiniCPM-2B-sft-bf16"]
    named = {key: value for key, value in config.items() if key != "model_type"}
    found = family_of({**named, "architectures": ["MiniCPMForCausalLM"]})
    assert found == family_of(config)


# Gemma and Olmo 3 have a set of rotary parameters for each kind of layer; the older spelling has
# one of them. In Gemma 3 a `type` is lost: see `docs/configs.md`; Gemma 4 has no older spelling.
# Nemotron-H has no positions.
ONE_SET = [
    model
    for model in OF_TRANSFORMERS
    if not text_part(PUBLISHED[model][0])["model_type"].startswith(
        ("gemma3", "gemma4", "nemotron_h", "olmo3")
    )
]


@pytest.mark.parametrize("model", ONE_SET)
def test_its_rotary_settings_in_the_older_spelling(model: str) -> None:
    config, _ = PUBLISHED[model]
    old = dict(written_by_transformers(text_part(config)))
    settings = old.pop("rope_parameters")
    old["rope_theta"] = settings.pop("rope_theta")
    old["rope_scaling"] = {"type": settings.pop("rope_type"), **settings}
    assert family_of(old).spec() == family_of(config).spec()


def test_a_length_may_be_written_as_a_float() -> None:
    config, _ = PUBLISHED["mistralai/Ministral-3-3B-Reasoning-2512"]
    text = text_part(config)
    length = {"original_max_position_embeddings": 16384.0}
    written = {**text, "rope_parameters": {**text["rope_parameters"], **length}}
    assert family_of({**config, "text_config": written}).spec() == family_of(config).spec()


# One value for every family, and what it lacks most often.
REFUSED: dict[str, dict[str, Any]] = {
    "ibm-granite/granite-3.1-1b-a400m-instruct": {"hidden_act": "relu"},
    "LiquidAI/LFM2-8B-A1B": {"conv_L_cache": 1},
    "allenai/OLMoE-1B-7B-0924-Instruct": {"clip_qkv": 8.0},
    "openai/gpt-oss-20b": {"swiglu_limit": 5.0},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {"hidden_act": "relu"},
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": {"layer_types": ["chunked_attention"] * 24},
    "Qwen/Qwen3-30B-A3B": {"hidden_act": "relu"},
    "swiss-ai/Apertus-8B-Instruct-2509": {"hidden_act": "relu"},
    "arcee-ai/AFM-4.5B": {"hidden_act": "relu"},
    "CohereLabs/aya-23-8B": {"use_qk_norm": True},
    "CohereLabs/c4ai-command-r7b-12-2024": {"layer_types": ["chunked_attention"] * 32},
    "baidu/ERNIE-4.5-0.3B-PT": {"hidden_act": "gelu_10"},
    "LGAI-EXAONE/EXAONE-4.0-1.2B": {"layer_types": ["chunked_attention"] * 30},
    "google/gemma-1.1-2b-it": {"use_bidirectional_attention": True},
    "google/gemma-2-2b-it": {"hidden_activation": "relu"},
    "google/vaultgemma-1b": {"hidden_activation": "relu"},
    "google/gemma-3-4b-it": {"final_logit_softcapping": 30.0},
    "google/functiongemma-270m-it": {"use_bidirectional_attention": True},
    "google/gemma-3n-E4B-it": {"hidden_activation": "relu"},
    "google/gemma-4-E2B-it": {"use_bidirectional_attention": "all"},
    "google/gemma-4-12B-it": {"use_bidirectional_attention": "all"},
    "zai-org/glm-4-9b-chat-hf": {"partial_rotary_factor": 0.01},
    "zai-org/GLM-4-9B-0414": {"partial_rotary_factor": 1.5},
    "ibm-granite/granite-3.3-2b-instruct": {"per_layer_config": {"0": {"num_key_value_heads": 1}}},
    "ibm-granite/granite-4.0-1b": {"layer_types": ["moe"] * 40},
    "ibm-granite/granite-4.0-350m": {"hidden_act": "relu"},
    "ibm-granite/granite-4.0-h-350m": {"mamba_d_conv": 1},
    "tiiuae/Falcon-H1-0.5B-Instruct": {"ssm_multipliers": [1.0] * 4},
    "kyutai/helium-1-preview-2b": {"hidden_act": "relu"},
    "tencent/Hunyuan-0.5B-Instruct": {"rope_scaling": {"type": "xdrope"}},
    "LiquidAI/LFM2-1.2B": {"conv_L_cache": 1},
    "meta-llama/Llama-3.2-1B-Instruct": {"rope_scaling": {"type": "ntk", "factor": 2.0}},
    "mistralai/Ministral-8B-Instruct-2410": {"layer_types": ["chunked_attention"] * 36},
    "mistralai/Ministral-3-3B-Reasoning-2512": {"hidden_act": "relu"},
    "mistralai/Mistral-7B-v0.1": {"is_causal": False},
    "inceptionai/Jais-2-8B-Chat": {"hidden_act": "relu"},
    "nvidia/Nemotron-Mini-4B-Instruct": {"hidden_act": "relu"},
    "nvidia/Nemotron-H-8B-Base-8K": {"mlp_hidden_act": "relu"},
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": {"time_step_limit": [0.01, 1.0]},
    "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": {"mamba_hidden_act": "relu"},
    "allenai/OLMo-2-0425-1B-Instruct": {"rope_scaling": {"type": "ntk", "factor": 2.0}},
    "allenai/Olmo-3-7B-Instruct": {"layer_types": ["chunked_attention"] * 32},
    "internlm/internlm3-8b-instruct": {"hidden_act": "relu"},
    "openbmb/MiniCPM4-0.5B": {"sparse_config": {"kernel_size": 32}},
    "microsoft/phi-2": {"qk_layernorm": True},
    "microsoft/Phi-4-mini-instruct": {"partial_rotary_factor": 0.01},
    "microsoft/Phi-3-mini-4k-instruct": {"hidden_act": "relu"},
    "Qwen/Qwen2.5-0.5B-Instruct": {"layer_types": ["chunked_attention"] * 24},
    "Qwen/Qwen3-0.6B": {"rope_scaling": {"type": "mrope"}},
    "Qwen/Qwen3.5-0.8B": {"layer_types": ["sliding_attention"] * 24},
    "Qwen/Qwen3.5-2B": {"linear_conv_kernel_dim": 1},
    "Qwen/Qwen3.5-4B": {"hidden_act": "gelu"},
    "ByteDance-Seed/Seed-OSS-36B-Instruct": {"is_encoder_decoder": True},
    "HuggingFaceTB/SmolLM3-3B": {"layer_types": ["chunked_attention"] * 36},
    "stabilityai/stablelm-2-zephyr-1_6b": {"qk_layernorm": True},
    "bigcode/starcoder2-3b": {"hidden_act": "relu"},
}


def test_every_family_refuses_something() -> None:
    families = {type(family_of(PUBLISHED[model][0])) for model in REFUSED}
    assert families == set(FAMILIES.values())


@pytest.mark.parametrize("model", REFUSED)
def test_what_would_change_the_numbers_is_refused_by_name(model: str) -> None:
    config, changes = PUBLISHED[model][0], REFUSED[model]
    text = {**text_part(config), **changes}
    with pytest.raises(UnsupportedError) as caught:
        family_of({**config, "text_config": text} if "text_config" in config else text)
    assert next(iter(changes)) in str(caught.value)
