"""Tiny models as GGUFs, as llama.cpp's converter writes them.

Names come from the gguf library's own map of Hugging Face's, not from our tables, so that these are
held against it. A family adds an entry to `WRITTEN`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.gguf_files import Keys, write_gguf
from tests.small_tokenizers import SMALL_BPE

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Written:
    """What llama.cpp's converter does to a family.

    Attributes:
        arch: `general.architecture`, or what tells it by the config.
        keys: of a transformers config, beside those that all have.
        permutes: rows of q and k become pairs of neighbours.
        split: what is done to the tensors before they get their names in the GGUF.
        change: anything else that is done to the tensors, which are under their names in the GGUF.
    """

    arch: str | Callable[[Any], str]
    keys: Callable[[Any], Keys] = lambda _: {}
    permutes: bool = False
    split: Callable[[Any, Tensors], Tensors] = lambda _, tensors: tensors
    change: Callable[[Any, Tensors], Tensors] = lambda _, tensors: tensors

    def architecture(self, config: Any) -> str:
        return self.arch if isinstance(self.arch, str) else self.arch(config)


def _gemma_norms(_: Any, tensors: Tensors) -> Tensors:
    return {n: value + 1 if n.endswith("norm.weight") else value for n, value in tensors.items()}


def _gemma2_keys(config: Any) -> Keys:
    return {
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def _hunyuan_keys(config: Any) -> Keys:
    rope, d = config.rope_parameters, config.head_dim
    return {"rope.freq_base": rope["rope_theta"] * rope["alpha"] ** (d / (d - 2))}


def _ministral3_keys(config: Any) -> Keys:
    rope = config.rope_parameters
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
        "attention.temperature_scale": rope["llama_4_scaling_beta"],
    }


def _granite_keys(config: Any) -> Keys:
    return {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def _minicpm_keys(config: Any) -> Keys:
    return {**_granite_keys(config), "attention.scale": None}


def _gemma_windows(config: Any) -> Keys:
    return {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
        "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
    }


def _gemma3_keys(config: Any) -> Keys:
    return {**_gemma_windows(config), "attention.scale": config.query_pre_attn_scalar**-0.5}


def _without_widths(_: Any) -> Keys:
    return {"attention.key_length": None, "attention.value_length": None}


def _glm_fused(config: Any, tensors: Tensors) -> Tensors:
    """Models with biases as those of ChatGLM's own code are: q, k and v in one matrix."""
    if not config.attention_bias:
        return tensors
    for layer in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
            tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    return tensors


def _phi3_factors(config: Any, tensors: Tensors) -> Tensors:
    parameters = config.rope_parameters
    if parameters["rope_type"] != "longrope":
        return tensors
    lists = {
        f"rope_factors_{kind}.weight": np.asarray(parameters[f"{kind}_factor"], np.float32)
        for kind in ("long", "short")
    }
    return tensors | lists


def _phi3_keys(config: Any) -> Keys:
    keys: Keys = {"rope.scaling.original_context_length": config.original_max_position_embeddings}
    if config.rope_parameters["rope_type"] == "longrope":
        ratio = config.max_position_embeddings / config.original_max_position_embeddings
        factor = np.sqrt(1 + np.log(ratio) / np.log(config.original_max_position_embeddings))
        keys["rope.scaling.attn_factor"] = float(factor)
    if config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
    return keys


