"""Tiny random models of every family: the configs, and checkpoints made of them by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 500000.0,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 1e4,
}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0],
    "original_max_position_embeddings": 2048,
    "rope_theta": 1e4,
}
_GEMMA: dict[str, Any] = {
    **_SMALL,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 24,
    "sliding_window": 40,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ],
}
_GEMMA4: dict[str, Any] = {
    **_SMALL,
    "num_hidden_layers": 5,
    "global_head_dim": 32,
    "sliding_window": 40,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 320,
    "layer_types": [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ],
}
_GEMMA4_UNIFIED: dict[str, Any] = {
    key: value for key, value in _GEMMA4.items() if "per_layer_input" not in key
}
_GEMMA3N: dict[str, Any] = {
    key: value for key, value in _GEMMA4.items() if key != "global_head_dim"
} | {"laurel_rank": 32}
# Families whose class knows no head_dim; ids of special tokens that are in the vocabulary.
_PLAIN = {key: value for key, value in _SMALL.items() if key != "head_dim"}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
_PHI = {**_PLAIN, **_TOKENS}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
_LFM2_MOE = {
    **_PLAIN,
    **_EXPERTS,
    **_TOKENS,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 32,
    "num_dense_layers": 1,
    "layer_types": ["conv", "full_attention", "conv"],
}

_QWEN35: dict[str, Any] = {
    **_SMALL,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 16,
    "rms_norm_eps": 1e-4,  # what a memory says may be near to nothing, and is normalised
}

_MAMBA: dict[str, Any] = {
    **_PLAIN,
    "mamba_chunk_size": 32,  # of 256 tokens transformers makes a product of six axes
    "mamba_n_heads": 8,
    "mamba_d_state": 12,
    "rms_norm_eps": 1e-4,
}
_FALCON_H1: dict[str, Any] = {
    **_SMALL,
    "mamba_chunk_size": 32,
    "mamba_n_heads": 6,
    "mamba_d_ssm": 96,
    "mamba_d_state": 12,
    "embedding_multiplier": 1.5,
    "lm_head_multiplier": 0.6,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.4,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.4, 0.7, 0.8, 1.3, 0.9],
    "mlp_multipliers": [0.9, 0.6],
}

# Test id -> (model_type, what differs from transformers' defaults). Between them: tied and untied
# heads, grouped and multi-query attention, biases, windows shorter than the prompt, and every kind
# of rotary scaling. Every entry of converter.registry must be here.
TINY_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_SMALL}),
    "llama-tied-mqa": ("llama", {**_SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-mha": ("llama", {**_SMALL, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama-biases": ("llama", {**_SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama-rope-llama3": ("llama", {**_SMALL, "rope_parameters": _LLAMA3_ROPE}),
    "llama-rope-linear": (
        "llama",
        {**_SMALL, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama-rope-longrope": ("llama", {**_SMALL, "rope_parameters": _LONGROPE}),
    "llama-gelu-dynamic": (
        "llama",
        {
            **_SMALL,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "qwen2": ("qwen2", {**_SMALL}),
    "qwen2-rope-yarn": ("qwen2", {**_SMALL, "rope_parameters": _YARN_ROPE}),
    "qwen2-tied": ("qwen2", {**_SMALL, "tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {**_SMALL, "use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**_SMALL, "head_dim": 32}),
    "qwen3-tied-bias": ("qwen3", {**_SMALL, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma3_text": ("gemma3_text", {**_GEMMA}),
    "gemma3_text-linear": (
        "gemma3_text",
        {
            **_GEMMA,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
    "gemma3_text-yarn-llama3": (
        "gemma3_text",
        {
            **_GEMMA,
            "rope_parameters": {"sliding_attention": _LLAMA3_ROPE, "full_attention": _YARN_ROPE},
        },
    ),
    "arcee-biases": (
        "arcee",
        {**_SMALL, "attention_bias": True, "mlp_bias": True, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "ernie4_5-biases": ("ernie4_5", {**_SMALL, "use_bias": True}),
    "helium": ("helium", {**_SMALL, "attention_bias": True, "mlp_bias": True}),
    "seed_oss": ("seed_oss", {**_SMALL, "attention_out_bias": True, "mlp_bias": True}),
    "cohere": ("cohere", {**_PLAIN, **_TOKENS, "logit_scale": 2.0, "attention_bias": True}),
    "cohere2": (
        "cohere2",
        {**_PLAIN, **_TOKENS, "logit_scale": 0.5, "sliding_window": 40, "num_hidden_layers": 4},
    ),
    "gemma": ("gemma", {**_SMALL, "num_key_value_heads": 1}),
    "gemma2": (
        "gemma2",
        {
            **_SMALL,
            "sliding_window": 40,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "vaultgemma": (
        "vaultgemma",
        {
            **_SMALL,
            "sliding_window": 40,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
        },
    ),
    "vaultgemma-full": (
        "vaultgemma",
        {
            **_SMALL,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 2,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "granite": (
        "granite",
        {
            **_PLAIN,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 1.5,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
    "mistral": ("mistral", {**_SMALL, "sliding_window": 50}),
    "nemotron": ("nemotron", {**_SMALL, "attention_bias": True, "mlp_bias": True}),
    "olmo2": ("olmo2", {**_PLAIN, **_TOKENS}),
    "phi": ("phi", {**_PLAIN}),
    "smollm3": ("smollm3", {**_PLAIN, **_TOKENS, "num_hidden_layers": 4}),
    "smollm3-window": (
        "smollm3",
        {
            **_PLAIN,
            **_TOKENS,
            "use_sliding_window": True,
            "sliding_window": 50,
            "no_rope_layers": [0, 1],
            "tie_word_embeddings": False,
        },
    ),
    "stablelm": ("stablelm", {**_PLAIN, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**_PLAIN, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {**_PLAIN, **_TOKENS, "sliding_window": 50}),
    "apertus": ("apertus", {**_PLAIN, **_TOKENS}),
    "exaone4": ("exaone4", {**_PLAIN, "num_hidden_layers": 4, "sliding_window": 40}),
    "exaone4-full": (
        "exaone4",
        {**_PLAIN, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    ),
    "glm": ("glm", {**_SMALL, **_TOKENS}),
    "glm-whole-tied": (
        "glm",
        {
            **_SMALL,
            **_TOKENS,
            "num_key_value_heads": 1,
            "attention_bias": False,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    "glm4": ("glm4", {**_SMALL, **_TOKENS, "tie_word_embeddings": True}),
    "granitemoe": (
        "granitemoe",
        {
            **_PLAIN,
            "intermediate_size": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_PLAIN,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "mamba_n_heads": 8,
        },
    ),
    "granitemoehybrid-experts": (
        "granitemoehybrid",
        {
            **_PLAIN,
            "intermediate_size": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "mamba_n_heads": 8,
        },
    ),
    "granitemoehybrid-nope": (
        "granitemoehybrid",
        {
            **_PLAIN,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["full_attention"] * 2,
            "attention_multiplier": 0.3,
            "tie_word_embeddings": True,
            "mamba_n_heads": 8,
        },
    ),
    "olmoe": ("olmoe", {**_PLAIN, **_EXPERTS, **_TOKENS}),
    "olmoe-renormalised-bias": (
        "olmoe",
        {
            **_PLAIN,
            **_EXPERTS,
            **_TOKENS,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "lfm2_moe": ("lfm2_moe", {**_LFM2_MOE}),
    "lfm2_moe-without-bias": (
        "lfm2_moe",
        {
            **_LFM2_MOE,
            "num_dense_layers": 0,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "conv_bias": True,
        },
    ),
    "mixtral": (
        "mixtral",
        {**_SMALL, "num_local_experts": 6, "num_experts_per_tok": 2},
    ),
    "mixtral-window": (
        "mixtral",
        {**_SMALL, "num_local_experts": 4, "sliding_window": 50, "tie_word_embeddings": True},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_PLAIN,
            **_EXPERTS,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen2_moe-some": (
        "qwen2_moe",
        {
            **_PLAIN,
            **_EXPERTS,
            "num_hidden_layers": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 50,
            "max_window_layers": 3,
            "qkv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {**_SMALL, **_EXPERTS, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "qwen3_moe-some": (
        "qwen3_moe",
        {
            **_SMALL,
            **_EXPERTS,
            "moe_intermediate_size": 32,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 50,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **_SMALL,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 3,
            "sliding_window": 40,
            "rope_parameters": {**_YARN_ROPE, "truncate": False},
        },
    ),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        {
            **_SMALL,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "dynamic",
                "alpha": 100.0,
                "rope_theta": 1e4,
                "factor": 1.0,
            },
        },
    ),
    "ministral": (
        "ministral",
        {**_SMALL, "sliding_window": 50, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ministral3": (
        "ministral3",
        {
            **_SMALL,
            "rope_parameters": {
                **_YARN_ROPE,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "olmo3": (
        "olmo3",
        {
            **_PLAIN,
            **_TOKENS,
            "num_hidden_layers": 4,
            "sliding_window": 40,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": {**_YARN_ROPE, "rope_theta": 5e5},
            },
        },
    ),
    "internlm3": ("internlm3", {**_SMALL, "qkv_bias": True}),
    "minicpm": (
        "minicpm",
        {**_PLAIN, "scale_emb": 3.0, "scale_depth": 1.4, "dim_model_base": 48.0},
    ),
    "jais2": ("jais2", {**_SMALL, **_TOKENS}),
    "jais2-plain-tied": (
        "jais2",
        {
            **_SMALL,
            **_TOKENS,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": ("phi3", {**_PHI}),
    "phi3-longrope-tied": (
        "phi3",
        {
            **_PHI,
            "tie_word_embeddings": True,
            "sliding_window": 50,
            "original_max_position_embeddings": 2048,
            "rope_parameters": {
                **_LONGROPE,
                "short_factor": _LONGROPE["short_factor"][:6],
                "long_factor": _LONGROPE["long_factor"][:6],
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "lfm2": (
        "lfm2",
        {**_PLAIN, "num_hidden_layers": 5, "full_attn_idxs": [1, 3], "block_multiple_of": 32},
    ),
    "lfm2-biases-untied": (
        "lfm2",
        {
            **_SMALL,
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["full_attention", "conv"],
            "tie_word_embeddings": False,
            "norm_eps": 1e-6,
        },
    ),
    "lfm2-attention": (
        "lfm2",
        {**_PLAIN, "num_key_value_heads": 1, "block_ffn_dim_multiplier": 1.3},
    ),
    "gemma3": ("gemma3", {"text_config": {**_GEMMA, "model_type": "gemma3_text"}}),
    "gemma4_text": (
        "gemma4_text",
        {
            **_GEMMA4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma4_text-keys-are-values": (
        "gemma4_text",
        {
            **_GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_text-experts": (
        "gemma4_text",
        {
            **_GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "gemma4": (
        "gemma4",
        {"text_config": {**_GEMMA4, "model_type": "gemma4_text", "num_kv_shared_layers": 2}},
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **_GEMMA3N,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0, 0.0],
        },
    ),
    "gemma3n_text-widths": (
        "gemma3n_text",
        {
            **_GEMMA3N,
            "num_kv_shared_layers": 0,
            "intermediate_size": [96, 64, 96, 128, 96],
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "vocab_size_per_layer_input": 300,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3n": (
        "gemma3n",
        {"text_config": {**_GEMMA3N, "model_type": "gemma3n_text", "num_kv_shared_layers": 3}},
    ),
    "gemma4_unified_text": ("gemma4_unified_text", {**_GEMMA4_UNIFIED}),
    "gemma4_unified": (
        "gemma4_unified",
        {"text_config": {**_GEMMA4_UNIFIED, "model_type": "gemma4_unified_text"}},
    ),
    "granitemoehybrid-mamba": (
        "granitemoehybrid",
        {
            **_MAMBA,
            "num_hidden_layers": 3,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["mamba", "attention", "mamba"],
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "logits_scaling": 1.5,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid-mamba-experts": (
        "granitemoehybrid",
        {
            **_MAMBA,
            "num_hidden_layers": 3,
            "intermediate_size": 32,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention", "mamba"],
            "attention_multiplier": 0.3,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid-mamba-groups": (
        "granitemoehybrid",
        {
            **_MAMBA,
            "num_hidden_layers": 3,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "position_embedding_type": "rope",
            "residual_multiplier": 0.5,
            "mamba_n_groups": 2,
            "mamba_d_conv": 2,
            "mamba_expand": 3,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "time_step_limit": [0.2, 1.5],
        },
    ),
    "falcon_h1": ("falcon_h1", {**_FALCON_H1}),
    # Two mixers in a row, two MLPs in a row, an MLP first and a mixer last.
    "nemotron_h": (
        "nemotron_h",
        {
            "vocab_size": 258,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "hybrid_override_pattern": "-MM*--M",
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 16,
            "layer_norm_epsilon": 1e-4,
            "time_step_min": 0.3,
        },
    ),
    "nemotron_h-biases": (
        "nemotron_h",
        {
            "vocab_size": 258,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "layers_block_type": ["attention", "mamba", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "ssm_state_size": 16,
            "conv_kernel": 2,
            "use_bias": True,
            "mlp_bias": True,
            "use_conv_bias": False,
            "mlp_hidden_act": "gelu",
            "mamba_hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "falcon_h1-norm-tied": (
        "falcon_h1",
        {
            **_FALCON_H1,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_n_groups": 2,
            "mamba_d_ssm": None,
            "mamba_n_heads": 8,
            "lm_head_multiplier": 1.5,
            "tie_word_embeddings": True,
        },
    ),
    "falcon_h1-norm-first-biases": (
        "falcon_h1",
        {
            **_FALCON_H1,
            "mamba_rms_norm": True,
            "mamba_n_groups": 3,
            "mamba_d_conv": 3,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "mamba_conv_bias": False,
            "time_step_limit": [0.1, 2.0],
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", {**_QWEN35}),
    "qwen3_5_text-biases-tied": (
        "qwen3_5_text",
        {
            **_QWEN35,
            "layer_types": ["full_attention", "linear_attention"] * 2,
            "attention_bias": True,
            "linear_num_key_heads": 4,
            "linear_conv_kernel_dim": 2,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5": (
        "qwen3_5",
        {
            "text_config": {**_QWEN35, "full_attention_interval": 2, "model_type": "qwen3_5_text"},
            "tie_word_embeddings": True,
        },
    ),
}


def _minicpm(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    config = {"tie_word_embeddings": True, **values}
    emb, depth, base = (config.pop(key) for key in ("scale_emb", "scale_depth", "dim_model_base"))
    factors = {
        "embedding_multiplier": emb,
        "residual_multiplier": depth / config["num_hidden_layers"] ** 0.5,
        "attention_multiplier": (config["hidden_size"] / config["num_attention_heads"]) ** -0.5,
        "logits_scaling": config["hidden_size"] / base,
    }
    return "granite", {**config, **factors}


def _internlm3(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    config = {"max_position_embeddings": 32768, **values}
    return "seed_oss", {**config, "attention_bias": config.pop("qkv_bias")}


def _gemma3n(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text part alone: the whole needs two packages more for its images."""
    return "gemma3n_text", {k: v for k, v in values["text_config"].items() if k != "model_type"}


# Families whose code is in their repositories, or needs more than is here: the same network in the
# words of transformers.
OWN_CODE = {"gemma3n": _gemma3n, "internlm3": _internlm3, "minicpm": _minicpm}


WITH_EXPERTS = {
    test_id
    for test_id, (_, values) in TINY_CONFIGS.items()
    if values.get("num_local_experts") or values.get("num_experts")
}


def settle_torch() -> None:
    """Make torch's cosines the same from the first call on.

    MKL sets its vector functions up in the first call. Where that call is made by two threads at
    once, one of them now and then computes its half of the rotary table in a fast mode with errors
    of 1e-4, and the logits are off by 1e-3 (seen in 1 of 60 processes, torch 2.13). One value is
    one thread's work.
    """
    import torch

    torch.zeros(1).cos()
    torch.zeros(1).sin()


def settle_nemotron_h(model: Any) -> Any:
    """Let a Nemotron-H remember rightly, and keep a cache; other models stay as they are.

    transformers 5.14.1 is wrong from the second chunk on, but on a GPU: it adds up what a chunk
    leaves over those that read it, and not over those that left it. So a text is one chunk. Its MLP
    layers have no entry among the caches; those of experts, which keep as little, have one.
    """
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING

    def take_all(mixer: Any, inputs: tuple[Any, ...]) -> None:
        mixer.chunk_size = inputs[0].shape[1]

    DYNAMIC_LAYER_TYPE_MAPPING.setdefault("mlp", DYNAMIC_LAYER_TYPE_MAPPING["moe"])
    for module in model.modules():
        if type(module).__name__ == "NemotronHMamba2Mixer":
            module.register_forward_pre_hook(take_all)
    return model