def _llama3_factors(config: Any, tensors: Tensors) -> Tensors:
    """What frequencies are divided by, where llama3's way of stretching them was worked out."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = _head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, width, 2) / width)
    return {**tensors, "rope_freqs.weight": (plain / inverse.numpy()).astype(np.float32)}


def _xielu_numbers(config: Any, state: Tensors) -> Tensors:
    """They go into the metadata."""
    return {name: value for name, value in state.items() if "act_fn" not in name}


def _xielu_keys(state: Tensors) -> Keys:
    """Numbers of each layer, or one for all where they are the same."""
    found: dict[str, list[float]] = {}
    for name, value in state.items():
        if "act_fn" in name:
            found.setdefault(f":xielu.{name.rpartition('.')[2]}", []).append(float(value.item()))
    return {key: n[0] if len(set(n)) == 1 else n for key, n in found.items()}


def _granite_hybrid_split(config: Any, state: Tensors) -> Tensors:
    split: Tensors = {}
    block = "mlp.shared_expert" if config.num_local_experts else "mlp"
    for name, value in _granite_moe_split(config, _mamba_split(config, state)).items():
        name = name.replace("shared_mlp.output_linear", f"{block}.down_proj")
        if "shared_mlp.input_linear" not in name:
            split[name] = value
            continue
        for part, half in zip(("gate", "up"), np.split(value, 2), strict=True):
            split[name.replace("shared_mlp.input_linear", f"{block}.{part}_proj")] = half
    return split


def _experts_keys(config: Any) -> Keys:
    return {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
    }


def _experts_split(_: Any, state: Tensors) -> Tensors:
    """Gates and ups in tensors of their own."""
    split: Tensors = {}
    for name, value in state.items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(value, 2, axis=1), strict=True):
                split[name.replace("gate_up_proj", f"{part}_proj.weight")] = half
        else:
            split[f"{name}.weight" if name.endswith("experts.down_proj") else name] = value
    return split


def _gpt_oss_keys(config: Any) -> Keys:
    rope = config.rope_parameters
    return {
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.intermediate_size,
        "attention.sliding_window": config.sliding_window,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def _gpt_oss_split(_: Any, state: Tensors) -> Tensors:
    """Gates and ups, which come in turn, in tensors of their own; rows are outputs."""
    split: Tensors = {}
    for name, value in state.items():
        kind = "bias" if name.endswith("_bias") else "weight"
        name = name.removesuffix("_bias")
        value = value.swapaxes(-1, -2) if "experts." in name and kind == "weight" else value
        if name.endswith("gate_up_proj"):
            for i, part in enumerate(("gate", "up")):
                split[name.replace("gate_up_proj", f"{part}_proj.{kind}")] = value[:, i::2]
        elif name.endswith("experts.down_proj"):
            split[f"{name}.{kind}"] = value
        else:
            split[f"{name}.weight" if name.endswith("sinks") else name] = value
    return split


def _mixtral_keys(config: Any) -> Keys:
    return {
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }


def _qwen2_moe_keys(config: Any) -> Keys:
    shared = config.shared_expert_intermediate_size
    return {**_experts_keys(config), "expert_shared_feed_forward_length": shared}


def _qwen2_moe_split(config: Any, state: Tensors) -> Tensors:
    """The shared expert's gate is a vector."""
    return {
        name: value[0] if name.endswith("shared_expert_gate.weight") else value
        for name, value in _experts_split(config, state).items()
    }


def _granite_moe_keys(config: Any) -> Keys:
    return {
        **_granite_keys(config),
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }


def _granite_moe_split(config: Any, state: Tensors) -> Tensors:
    return {
        name.replace("block_sparse_moe.experts", "mlp.experts").replace(
            "router.weight", "router.layer.weight"
        ): value
        for name, value in _experts_split(config, state).items()
    }


def _granite_hybrid_keys(config: Any) -> Keys:
    mamba: Keys = {}
    if "linear_attention" in config.layer_types:
        heads = config.num_key_value_heads
        mamba = _mamba_keys(config) | {
            "attention.head_count_kv": [
                0 if kind == "linear_attention" else heads for kind in config.layer_types
            ]
        }
    shared = config.shared_intermediate_size
    if config.num_local_experts:
        widths = {**_granite_moe_keys(config), "expert_shared_feed_forward_length": shared}
    else:
        widths = {**_granite_keys(config), "feed_forward_length": shared}
    return {
        **mamba,
        **widths,
        "rope.scaling.finetuned": config.position_embedding_type == "rope",
    }


def _mamba_keys(config: Any) -> Keys:
    return {
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.time_step_rank": config.mamba_n_heads,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
    }


def _mamba_split(config: Any, state: Tensors, block: str = "mamba") -> Tensors:
    """Decays worked out, a convolution without its middle axis, vectors as matrices."""
    split: Tensors = {}
    groups = config.n_groups if block == "mixer" else config.mamba_n_groups
    for name, value in state.items():
        part = name.partition(f".{block}.")[2]
        if part == "A_log":
            value = -np.exp(value)[:, None]
        elif part == "D":
            value = value[:, None]
        elif part == "norm.weight":
            value = value.reshape(groups, -1)
        elif part == "conv1d.weight":
            value = value[:, 0]
        split[name.replace("dt_bias", "dt_proj.bias")] = value
    return split


def _nemotron_h_keys(config: Any) -> Keys:
    heads, width, kinds = (
        config.num_key_value_heads, config.intermediate_size, config.layers_block_type,
    )  # fmt: skip
    return {
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": [width if kind == "mlp" else 0 for kind in kinds],
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "context_length": 2**20,
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "rope.scaling.finetuned": False,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.time_step_rank": config.mamba_num_heads,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
    }


def _nemotron_h_split(config: Any, state: Tensors) -> Tensors:
    named = {name.replace("model.", "backbone.", 1): value for name, value in state.items()}
    return _mamba_split(config, named, "mixer")


def _falcon_h1_split(config: Any, state: Tensors) -> Tensors:
    """Factors are in the matrices."""
    fed, told = config.attention_in_multiplier, config.ssm_in_multiplier
    width = config.mamba_n_heads * config.mamba_d_head
    groups = config.mamba_n_groups * config.mamba_d_state
    rows = [width, width, groups, groups, config.mamba_n_heads]
    factors = {
        "embed_tokens": config.embedding_multiplier,
        "lm_head": config.lm_head_multiplier,
        "q_proj": fed,
        "k_proj": fed * config.key_multiplier,
        "v_proj": fed,
        ".o_proj": config.attention_out_multiplier,
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
        "out_proj": config.ssm_out_multiplier,
        "in_proj": told * np.repeat(np.float32(config.ssm_multipliers), rows)[:, None],
    }
    split: Tensors = {}
    for name, value in _mamba_split(config, state).items():
        factor = next((factors[part] for part in factors if part in name), 1)
        split[name] = np.float32(factor) * value
    return split