def make_model(test_id: str) -> Any:
    """A transformers model with random weights whose logits have a scale of about 1."""
    model_type, values = TINY_CONFIGS[test_id]
    return random_model(model_type, values, seed=sum(map(ord, test_id)))


def random_model(model_type: str, values: dict[str, Any], seed: int = 0) -> Any:
    """The same of any config: `values` are what differs from transformers' defaults."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    settle_torch()
    if model_type in OWN_CODE:
        model_type, values = OWN_CODE[model_type](values)
    if model_type == "qwen3_5":
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
        values = {**values, "vision_config": {**vision, "out_hidden_size": 64}}
    if model_type == "gemma3":
        values = {
            **values,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        }
    config = AutoConfig.for_model(model_type, **values)
    torch.manual_seed(seed)
    is_larger = model_type in ("gemma3", "qwen3_5")
    auto = AutoModelForImageTextToText if is_larger else AutoModelForCausalLM
    # The other implementations know no softcap.
    model = settle_nemotron_h(auto.from_config(config, attn_implementation="eager").eval().float())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # transformers starts norms at 0 or 1 and biases at 0
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" in name or "lm_head" in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
            if name.endswith("q_norm.weight") and model_type.startswith(("gemma3n", "gemma4")):
                parameter.mul_(0.25)  # their scores are not divided by the square root of a width
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)
    return model


def text_logits(model: Any, tokens: list[int]) -> Any:
    """Logits of every position, float32 `(len(tokens), vocabulary)`, by transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def make_checkpoint(test_id: str, folder: Path) -> Any:
    """Save a tiny model as a Hugging Face folder with a byte-level tokenizer; return it."""
    model = make_model(test_id)
    model.save_pretrained(folder)
    model_type, values = TINY_CONFIGS[test_id]
    if model_type in OWN_CODE:
        config = {"model_type": model_type, **values}
        (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path, special_tokens: tuple[str, ...] = ("<s>", "</s>")) -> None:
    """A tokenizer.json of the 256 bytes and a few special tokens: 258 ids by default."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special_tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": special_tokens[0], "eos_token": special_tokens[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """Give a model an adapter with random numbers, save it, and return peft's merged model."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "target_modules": _MATRICES, **options}
    adapted = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values * 0.2
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()