def _olmo3_keys(config: Any) -> Keys:
    rope = config.rope_parameters["full_attention"]
    return {
        "attention.sliding_window": config.sliding_window,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def _lfm2_keys(config: Any) -> Keys:
    kinds, heads = config.layer_types, config.num_key_value_heads
    width = int(2 * config.intermediate_size / 3)
    width = int(config.block_ffn_dim_multiplier * width)
    blocks = -(-width // config.block_multiple_of)
    return {
        "shortconv.l_cache": config.conv_L_cache,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "feed_forward_length": blocks * config.block_multiple_of,
    }


def _lfm2_split(_: Any, state: Tensors) -> Tensors:
    return {
        n: value[:, 0] if n.endswith("conv.conv.weight") else value for n, value in state.items()
    }


def _lfm2_moe_keys(config: Any) -> Keys:
    kinds, heads = config.layer_types, config.num_key_value_heads
    return {
        **_experts_keys(config),
        "shortconv.l_cache": config.conv_L_cache,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds],
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": 2,
    }


def _lfm2_moe_split(config: Any, state: Tensors) -> Tensors:
    split = _lfm2_split(config, _experts_split(config, state))
    return {
        f"{name}.bias" if name.endswith("expert_bias") else name: value
        for name, value in split.items()
    }


def _per_layer_gemma_keys(config: Any) -> Keys:
    return {
        **_gemma_windows(config),
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": getattr(config, "hidden_size_per_layer_input", 0),
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.head_count_kv": config.num_key_value_heads,
    }


def _gemma3n_keys(config: Any) -> Keys:
    inverse = [
        NormalDist().inv_cdf(share) if share else -math.inf
        for share in config.activation_sparsity_pattern
    ]
    return _per_layer_gemma_keys(config) | {
        "activation_sparsity_scale": inverse,
        "altup.num_inputs": config.altup_num_inputs,
        "altup.active_idx": config.altup_active_idx,
    }


def _gemma3n_split(config: Any, state: Tensors) -> Tensors:
    """Projections of streams are one tensor; the table of layers is as long as the other."""
    split = {name: value for name, value in state.items() if "projections." not in name}
    for part in ("altup_projections", "altup_unembed_projections"):
        count = config.altup_num_inputs - 1
        stack = [state[f"model.{part}.{i}.weight"] for i in range(count)]
        split[f"model.{part}.weight"] = np.stack(stack)
    table = split["model.embed_tokens_per_layer.weight"]
    more = config.vocab_size - len(table)
    split["model.embed_tokens_per_layer.weight"] = np.pad(table, ((0, more), (0, 0)))
    return {f"{n}.weight" if n.endswith("_scale") else n: value for n, value in split.items()}


def _gemma4_keys(config: Any) -> Keys:
    local = [kind == "sliding_attention" for kind in config.layer_types]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    keys = _per_layer_gemma_keys(config) | {
        "attention.key_length": config.global_head_dim,
        "attention.value_length": config.global_head_dim,
        "attention.key_length_swa": config.head_dim,
        "attention.value_length_swa": config.head_dim,
        "rope.dimension_count": config.global_head_dim,
        "rope.dimension_count_swa": config.head_dim,
    }
    if config.use_double_wide_mlp:
        width = config.intermediate_size
        keys["feed_forward_length"] = [
            width * (1 + (i >= first_shared)) for i in range(config.num_hidden_layers)
        ]
    if getattr(config, "enable_moe_block", False):
        keys |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.top_k_experts,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    if config.num_global_key_value_heads:
        own, everywhere = config.num_key_value_heads, config.num_global_key_value_heads
        keys["attention.head_count_kv"] = [own if is_local else everywhere for is_local in local]
    return keys


def _gemma4_factors(config: Any, tensors: Tensors) -> Tensors:
    half = config.global_head_dim // 2
    turning = int(half * config.rope_parameters["full_attention"]["partial_rotary_factor"])
    factors = np.asarray([1.0] * turning + [1e30] * (half - turning), np.float32)
    return {**tensors, "rope_freqs.weight": factors}


def _with_weight(config: Any, state: Tensors) -> Tensors:
    ends = ("layer_scalar", "experts.gate_up_proj", "experts.down_proj")
    return {f"{n}.weight" if n.endswith(ends) else n: v for n, v in state.items()}


def _qwen35_keys(config: Any) -> Keys:
    heads = config.linear_num_value_heads
    return {
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * config.linear_value_head_dim,
        "full_attention_interval": config.layer_types.index("full_attention") + 1,
        "rope.dimension_sections": [11, 11, 10, 0],
    }


def _qwen35_split(config: Any, state: Tensors) -> Tensors:
    """Value heads in turn by key head, norms with their 1, decays worked out."""
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    plain = 2 * keys * config.linear_key_head_dim

    def tiled(value: np.ndarray) -> np.ndarray:
        by_head = value.reshape(keys, heads // keys, -1, *value.shape[1:])
        return by_head.swapaxes(0, 1).reshape(value.shape)

    split: Tensors = {}
    for name, value in state.items():
        _, _, part = name.partition(".linear_attn.")
        if part in ("in_proj_qkv.weight", "conv1d.weight"):
            value = np.concatenate([value[:plain], tiled(value[plain:])])
        elif part == "out_proj.weight":
            value = tiled(value.T).T
        elif part == "A_log":
            value = tiled(-np.exp(value))
        elif part and part != "norm.weight":
            value = tiled(value)
        elif name.endswith("norm.weight") and not part:
            value = value + 1
        value = value[:, 0] if part == "conv1d.weight" else value
        split[name.replace("dt_bias", "dt_proj.bias")] = value
    return split


# What llama.cpp's converter of Gemma 4 names by hand.
_SCALES = {
    ".router.scale": "ffn_gate_inp.scale",
    ".router.per_expert_scale": "ffn_down_exps.scale",
}

# By the model_type of the text part.
WRITTEN: dict[str, Written] = {
    "apertus": Written("apertus", split=_xielu_numbers, change=_llama3_factors),
    "arcee": Written("arcee", permutes=True),
    "cohere": Written("command-r", lambda c: {"logit_scale": c.logit_scale}),
    "cohere2": Written(
        "cohere2",
        lambda c: {"logit_scale": c.logit_scale, "attention.sliding_window": c.sliding_window},
    ),
    "ernie4_5": Written("ernie4_5"),
    "exaone4": Written("exaone4", lambda c: {"attention.sliding_window": c.sliding_window}),
    "glm": Written("chatglm", _without_widths, change=_glm_fused),
    "glm4": Written("glm4"),
    "hunyuan_v1_dense": Written("hunyuan-dense", _hunyuan_keys),
    "ministral3": Written("mistral3", _ministral3_keys, permutes=True),
    "falcon_h1": Written("falcon-h1", _mamba_keys, split=_falcon_h1_split),
    "gemma": Written("gemma", change=_gemma_norms),
    "gemma2": Written("gemma2", _gemma2_keys, change=_gemma_norms),
    "gemma3_text": Written("gemma3", _gemma3_keys, change=_gemma_norms),
    "gemma3n_text": Written("gemma3n", _gemma3n_keys, split=_gemma3n_split),
    "gemma4_text": Written("gemma4", _gemma4_keys, split=_with_weight, change=_gemma4_factors),
    "gemma4_unified_text": Written(
        "gemma4", _gemma4_keys, split=_with_weight, change=_gemma4_factors
    ),
    "gpt_oss": Written("gpt-oss", _gpt_oss_keys, split=_gpt_oss_split),
    "granite": Written("granite", _granite_keys, permutes=True),
    "granitemoe": Written("granitemoe", _granite_moe_keys, permutes=True, split=_granite_moe_split),
    "granitemoehybrid": Written(
        lambda c: "granitehybrid" if "linear_attention" in c.layer_types else "granite",
        _granite_hybrid_keys,
        permutes=True,
        split=_granite_hybrid_split,
    ),
    "internlm3": Written("llama", permutes=True),
    "jais2": Written("jais2"),
    "lfm2": Written("lfm2", _lfm2_keys, split=_lfm2_split),
    "lfm2_moe": Written("lfm2moe", _lfm2_moe_keys, split=_lfm2_moe_split),
    "llama": Written("llama", permutes=True),
    "minicpm": Written("minicpm", _minicpm_keys, permutes=True),
    "mistral": Written("llama", permutes=True),
    "mixtral": Written("llama", _mixtral_keys, permutes=True, split=_experts_split),
    "nemotron": Written("nemotron", change=_gemma_norms),
    "nemotron_h": Written("nemotron_h", _nemotron_h_keys, split=_nemotron_h_split),
    "olmo2": Written("olmo2"),
    "olmo3": Written("olmo2", _olmo3_keys),
    "olmoe": Written("olmoe", _experts_keys, split=_experts_split),
    "phi": Written("phi2"),
    "phi3": Written("phi3", _phi3_keys, change=_phi3_factors),
    "qwen2": Written("qwen2"),
    "qwen2_moe": Written("qwen2moe", _qwen2_moe_keys, split=_qwen2_moe_split),
    "qwen3": Written("qwen3"),
    "qwen3_5_text": Written("qwen35", _qwen35_keys, split=_qwen35_split),
    "qwen3_moe": Written("qwen3moe", _experts_keys, split=_experts_split),
    "seed_oss": Written("seed_oss"),
    "smollm3": Written("smollm3", permutes=True),
    "stablelm": Written(
        "stablelm", lambda c: {"use_parallel_residual": bool(c.use_parallel_residual)}
    ),
    "starcoder2": Written("starcoder2"),
}


def write_model(
    model: Any, path: Path, keys: Keys | None = None, model_type: str | None = None
) -> Path:
    """A transformers model as a GGUF in float32 with a byte-level tokenizer.

    Args:
        keys: beside or instead of its own; None drops one.
        model_type: where it is not the model's own (`OWN_CODE`).
    """
    config = model.config
    written = WRITTEN[model_type or config.model_type]
    called = written.architecture(config)
    [arch] = [a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == called]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: Tensors = {}
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    for name, value in written.split(config, state).items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if name.endswith(tuple(_SCALES)):
            layer, _, scale = name.partition(".router.")
            tensors[f"blk.{layer.rpartition('.')[2]}.{_SCALES[f'.router.{scale}']}"] = value
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if written.permutes and (".q_proj." in name or ".k_proj." in name):
            value = permuted(value, config)
        tensors[stored] = np.ascontiguousarray(value)
    tensors = written.change(config, tensors)
    said = _common_keys(config) | written.keys(config) | _xielu_keys(state) | (keys or {})
    drop = tuple(key for key, value in said.items() if value is None)
    return write_gguf(path, said, tensors, called, drop)


def write_adapter(
    config: Any, folder: Path, path: Path, alpha: float, keys: Keys | None = None
) -> Path:
    """An adapter of PEFT's as a GGUF, as convert_lora_to_gguf.py writes it.

    Args:
        config: transformers' of its base.
        alpha: the adapter's.
    """
    written = WRITTEN[config.model_type]
    called = written.architecture(config)
    [arch] = [a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == called]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: Tensors = {}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix("base_model.model.").partition(".lora_")
        if not side:  # a table of the base, saved beside its adapter
            continue
        stored = names.get_name(module)
        assert stored is not None, name
        if side == "embedding_A":
            value = value.T
        if written.permutes and side.startswith("B") and module.endswith(("q_proj", "k_proj")):
            value = permuted(value, config)
        is_right = side.removeprefix("embedding_").startswith("A")
        tensors[f"{stored}.weight.lora_{'a' if is_right else 'b'}"] = np.ascontiguousarray(value)
    said = {":general.type": "adapter", ":adapter.type": "lora", ":adapter.lora.alpha": alpha}
    # What write_gguf says of a model, an adapter leaves out.
    drop = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.layer_norm_rms_epsilon", "context_length")  # fmt: skip
    return write_gguf(path, said | (keys or {}), tensors, called, drop)


def permuted(value: np.ndarray, config: Any) -> np.ndarray:
    """Rows of q or k, those of a head from two halves to pairs of neighbours."""
    heads = value.reshape(-1, 2, _head_dim(config) // 2, *value.shape[1:])
    return heads.swapaxes(1, 2).reshape(value.shape)


def _head_dim(config: Any) -> int:
    found: int | None = getattr(config, "head_dim", None)
    return found or config.hidden_size // config.num_attention_heads


def _common_keys(config: Any) -> Keys:
    rms, layer = (getattr(config, name, None) for name in ("rms_norm_eps", "layer_norm_eps"))
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    width = int(_head_dim(config) * rope.get("partial_rotary_factor", 1))
    return {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": rms,
        "attention.layer_norm_epsilon": layer,
        "context_length": config.max_position_embeddings,
        "rope.dimension_count": width,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        **{f":tokenizer.{key}": value for key, value in SMALL_BPE.items()},
    }
