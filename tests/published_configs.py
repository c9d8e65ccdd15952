"""config.json of published models, and which network each of them is.

Keys and values are the published ones; left out is what has no effect: tokens, dropout, dtypes, the
activation and the biases where they are what the class takes without them. The long and short
factors of Phi are as many as the config has, not the published numbers.

What is said of a model is `described` in `tests/converter/families/test_published_configs.py`:
parameters (of the text part, a tied head counted once), the rotated part of a head, theta, and
whatever else is not as in a Llama.
"""

from __future__ import annotations

import math
from typing import Any

Published = tuple[dict[str, Any], dict[str, Any]]

_LLAMA3_FACTORS = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
_GEMMA3_KINDS = (["sliding_attention"] * 5 + ["full_attention"]) * 10

_LLAMA: dict[str, Published] = {
    "meta-llama/Llama-3.2-1B-Instruct": (
        {
            "model_type": "llama", "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
            "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 32.0, **_LLAMA3_FACTORS, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        {"parameters": 1_235_814_400, "rotated": 64, "theta": 500_000, "stretch": 32, "tied": True},
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (
        {
            "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
            "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 8.0, **_LLAMA3_FACTORS, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
        },
        {"parameters": 8_030_261_248, "rotated": 128, "theta": 500_000, "stretch": 8},
    ),
    # Heads of 128 x 32 beside a hidden size of 3072.
    "nvidia/Llama-3.1-Nemotron-Nano-4B-v1.1": (
        {
            "model_type": "llama", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 3072, "intermediate_size": 9216, "max_position_embeddings": 131072,
            "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 8.0, **_LLAMA3_FACTORS, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
        },
        {"parameters": 4_512_746_496, "rotated": 128, "theta": 500_000, "stretch": 8},
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        {
            "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
            "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 32000,
        },
        {"parameters": 1_100_048_384, "rotated": 64, "theta": 10000},
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        {
            "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True,
            "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
            "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
        },
        {"parameters": 134_515_008, "rotated": 64, "theta": 100_000, "tied": True},
    ),
    "tiiuae/Falcon3-3B-Instruct": (
        {
            "model_type": "llama", "attention_bias": False, "head_dim": 256, "hidden_act": "silu",
            "hidden_size": 3072, "intermediate_size": 9216, "max_position_embeddings": 32768,
            "mlp_bias": False, "num_attention_heads": 12, "num_hidden_layers": 22,
            "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000042, "tie_word_embeddings": False,
            "vocab_size": 131072,
        },
        {"parameters": 3_227_655_168, "rotated": 256, "theta": 1_000_042},
    ),
    "01-ai/Yi-1.5-6B-Chat": (
        {
            "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 4,
            "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 5000000.0, "tie_word_embeddings": False, "vocab_size": 64000,
        },
        {"parameters": 6_061_035_520, "rotated": 128, "theta": 5_000_000},
    ),
    "Nanbeige/Nanbeige4.1-3B": (
        {
            "model_type": "llama", "attention_bias": False, "embd_pdrop": 0.0, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 10496,
            "max_position_embeddings": 262144, "mlp_bias": False, "num_attention_heads": 20,
            "num_hidden_layers": 32, "num_key_value_heads": 4, "pretraining_tp": 1,
            "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 70000000, "tie_word_embeddings": False, "vocab_size": 166144,
        },
        {"parameters": 3_933_637_120, "rotated": 128, "theta": 70_000_000},
    ),
    "openbmb/MiniCPM5-1B": (
        {
            "model_type": "llama", "head_dim": 128, "hidden_act": "silu", "hidden_size": 1536,
            "intermediate_size": 4608, "max_position_embeddings": 131072,
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 5000000, "tie_word_embeddings": False,
            "vocab_size": 130560,
        },
        {"parameters": 1_080_632_832, "rotated": 128, "theta": 5_000_000},
    ),
    # transformers 5 has written it.
    "openbmb/MiniCPM5-2B": (
        {
            "model_type": "llama", "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 6144, "max_position_embeddings": 131072,
            "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_theta": 5000000.0, "rope_type": "default"},
            "tie_word_embeddings": False, "vocab_size": 130560,
        },
        {"parameters": 2_516_756_480, "rotated": 128, "theta": 5_000_000},
    ),
    "utter-project/EuroLLM-1.7B-Instruct": (
        {
            "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 4096,
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 8,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 128000,
        },
        {"parameters": 1_656_850_432, "rotated": 128, "theta": 10000},
    ),
}  # fmt: skip

_QWEN: dict[str, Published] = {
    "Qwen/Qwen2.5-0.5B-Instruct": (
        {
            "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896,
            "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
            "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
            "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
        },
        {
            "parameters": 494_032_768, "rotated": 64, "theta": 1_000_000, "biases": "q k v",
            "tied": True,
        },
    ),
    # VibeThinker-3B is this one, trained further.
    "Qwen/Qwen2.5-Coder-3B": (
        {
            "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 11008, "max_position_embeddings": 32768, "max_window_layers": 36,
            "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
            "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
        },
        {
            "parameters": 3_085_938_688, "rotated": 128, "theta": 1_000_000, "biases": "q k v",
            "tied": True,
        },
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        {
            "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1536,
            "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21,
            "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
            "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"parameters": 1_777_088_000, "rotated": 128, "theta": 10000, "biases": "q k v"},
    ),
    "Qwen/Qwen3-0.6B": (
        {
            "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
            "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
            "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
            "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
        },
        {
            "parameters": 596_049_920, "rotated": 128, "theta": 1_000_000, "qk_norm": "per head",
            "tied": True,
        },
    ),
    # `attn_factor` is nothing to transformers.
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": (
        {
            "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 131072,
            "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attn_factor": 0.8782488562869419, "factor": 4.0,
                "original_max_position_embeddings": 32768, "rope_type": "yarn",
            },
            "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
            "use_sliding_window": False, "vocab_size": 151936,
        },
        {
            "parameters": 8_190_735_360, "rotated": 128, "theta": 1_000_000, "stretch": 4,
            "attention_factor": 1.1386, "qk_norm": "per head",
        },
    ),
}  # fmt: skip

_GEMMA: dict[str, Published] = {
    "google/gemma-1.1-2b-it": (
        {
            "model_type": "gemma", "attention_bias": False, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
            "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
            "vocab_size": 256000,
        },
        {
            "parameters": 2_506_172_416, "rotated": 256, "theta": 10000,
            "embedding_scale": math.sqrt(2048), "activation": "gelu_tanh", "tied": True,
        },
    ),
    "google/gemma-2-2b-it": (
        {
            "model_type": "gemma2", "attention_bias": False, "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
            "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "sliding_window": 4096, "vocab_size": 256000,
        },
        {
            "parameters": 2_614_341_888, "rotated": 256, "theta": 10000,
            "windows": [4096, None] * 13, "score_softcap": 50, "embedding_scale": 48,
            "logits_softcap": 30, "placement": "both", "activation": "gelu_tanh", "tied": True,
        },
    ),
    # Scores by 144 ** -0.5, not by the width of a head.
    "google/gemma-2-27b-it": (
        {
            "model_type": "gemma2", "attention_bias": False, "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 128,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 4608, "intermediate_size": 36864, "max_position_embeddings": 8192,
            "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16,
            "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "sliding_window": 4096, "sliding_window_size": 4096, "vocab_size": 256000,
        },
        {
            "parameters": 27_227_128_320, "rotated": 128, "theta": 10000,
            "windows": [4096, None] * 23, "score_scale": 1 / 12, "score_softcap": 50,
            "embedding_scale": math.sqrt(4608), "logits_softcap": 30, "placement": "both",
            "activation": "gelu_tanh", "tied": True,
        },
    ),
    # Gated: the config is the one of two open copies, the count the one the hub shows.
    "google/vaultgemma-1b": (
        {
            "model_type": "vaultgemma", "attention_bias": False, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "intermediate_size": 6912, "layer_types": ["full_attention"] * 26,
            "max_position_embeddings": 1024, "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0, "sliding_window": 512, "vocab_size": 256000,
        },
        {
            "parameters": 1_038_741_120, "rotated": 256, "theta": 10000,
            "embedding_scale": math.sqrt(1152), "activation": "gelu_tanh", "tied": True,
        },
    ),
    "google/gemma-3-1b-it": (
        {
            "model_type": "gemma3_text", "attention_bias": False, "attn_logit_softcapping": None,
            "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
            "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
            "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
            "vocab_size": 262144,
        },
        {
            "parameters": 999_885_952, "rotated": 256, "theta": 1_000_000, "local": (10000, 1),
            "windows": (([512] * 5 + [None]) * 5)[:26], "qk_norm": "per head",
            "embedding_scale": math.sqrt(1152), "placement": "both", "activation": "gelu_tanh",
            "tied": True,
        },
    ),
    "google/functiongemma-270m-it": (
        {
            "model_type": "gemma3_text", "_sliding_window_pattern": 6, "attention_bias": False,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640,
            "intermediate_size": 2048, "layer_types": _GEMMA3_KINDS[:18],
            "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 18,
            "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0,
            "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144,
        },
        {
            "parameters": 268_098_176, "rotated": 256, "theta": 1_000_000, "local": (10000, 1),
            "windows": ([512] * 5 + [None]) * 3, "qk_norm": "per head",
            "embedding_scale": math.sqrt(640), "placement": "both", "activation": "gelu_tanh",
            "tied": True,
        },
    ),
    # It leaves out what transformers takes as a default.
    "google/gemma-3-4b-it": (
        {
            "model_type": "gemma3", "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        {
            "parameters": 3_880_263_168, "rotated": 256, "theta": 1_000_000, "stretch": 8,
            "local": (10000, 1), "windows": (([1024] * 5 + [None]) * 6)[:34],
            "qk_norm": "per head", "embedding_scale": math.sqrt(2560), "placement": "both",
            "activation": "gelu_tanh", "tied": True,
        },
    ),
    # Both spellings in one: the thetas beside the sets of rotary parameters.
    "google/translategemma-4b-it": (
        {
            "model_type": "gemma3", "boi_token_index": 255999, "eoi_token_index": 256000,
            "image_token_index": 262144, "mm_tokens_per_image": 256,
            "text_config": {
                "_sliding_window_pattern": 6, "attention_bias": False,
                "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
                "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560,
                "intermediate_size": 10240, "layer_types": _GEMMA3_KINDS[:34],
                "max_position_embeddings": 131072, "model_type": "gemma3_text",
                "num_attention_heads": 8, "num_hidden_layers": 34, "num_key_value_heads": 4,
                "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
                "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
                "rope_parameters": {
                    "full_attention": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_attention": {"rope_type": "default"},
                },
                "sliding_window": 1024, "use_bidirectional_attention": False,
                "vocab_size": 262208,
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        {
            "parameters": 3_880_263_168, "rotated": 256, "theta": 1_000_000, "stretch": 8,
            "local": (10000, 1), "windows": (([1024] * 5 + [None]) * 6)[:34],
            "qk_norm": "per head", "embedding_scale": math.sqrt(2560), "placement": "both",
            "activation": "gelu_tanh", "tied": True,
        },
    ),
}  # fmt: skip

_MISTRAL: dict[str, Published] = {
    "mistralai/Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": False, "vocab_size": 32000,
        },
        {"parameters": 7_241_732_096, "rotated": 128, "theta": 10000, "windows": {4096}},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        {
            "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
            "tie_word_embeddings": False, "vocab_size": 32768,
        },
        {"parameters": 7_248_023_552, "rotated": 128, "theta": 1_000_000},
    ),
    "mistralai/Mistral-Nemo-Instruct-2407": (
        {
            "model_type": "mistral", "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 14336, "max_position_embeddings": 1024000,
            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
            "tie_word_embeddings": False, "vocab_size": 131072,
        },
        {"parameters": 12_247_782_400, "rotated": 128, "theta": 1_000_000},
    ),
    # Published as `mistral`, whose class ignores the kinds of the layers; `ministral` is the class
    # that heeds them.
    "mistralai/Ministral-8B-Instruct-2410": (
        {
            "model_type": "ministral", "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 12288,
            "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 9,
            "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 36,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 100000000.0,
            "sliding_window": 32768, "tie_word_embeddings": False, "vocab_size": 131072,
        },
        {
            "parameters": 8_019_808_256, "rotated": 128, "theta": 100_000_000,
            "windows": ([None] + [32768] * 3) * 9,
        },
    ),
    "mistralai/Ministral-3-3B-Reasoning-2512": (
        {
            "model_type": "mistral3", "image_token_index": 10, "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
            "text_config": {
                "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072,
                "intermediate_size": 9216, "max_position_embeddings": 262144,
                "model_type": "ministral3", "num_attention_heads": 32, "num_hidden_layers": 26,
                "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
                "rope_parameters": {
                    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0,
                    "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
                    "rope_type": "yarn", "type": "yarn",
                },
                "sliding_window": None, "tie_word_embeddings": True, "vocab_size": 131072,
            },
            "vision_config": {
                "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024, "image_size": 1540,
                "intermediate_size": 4096, "model_type": "pixtral", "num_attention_heads": 16,
                "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
                "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        },
        {
            "parameters": 3_429_006_336, "rotated": 128, "theta": 1_000_000, "stretch": 16,
            "position_scale": (0.1, 16384), "tied": True,
        },
    ),
}  # fmt: skip

_GRANITE: dict[str, Published] = {
    "ibm-granite/granite-3.3-2b-instruct": (
        {
            "model_type": "granite", "attention_bias": False, "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072,
            "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 40,
            "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
            "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True,
            "vocab_size": 49159,
        },
        {
            "parameters": 2_533_539_840, "rotated": 64, "theta": 10_000_000,
            "score_scale": 0.015625, "embedding_scale": 12, "residual_scale": 0.22,
            "logits_scale": 0.125, "tied": True,
        },
    ),
    "ibm-granite/granite-4.0-350m": (
        {
            "model_type": "granitemoehybrid", "attention_bias": False,
            "attention_multiplier": 0.015625, "embedding_multiplier": 12, "hidden_act": "silu",
            "hidden_size": 1024, "intermediate_size": 2048, "layer_types": ["attention"] * 28,
            "logits_scaling": 4, "max_position_embeddings": 32768,
            "normalization_function": "rmsnorm", "num_attention_heads": 16,
            "num_experts_per_tok": 0, "num_hidden_layers": 28, "num_key_value_heads": 4,
            "num_local_experts": 0, "position_embedding_type": "rope",
            "residual_multiplier": 0.263, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 10000000, "shared_intermediate_size": 2048, "tie_word_embeddings": True,
            "vocab_size": 100352,
        },
        {
            "parameters": 352_379_904, "rotated": 64, "theta": 10_000_000, "score_scale": 0.015625,
            "embedding_scale": 12, "residual_scale": 0.263, "logits_scale": 0.25, "tied": True,
        },
    ),
    "ibm-granite/granite-4.0-1b": (
        {
            "model_type": "granitemoehybrid", "attention_bias": False,
            "attention_multiplier": 0.0078125, "embedding_multiplier": 12, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 4096, "layer_types": ["attention"] * 40,
            "logits_scaling": 8, "max_position_embeddings": 131072,
            "normalization_function": "rmsnorm", "num_attention_heads": 16,
            "num_experts_per_tok": 0, "num_hidden_layers": 40, "num_key_value_heads": 4,
            "num_local_experts": 0, "position_embedding_type": "rope",
            "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 10000000, "shared_intermediate_size": 4096, "tie_word_embeddings": True,
            "vocab_size": 100352,
        },
        {
            "parameters": 1_631_750_144, "rotated": 128, "theta": 10_000_000,
            "score_scale": 0.0078125, "embedding_scale": 12, "residual_scale": 0.22,
            "logits_scale": 0.125, "tied": True,
        },
    ),
}  # fmt: skip


def _h(layers: int, *attention: int) -> list[str]:
    """Mamba layers but for these."""
    return ["attention" if i in attention else "mamba" for i in range(layers)]


_GRANITE_H: dict[str, Any] = {
    "model_type": "granitemoehybrid", "attention_bias": False, "embedding_multiplier": 12,
    "hidden_act": "silu", "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4,
    "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_proj_bias": False,
    "max_position_embeddings": 131072, "normalization_function": "rmsnorm",
    "num_experts_per_tok": 0, "num_local_experts": 0, "position_embedding_type": "nope",
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000, "tie_word_embeddings": True,
    "vocab_size": 100352,
}  # fmt: skip
# No registry has these files: the factors of 1B are those of H-Tiny, which is as wide; Micro's are
# from memory. What is held is that the values are read, not that IBM chose them.
_GRANITE_HYBRID: dict[str, Published] = {
    "ibm-granite/granite-4.0-h-350m": (
        {
            **_GRANITE_H, "attention_multiplier": 0.015625, "hidden_size": 768,
            "intermediate_size": 2048, "layer_types": _h(32, 10, 13, 17, 27), "logits_scaling": 3,
            "mamba_d_head": 32, "mamba_n_heads": 48, "max_position_embeddings": 32768,
            "num_attention_heads": 12, "num_hidden_layers": 32, "num_key_value_heads": 4,
            "residual_multiplier": 0.246, "shared_intermediate_size": 2048,
        },
        {
            "parameters": 340_332_224, "nope": [10, 13, 17, 27], "rotated": None, "theta": None,
            "score_scale": 0.015625, "embedding_scale": 12, "residual_scale": 0.246,
            "logits_scale": 1 / 3, "tied": True,
            "mambas": {i: (48, 32, 1, 128, 4) for i in range(32) if i not in (10, 13, 17, 27)},
        },
    ),
    "ibm-granite/granite-4.0-h-1b": (
        {
            **_GRANITE_H, "attention_multiplier": 0.0078125, "hidden_size": 1536,
            "intermediate_size": 4096, "layer_types": _h(40, 5, 15, 25, 35), "logits_scaling": 6,
            "mamba_d_head": 64, "mamba_n_heads": 48, "num_attention_heads": 12,
            "num_hidden_layers": 40, "num_key_value_heads": 4, "residual_multiplier": 0.22,
            "shared_intermediate_size": 4096,
        },
        {
            "parameters": 1_461_538_368, "nope": [5, 15, 25, 35], "rotated": None, "theta": None,
            "score_scale": 0.0078125, "embedding_scale": 12, "residual_scale": 0.22,
            "logits_scale": 1 / 6, "tied": True,
            "mambas": {i: (48, 64, 1, 128, 4) for i in range(40) if i % 10 != 5},
        },
    ),
    "ibm-granite/granite-4.0-h-micro": (
        {
            **_GRANITE_H, "attention_multiplier": 0.015625, "hidden_size": 2048,
            "intermediate_size": 8192, "layer_types": _h(40, 5, 15, 25, 35), "logits_scaling": 8,
            "mamba_d_head": 64, "mamba_n_heads": 64, "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22,
            "shared_intermediate_size": 8192,
        },
        {
            "parameters": 3_191_396_096, "nope": [5, 15, 25, 35], "rotated": None, "theta": None,
            "score_scale": 0.015625, "embedding_scale": 12, "residual_scale": 0.22,
            "logits_scale": 0.125, "tied": True,
            "mambas": {i: (64, 64, 1, 128, 4) for i in range(40) if i % 10 != 5},
        },
    ),
}  # fmt: skip

_FALCON_H1: dict[str, Published] = {
    "tiiuae/Falcon-H1-0.5B-Instruct": (
        {
            "model_type": "falcon_h1", "attention_bias": False, "attention_in_multiplier": 1.0,
            "attention_out_multiplier": 0.9375, "attn_layer_indices": None,
            "embedding_multiplier": 5.656854249492381, "head_dim": 64, "hidden_act": "silu",
            "hidden_size": 1024, "intermediate_size": 2048, "key_multiplier": 0.39062499999999994,
            "lm_head_multiplier": 0.0390625, "mamba_chunk_size": 128, "mamba_conv_bias": True,
            "mamba_d_conv": 4, "mamba_d_head": 64, "mamba_d_ssm": 1536, "mamba_d_state": 128,
            "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 24,
            "mamba_norm_before_gate": False, "mamba_proj_bias": False, "mamba_rms_norm": False,
            "mamba_use_mlp": True, "max_position_embeddings": 16384, "mlp_bias": False,
            "mlp_multipliers": [0.8838834764831844, 0.5859375], "num_attention_heads": 8,
            "num_hidden_layers": 36, "num_key_value_heads": 2, "projectors_bias": False,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 100000000000.0,
            "ssm_in_multiplier": 1.25,
            "ssm_multipliers": [
                0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738,
            ],
            "ssm_out_multiplier": 0.23570226039551587, "tie_word_embeddings": False,
            "vocab_size": 32784,
        },
        {
            "parameters": 521_411_104, "rotated": 64, "theta": 1e11,
            "embedding_scale": 5.656854249492381,
            "logits_scale": 0.0390625, "mambas": dict.fromkeys(range(36), (24, 64, 1, 128, 4)),
        },
    ),
    "tiiuae/Falcon-H1-Tiny-90M-Instruct": (
        {
            "model_type": "falcon_h1", "attention_in_multiplier": 1.0,
            "attention_out_multiplier": 1.0, "embedding_multiplier": 0.11083984375, "head_dim": 64,
            "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 768,
            "key_multiplier": 1.0, "lm_head_multiplier": 0.078125, "mamba_conv_bias": True,
            "mamba_d_conv": 4, "mamba_d_head": 32, "mamba_d_ssm": 768, "mamba_d_state": 64,
            "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 24,
            "mamba_norm_before_gate": False, "mamba_proj_bias": False, "mamba_rms_norm": False,
            "max_position_embeddings": 262144, "num_attention_heads": 8, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "projectors_bias": False, "rms_norm_eps": 1e-05,
            "rope_theta": 100000000000.0, "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
            "tie_word_embeddings": True, "vocab_size": 32768,
        },
        {
            "parameters": 91_131_072, "rotated": 64, "theta": 1e11,
            "embedding_scale": 0.11083984375,
            "logits_scale": 0.078125, "tied": True,
            "mambas": dict.fromkeys(range(24), (24, 32, 1, 64, 4)),
        },
    ),
}  # fmt: skip

_NEMOTRON_H_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
_NEMOTRON_NANO_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_NEMOTRON_3_4B = "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-"
_NEMOTRON_H_PLAIN: dict[str, Any] = {
    "model_type": "nemotron_h", "attention_bias": False, "chunk_size": 128, "conv_kernel": 4,
    "layer_norm_epsilon": 1e-05, "mamba_hidden_act": "silu", "mamba_proj_bias": False,
    "mlp_bias": False, "mlp_hidden_act": "relu2", "n_groups": 8, "num_key_value_heads": 8,
    "num_logits_to_keep": 1, "rescale_prenorm_residual": True, "residual_in_fp32": False,
    "rms_norm_eps": 1e-05, "ssm_state_size": 128, "tie_word_embeddings": False, "use_bias": False,
    "use_conv_bias": True, "use_mamba_kernels": True, "vocab_size": 131072,
}  # fmt: skip


def _nemotron_h(pattern: str, mamba: tuple[int, ...]) -> dict[str, Any]:
    """What all have in common, but for their sizes."""
    return {
        "nope": [i for i, kind in enumerate(pattern) if kind == "*"],
        "rotated": None,
        "theta": None,
        "activation": "relu2",
        "gate": False,
        "mambas": {i: mamba for i, kind in enumerate(pattern) if kind == "M"},
    }


# The repositories' files are not at hand: 8B is as NVIDIA's Megatron-Bridge has it in its tests,
# the others' sizes are from there and from readers of their files; the rest is as in 8B.
_NEMOTRON_H: dict[str, Published] = {
    "nvidia/Nemotron-H-8B-Base-8K": (
        {
            **_NEMOTRON_H_PLAIN, "attention_head_dim": 128, "expand": 2, "hidden_act": "relu2",
            "hidden_size": 4096, "hybrid_override_pattern": _NEMOTRON_H_8B,
            "intermediate_size": 21504, "mamba_head_dim": 64, "mamba_num_heads": 128,
            "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 52,
        },
        {"parameters": 8_100_852_736, **_nemotron_h(_NEMOTRON_H_8B, (128, 64, 8, 128, 4))},
    ),
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": (
        {
            **_NEMOTRON_H_PLAIN, "head_dim": 128, "hidden_size": 4480,
            "hybrid_override_pattern": _NEMOTRON_NANO_9B, "intermediate_size": 15680,
            "mamba_head_dim": 80, "mamba_num_heads": 128, "max_position_embeddings": 131072,
            "num_attention_heads": 40, "num_hidden_layers": 56, "sliding_window": None,
            "time_step_floor": 0.0001, "time_step_limit": [0.0, math.inf], "time_step_max": 0.1,
            "time_step_min": 0.001,
        },
        {"parameters": 8_888_227_328, **_nemotron_h(_NEMOTRON_NANO_9B, (128, 80, 8, 128, 4))},
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": (
        {
            **_NEMOTRON_H_PLAIN, "chunk_size": 256, "head_dim": 128, "hidden_size": 3136,
            "intermediate_size": 12544,
            "layers_block_type": [
                {"M": "mamba", "*": "attention", "-": "mlp"}[kind] for kind in _NEMOTRON_3_4B
            ],
            "mamba_head_dim": 80, "mamba_num_heads": 96, "max_position_embeddings": 262144,
            "num_attention_heads": 40,
        },
        {"parameters": 3_973_556_832, **_nemotron_h(_NEMOTRON_3_4B, (96, 80, 8, 128, 4))},
    ),
}  # fmt: skip

_PHI: dict[str, Published] = {
    "microsoft/phi-2": (
        {
            "model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 2560,
            "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "partial_rotary_factor": 0.4, "qk_layernorm": False, "rope_scaling": None,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 51200,
        },
        {
            "parameters": 2_779_683_840, "rotated": 32, "theta": 10000, "norm": "layer",
            "placement": "parallel", "biases": "q k v o up down head", "activation": "gelu_tanh",
            "gate": False,
        },
    ),
    "microsoft/phi-1_5": (
        {
            "model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 2048,
            "intermediate_size": 8192, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
            "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": None,
            "partial_rotary_factor": 0.5, "qk_layernorm": False, "rope_scaling": None,
            "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 51200,
        },
        {
            "parameters": 1_418_270_720, "rotated": 32, "theta": 10000, "norm": "layer",
            "placement": "parallel", "biases": "q k v o up down head", "activation": "gelu_tanh",
            "gate": False,
        },
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
            "original_max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": None,
            "sliding_window": 2047, "tie_word_embeddings": False,
        },
        {"parameters": 3_821_079_552, "rotated": 96, "theta": 10000, "windows": {2047}},
    ),
    "microsoft/Phi-4-mini-instruct": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
            "vocab_size": 200064, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
            "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
            "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            },
        },
        {
            "parameters": 3_836_021_760, "rotated": 96, "theta": 10000, "attention_factor": 1.1902,
            "long": (4096, 2), "windows": {262144}, "tied": True,
        },
    ),
}  # fmt: skip

_OTHERS: dict[str, Published] = {
    "swiss-ai/Apertus-8B-Instruct-2509": (
        {
            "model_type": "apertus", "attention_bias": False, "hidden_act": "xielu",
            "hidden_size": 4096, "intermediate_size": 21504, "max_position_embeddings": 65536,
            "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "post_norm": False, "qk_norm": True, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0, **_LLAMA3_FACTORS, "rope_type": "llama3", "type": "llama3",
            },
            "rope_theta": 12000000.0, "tie_word_embeddings": False, "vocab_size": 131072,
        },
        {
            "parameters": 8_053_338_176, "rotated": 128, "theta": 12_000_000, "stretch": 8,
            "qk_norm": "per head", "activation": "xielu", "gate": False,
        },
    ),
    "arcee-ai/AFM-4.5B": (
        {
            "model_type": "arcee", "attention_bias": False, "head_dim": 128, "hidden_act": "relu2",
            "hidden_size": 2560, "intermediate_size": 18432, "max_position_embeddings": 65536,
            "mlp_bias": False, "num_attention_heads": 20, "num_hidden_layers": 36,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0,
                "original_max_position_embeddings": 4096, "rope_type": "yarn", "type": "yarn",
            },
            "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 128004,
        },
        {
            "parameters": 4_619_184_640, "rotated": 128, "theta": 10000, "stretch": 20,
            "attention_factor": 1.2996, "activation": "relu2", "gate": False,
        },
    ),
    "CohereLabs/aya-23-8B": (
        {
            "model_type": "cohere", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-05,
            "logit_scale": 0.0625, "max_position_embeddings": 8192, "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 10000,
            "use_qk_norm": False, "vocab_size": 256000,
        },
        {
            "parameters": 8_028_033_024, "rotated": 128, "theta": 10000, "logits_scale": 0.0625,
            "norm": "layer", "placement": "parallel", "tied": True,
        },
    ),
    "CohereLabs/c4ai-command-r7b-12-2024": (
        {
            "model_type": "cohere2", "attention_bias": False, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
            "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25,
            "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000,
            "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
            "use_embedding_sharing": True, "use_gated_activation": True,
            "use_parallel_block": True, "use_parallel_embedding": True, "vocab_size": 256000,
        },
        {
            "parameters": 8_028_033_024, "rotated": 128, "theta": 50000,
            "windows": ([4096] * 3 + [None]) * 8, "nope": list(range(3, 32, 4)),
            "logits_scale": 0.25, "norm": "layer", "placement": "parallel", "tied": True,
        },
    ),
    "CohereLabs/tiny-aya-global": (
        {
            "model_type": "cohere2", "attention_bias": False, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
            "layer_norm_eps": 1e-05,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 9,
            "logit_scale": 1.0, "max_position_embeddings": 500000, "num_attention_heads": 16,
            "num_hidden_layers": 36, "num_key_value_heads": 4,
            "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000,
            "rotary_pct": 1.0, "sliding_window": 4096, "use_embedding_sharing": True,
            "use_gated_activation": True, "use_parallel_block": True,
            "use_parallel_embedding": False, "use_qk_norm": False, "vocab_size": 262144,
        },
        {
            "parameters": 3_349_227_520, "rotated": 128, "theta": 50000,
            "windows": ([4096] * 3 + [None]) * 9, "nope": list(range(3, 36, 4)), "logits_scale": 1,
            "norm": "layer", "placement": "parallel", "tied": True,
        },
    ),
    "baidu/ERNIE-4.5-0.3B-PT": (
        {
            "model_type": "ernie4_5", "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 3072, "max_position_embeddings": 131072,
            "num_attention_heads": 16, "num_hidden_layers": 18, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0,
            "tie_word_embeddings": True, "use_bias": False, "vocab_size": 103424,
        },
        {"parameters": 360_748_032, "rotated": 128, "theta": 500_000, "tied": True},
    ),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": (
        {
            "model_type": "exaone4", "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 4096, "layer_types": ["full_attention"] * 30,
            "max_position_embeddings": 65536, "num_attention_heads": 32, "num_hidden_layers": 30,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 16.0, **_LLAMA3_FACTORS, "rope_type": "llama3"},
            "rope_theta": 1000000, "sliding_window": None, "sliding_window_pattern": None,
            "tie_word_embeddings": True, "vocab_size": 102400,
        },
        {
            "parameters": 1_279_391_488, "rotated": 64, "theta": 1_000_000, "stretch": 16,
            "qk_norm": "per head", "placement": "after", "tied": True,
        },
    ),
    "LGAI-EXAONE/EXAONE-4.0-32B": (
        {
            "model_type": "exaone4", "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 27392,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
            "max_position_embeddings": 131072, "num_attention_heads": 40, "num_hidden_layers": 64,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 16.0, **_LLAMA3_FACTORS, "rope_type": "llama3"},
            "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
            "tie_word_embeddings": False, "vocab_size": 102400,
        },
        {
            "parameters": 32_003_216_384, "rotated": 128, "theta": 1_000_000, "stretch": 16,
            "windows": ([4096] * 3 + [None]) * 16, "nope": list(range(3, 64, 4)),
            "qk_norm": "per head", "placement": "after",
        },
    ),
    "zai-org/glm-4-9b-chat-hf": (
        {
            "model_type": "glm", "attention_bias": True, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 131072,
            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07, "rope_theta": 5000000.0,
            "tie_word_embeddings": False, "vocab_size": 151552,
        },
        {"parameters": 9_399_951_360, "rotated": 64, "theta": 5_000_000, "biases": "q k v"},
    ),
    "zai-org/GLM-4-9B-0414": (
        {
            "model_type": "glm4", "attention_bias": True, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "vocab_size": 151552,
        },
        {
            "parameters": 9_400_279_040, "rotated": 64, "theta": 10000, "placement": "both",
            "biases": "q k v",
        },
    ),
    "kyutai/helium-1-preview-2b": (
        {
            "model_type": "helium", "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 2560, "intermediate_size": 7040, "max_position_embeddings": 4096,
            "mlp_bias": False, "num_attention_heads": 20, "num_hidden_layers": 24,
            "num_key_value_heads": 20, "pretraining_tp": 1, "rms_norm_eps": 1e-08,
            "rope_theta": 100000.0, "tie_word_embeddings": False, "vocab_size": 48000,
        },
        {"parameters": 2_172_643_840, "rotated": 128, "theta": 100_000},
    ),
    "tencent/Hunyuan-0.5B-Instruct": (
        {
            "model_type": "hunyuan_v1_dense", "attention_bias": False, "attention_head_dim": 128,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3584,
            "max_position_embeddings": 262144, "mlp_bias": False, "num_attention_heads": 16,
            "num_hidden_layers": 24, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "type": "dynamic",
            },
            "rope_theta": 10000.0, "tie_word_embeddings": True, "use_cla": False,
            "use_qk_norm": True, "use_rotary_pos_emb": True, "vocab_size": 120818,
        },
        {
            "parameters": 539_010_048, "rotated": 128, "theta": 1e4 * 1000 ** (128 / 126),
            "qk_norm": "per head, after rope", "tied": True,
        },
    ),
    "tencent/Hunyuan-MT-7B": (
        {
            "model_type": "hunyuan_v1_dense", "add_classification_head": False,
            "attention_bias": False, "attention_head_dim": 128, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "mlp_bias": False, "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "alpha": 100000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, "type": "dynamic",
            },
            "rope_theta": 10000.0, "tie_word_embeddings": True, "use_qk_norm": True,
            "use_rotary_pos_emb": True, "vocab_size": 128256,
        },
        {
            "parameters": 7_504_932_864, "rotated": 128, "theta": 1e4 * 1e5 ** (128 / 126),
            "qk_norm": "per head, after rope", "tied": True,
        },
    ),
    # Gated: sizes as in llama.cpp's pull request 19488; what that leaves out is as in Jais2Config.
    # Beyond "8B" no published count was to be had: this is the one of transformers' model.
    "inceptionai/Jais-2-8B-Chat": (
        {
            "model_type": "jais2", "attention_bias": True, "head_dim": 128, "hidden_act": "relu2",
            "hidden_size": 3328, "intermediate_size": 26624, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 8192, "mlp_bias": True, "num_attention_heads": 26,
            "num_hidden_layers": 32, "num_key_value_heads": 26, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "vocab_size": 150272,
        },
        {
            "parameters": 8_090_401_280, "rotated": 128, "theta": 10000, "norm": "layer",
            "biases": "q k v o up down", "activation": "relu2", "gate": False,
        },
    ),
    "nvidia/Nemotron-Mini-4B-Instruct": (
        {
            "model_type": "nemotron", "attention_bias": False, "hidden_act": "relu2",
            "hidden_size": 3072, "intermediate_size": 9216, "kv_channels": 128,
            "max_position_embeddings": 4096, "mlp_bias": False, "norm_eps": 1e-05,
            "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "partial_rotary_factor": 0.5, "rope_theta": 10000, "tie_word_embeddings": False,
            "vocab_size": 256000,
        },
        {
            "parameters": 4_190_509_056, "rotated": 64, "theta": 10000, "norm": "layer",
            "activation": "relu2", "gate": False,
        },
    ),
    "allenai/OLMo-2-0425-1B-Instruct": (
        {
            "model_type": "olmo2", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
            "tie_word_embeddings": False, "vocab_size": 100352,
        },
        {
            "parameters": 1_484_916_736, "rotated": 128, "theta": 500_000, "qk_norm": "full width",
            "placement": "after",
        },
    ),
    "allenai/Olmo-3-7B-Instruct": (
        {
            "model_type": "olmo3", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 11008,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
            "max_position_embeddings": 65536, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 32, "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
                "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
            "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": False,
            "vocab_size": 100278,
        },
        {
            "parameters": 7_298_011_136, "rotated": 128, "theta": 500_000, "stretch": 8,
            "attention_factor": 1.2079, "local": (500_000, 1),
            "windows": ([4096] * 3 + [None]) * 8, "qk_norm": "full width", "placement": "after",
        },
    ),
    "ByteDance-Seed/Seed-OSS-36B-Instruct": (
        {
            "model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 27648, "max_position_embeddings": 524288, "mlp_bias": False,
            "num_attention_heads": 80, "num_hidden_layers": 64, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_scaling": {"rope_type": "default"},
            "rope_theta": 10000000.0, "tie_word_embeddings": False, "vocab_size": 155136,
        },
        {"parameters": 36_151_104_512, "rotated": 128, "theta": 10_000_000, "biases": "q k v"},
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        {
            "model_type": "smollm3", "attention_bias": False, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
            "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
            "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
            "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False,
            "vocab_size": 128256,
        },
        {
            "parameters": 3_075_098_624, "rotated": 128, "theta": 5_000_000,
            "nope": list(range(3, 36, 4)), "tied": True,
        },
    ),
    "stabilityai/stablelm-2-zephyr-1_6b": (
        {
            "model_type": "stablelm", "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 5632, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32,
            "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
            "use_qkv_bias": True, "vocab_size": 100352,
        },
        {
            "parameters": 1_644_515_328, "rotated": 16, "theta": 10000, "norm": "layer",
            "biases": "q k v",
        },
    ),
    "stabilityai/stablelm-3b-4e1t": (
        {
            "model_type": "stablelm", "hidden_act": "silu", "hidden_size": 2560,
            "intermediate_size": 6912, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
            "use_qkv_bias": False, "vocab_size": 50304,
        },
        {"parameters": 2_795_443_200, "rotated": 20, "theta": 10000, "norm": "layer"},
    ),
    "bigcode/starcoder2-3b": (
        {
            "model_type": "starcoder2", "activation_function": "gelu",
            "attention_softmax_in_fp32": True, "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 3072, "intermediate_size": 12288, "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-05,
            "norm_type": "layer_norm", "num_attention_heads": 24, "num_hidden_layers": 30,
            "num_key_value_heads": 2, "rope_theta": 999999.4420358813,
            "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
            "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
        },
        {
            "parameters": 3_030_371_328, "rotated": 128, "theta": 999999.4420358813,
            "windows": {4096}, "norm": "layer", "biases": "q k v o up down",
            "activation": "gelu_tanh", "gate": False, "tied": True,
        },
    ),
    "internlm/internlm3-8b-instruct": (
        {
            "model_type": "internlm3", "bias": False, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 10240, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 2,
            "qkv_bias": False, "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000,
            "tie_word_embeddings": False, "vocab_size": 128512,
        },
        {"parameters": 8_804_241_408, "rotated": 128, "theta": 50_000_000},
    ),
    "openbmb/MiniCPM-2B-sft-bf16": (
        {
            "model_type": "minicpm", "hidden_act": "silu", "hidden_size": 2304,
            "intermediate_size": 5760, "max_position_embeddings": 4096,
            "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "vocab_size": 122753, "scale_emb": 12,
            "dim_model_base": 256, "scale_depth": 1.4,
        },
        {
            "parameters": 2_724_880_896, "rotated": 64, "theta": 10000, "embedding_scale": 12,
            "residual_scale": 1.4 / math.sqrt(40), "logits_scale": 1 / 9, "tied": True,
        },
    ),
    "openbmb/MiniCPM4-0.5B": (
        {
            "model_type": "minicpm", "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 4096, "max_position_embeddings": 32768,
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "vocab_size": 73448, "scale_emb": 12, "dim_model_base": 256,
            "scale_depth": 1.4, "mup_denominator": 32, "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
                "original_max_position_embeddings": 32768,
            },
        },
        {
            "parameters": 433_873_920, "rotated": 64, "theta": 10000, "long": (32768, 2),
            "embedding_scale": 12, "residual_scale": 1.4 / math.sqrt(24), "logits_scale": 1 / 4,
            "tied": True,
        },
    ),
}  # fmt: skip

_LFM2_ATTENTION = [2, 5, 8, 10, 12, 14]
_LFM2_26_ATTENTION = [2, 5, 9, 13, 17, 21, 24, 27]
_LFM2: dict[str, Published] = {
    "LiquidAI/LFM2-1.2B": (
        {
            "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 2048,
            "block_ff_dim": 12288, "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0,
            "block_multiple_of": 256, "block_norm_eps": 1e-05, "block_out_init_scale": 1.0,
            "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3,
            "conv_bias": False, "conv_dim": 2048, "conv_dim_out": 2048,
            "conv_use_xavier_init": True, "full_attn_idxs": _LFM2_ATTENTION, "hidden_size": 2048,
            "initializer_range": 0.02, "max_position_embeddings": 128000, "norm_eps": 1e-05,
            "num_attention_heads": 32, "num_heads": 32, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "rope_theta": 1000000.0, "use_pos_enc": True,
            "vocab_size": 65536,
        },
        {
            "parameters": 1_170_340_608, "rotated": 64, "theta": 1_000_000, "qk_norm": "per head",
            "convs": {i: 3 for i in range(16) if i not in _LFM2_ATTENTION}, "tied": True,
        },
    ),
    # Its feed-forward width is stated as it is.
    "LiquidAI/LFM2-2.6B": (
        {
            "model_type": "lfm2", "block_auto_adjust_ff_dim": False, "block_dim": 2048,
            "block_ff_dim": 10752, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256,
            "conv_L_cache": 3, "conv_bias": False, "full_attn_idxs": _LFM2_26_ATTENTION,
            "hidden_size": 2048, "intermediate_size": 10752, "max_position_embeddings": 128000,
            "norm_eps": 1e-05, "num_attention_heads": 32, "num_heads": 32,
            "num_hidden_layers": 30, "num_key_value_heads": 8, "rope_theta": 1000000.0,
            "vocab_size": 65536,
        },
        {
            "parameters": 2_569_272_320, "rotated": 64, "theta": 1_000_000, "qk_norm": "per head",
            "convs": {i: 3 for i in range(30) if i not in _LFM2_26_ATTENTION}, "tied": True,
        },
    ),
    "LiquidAI/LFM2.5-350M": (
        {
            "model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 1024,
            "block_ff_dim": 6656, "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0,
            "block_multiple_of": 256, "block_norm_eps": 1e-05, "block_out_init_scale": 1.0,
            "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3,
            "conv_bias": False, "conv_dim": 1024, "conv_use_xavier_init": True,
            "hidden_size": 1024, "intermediate_size": 6656,
            "layer_types": [
                "full_attention" if i in _LFM2_ATTENTION else "conv" for i in range(16)
            ],
            "max_position_embeddings": 128000, "norm_eps": 1e-05, "num_attention_heads": 16,
            "num_hidden_layers": 16, "num_key_value_heads": 8,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "tie_embedding": True, "use_pos_enc": True, "vocab_size": 65536,
        },
        {
            "parameters": 354_483_968, "rotated": 64, "theta": 1_000_000, "qk_norm": "per head",
            "convs": {i: 3 for i in range(16) if i not in _LFM2_ATTENTION}, "tied": True,
        },
    ),
}  # fmt: skip

_PER_LAYER_GEMMA: dict[str, Any] = {
    "attention_bias": False, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "num_attention_heads": 8, "rms_norm_eps": 1e-06,
}  # fmt: skip
_GEMMA4_TEXT: dict[str, Any] = {
    **_PER_LAYER_GEMMA, "attention_k_eq_v": False, "enable_moe_block": False,
    "expert_intermediate_size": None, "global_head_dim": 512, "hidden_size_per_layer_input": 256,
    "model_type": "gemma4_text", "moe_intermediate_size": None, "num_experts": None,
    "num_global_key_value_heads": None, "max_position_embeddings": 131072,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 512, "tie_word_embeddings": True, "top_k_experts": None,
    "use_bidirectional_attention": None, "use_double_wide_mlp": False, "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}  # fmt: skip
_GEMMA4_SAID: dict[str, Any] = {
    "rotated": 256, "theta": 1_000_000, "stretch": math.inf, "local": (10000, 1),
    "score_scale": 1.0, "qk_norm": "per head", "value_norm": True, "logits_softcap": 30.0,
    "placement": "both", "activation": "gelu_tanh", "tied": True, "layer_scales": True,
    "heads": {(8, 1, 256), (8, 1, 512)},
}  # fmt: skip
_GEMMA3N_SAID: dict[str, Any] = {
    key: value for key, value in _GEMMA4_SAID.items()
    if key not in ("layer_scales", "heads", "stretch")
} | {"streams": 4, "laurel": 64}  # fmt: skip
_GEMMA4: dict[str, Published] = {
    "google/gemma-4-E2B-it": (
        {
            "model_type": "gemma4",
            "audio_token_id": 258881,
            "boa_token_id": 256000,
            "boi_token_id": 255999,
            "eoa_token_index": 258883,
            "eoi_token_id": 258882,
            "eos_token_id": [1, 106],
            "image_token_id": 258880,
            "tie_word_embeddings": True,
            "text_config": {
                **_GEMMA4_TEXT,
                "hidden_size": 1536,
                "intermediate_size": 6144,
                "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
                "num_hidden_layers": 35,
                "num_key_value_heads": 1,
                "num_kv_shared_layers": 20,
                "use_double_wide_mlp": True,
            },
            "video_token_id": 258884,
            "vision_config": {"hidden_size": 768},
            "vision_soft_tokens_per_image": 280,
        },
        {
            **_GEMMA4_SAID,
            "parameters": 4_628_569_379,
            "embedding_scale": math.sqrt(1536),
            "windows": ([512] * 4 + [None]) * 7,
            "shared": 20,
            "per_layer": (256, 262144),
            "widths": {6144, 12288},
        },
    ),
    "google/gemma-4-E4B-it": (
        {
            "model_type": "gemma4",
            "eos_token_id": [1, 106],
            "tie_word_embeddings": True,
            "text_config": {
                **_GEMMA4_TEXT,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
                "num_hidden_layers": 42,
                "num_key_value_heads": 2,
                "num_kv_shared_layers": 18,
            },
        },
        {
            **_GEMMA4_SAID,
            "parameters": 7_463_013_418,
            "embedding_scale": math.sqrt(2560),
            "windows": ([512] * 5 + [None]) * 7,
            "shared": 18,
            "per_layer": (256, 262144),
            "heads": {(8, 2, 256), (8, 2, 512)},
        },
    ),
    "google/gemma-4-31B-it": (
        {
            "model_type": "gemma4",
            "eos_token_id": [1, 106],
            "tie_word_embeddings": True,
            "text_config": {
                **_GEMMA4_TEXT,
                "attention_k_eq_v": True,
                "hidden_size": 5376,
                "hidden_size_per_layer_input": 0,
                "intermediate_size": 21504,
                "layer_types": _GEMMA3_KINDS,
                "max_position_embeddings": 262144,
                "num_attention_heads": 32,
                "num_global_key_value_heads": 4,
                "num_hidden_layers": 60,
                "num_key_value_heads": 16,
                "num_kv_shared_layers": 0,
                "sliding_window": 1024,
                "use_bidirectional_attention": "vision",
            },
        },
        {
            **_GEMMA4_SAID,
            "parameters": 30_697_345_340,
            "embedding_scale": math.sqrt(5376),
            "windows": ([1024] * 5 + [None]) * 10,
            "heads": {(32, 16, 256), (32, 4, 512)},
            "keys_are_values": 10,
        },
    ),
    "google/gemma-4-26B-A4B-it": (
        {
            "model_type": "gemma4",
            "eos_token_id": [1, 106],
            "tie_word_embeddings": True,
            "text_config": {
                **_GEMMA4_TEXT,
                "attention_k_eq_v": True,
                "enable_moe_block": True,
                "hidden_size": 2816,
                "hidden_size_per_layer_input": 0,
                "intermediate_size": 2112,
                "layer_types": _GEMMA3_KINDS[:30],
                "max_position_embeddings": 262144,
                "moe_intermediate_size": 704,
                "num_attention_heads": 16,
                "num_experts": 128,
                "num_global_key_value_heads": 2,
                "num_hidden_layers": 30,
                "num_key_value_heads": 8,
                "num_kv_shared_layers": 0,
                "sliding_window": 1024,
                "top_k_experts": 8,
                "use_bidirectional_attention": "vision",
            },
        },
        {
            **_GEMMA4_SAID,
            "parameters": 25_233_141_790,
            "embedding_scale": math.sqrt(2816),
            "windows": ([1024] * 5 + [None]) * 5,
            "heads": {(16, 8, 256), (16, 2, 512)},
            "keys_are_values": 5,
            "experts": (30, 8, 128, 704, "renormalised softmax, scaled, beside 2112"),
        },
    ),
    "google/gemma-4-12B-it": (
        {
            "model_type": "gemma4_unified",
            "eos_token_id": [1, 106],
            "tie_word_embeddings": True,
            "text_config": {
                **_GEMMA4_TEXT,
                "attention_k_eq_v": True,
                "hidden_size": 3840,
                "hidden_size_per_layer_input": 0,
                "intermediate_size": 15360,
                "layer_types": _GEMMA3_KINDS[:48],
                "max_position_embeddings": 262144,
                "model_type": "gemma4_unified_text",
                "num_attention_heads": 16,
                "num_global_key_value_heads": 1,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_kv_shared_layers": 0,
                "sliding_window": 1024,
                "use_bidirectional_attention": "vision",
            },
        },
        {
            **_GEMMA4_SAID,
            "parameters": 11_907_350_320,
            "embedding_scale": math.sqrt(3840),
            "windows": ([1024] * 5 + [None]) * 8,
            "heads": {(16, 8, 256), (16, 1, 512)},
            "keys_are_values": 8,
        },
    ),
    "google/gemma-3n-E4B-it": (
        {
            "model_type": "gemma3n",
            "audio_soft_tokens_per_image": 188,
            "audio_token_id": 262273,
            "boa_token_id": 256000,
            "boi_token_id": 255999,
            "eoa_token_id": 262272,
            "eoi_token_id": 262144,
            "eos_token_id": [1, 106],
            "image_token_id": 262145,
            "text_config": {
                **_PER_LAYER_GEMMA,
                "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
                "altup_active_idx": 0,
                "altup_coef_clip": 120.0,
                "altup_correct_scale": True,
                "altup_num_inputs": 4,
                "hidden_size": 2048,
                "hidden_size_per_layer_input": 256,
                "intermediate_size": [16384] * 35,
                "laurel_rank": 64,
                "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
                "max_position_embeddings": 32768,
                "model_type": "gemma3n_text",
                "num_hidden_layers": 35,
                "num_key_value_heads": 2,
                "num_kv_shared_layers": 15,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": None,
                "rope_theta": 1000000.0,
                "sliding_window": 512,
                "vocab_size": 262400,
                "vocab_size_per_layer_input": 262144,
            },
            "vision_config": {"hidden_size": 2048},
            "vision_soft_tokens_per_image": 256,
        },
        {
            **_GEMMA3N_SAID,
            "parameters": 6_835_235_568,
            "embedding_scale": math.sqrt(2048),
            "windows": ([512] * 4 + [None]) * 7,
            "shared": 15,
            "per_layer": (256, 262144),
            "cutoffs": 10,
        },
    ),
    # The class's defaults, but for what makes it smaller.
    "google/gemma-3n-E2B-it": (
        {
            "model_type": "gemma3n_text",
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
            "intermediate_size": [8192] * 30,
            "num_hidden_layers": 30,
            "num_kv_shared_layers": 10,
            "rope_local_base_freq": 10000.0,
            "rope_theta": 1000000.0,
        },
        {
            **_GEMMA3N_SAID,
            "parameters": 4_435_182_688,
            "embedding_scale": math.sqrt(2048),
            "windows": ([512] * 4 + [None]) * 6,
            "shared": 10,
            "per_layer": (256, 262144),
            "cutoffs": 10,
        },
    ),
}

_QWEN35_KINDS = (["linear_attention"] * 3 + ["full_attention"]) * 8
_QWEN35_TEXT: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True,
    "dtype": "bfloat16", "eos_token_id": 248044, "full_attention_interval": 4, "head_dim": 256,
    "hidden_act": "silu", "initializer_range": 0.02, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "mlp_only_layers": [],
    "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False, "rms_norm_eps": 1e-06, "use_cache": True,
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
        "rope_theta": 10000000, "rope_type": "default",
    },
    "vocab_size": 248320,
}  # fmt: skip
_QWEN35_OUTER: dict[str, Any] = {
    "model_type": "qwen3_5", "image_token_id": 248056, "video_token_id": 248057,
    "vision_end_token_id": 248054, "vision_start_token_id": 248053,
}  # fmt: skip


def _qwen35(layers: int, value_heads: int, parameters: int) -> dict[str, Any]:
    linear = [i for i in range(layers) if i % 4 != 3]
    return {
        "parameters": parameters, "rotated": 64, "theta": 10_000_000, "qk_norm": "per head",
        "deltas": dict.fromkeys(linear, (16, value_heads, 128, 128, 4)), "output_gate": True,
        "tied": True,
    }  # fmt: skip


_QWEN35: dict[str, Published] = {
    "Qwen/Qwen3.5-0.8B": (
        {
            **_QWEN35_OUTER, "tie_word_embeddings": True, "vision_config": {"depth": 12},
            "text_config": {
                **_QWEN35_TEXT, "hidden_size": 1024, "intermediate_size": 3584,
                "layer_types": _QWEN35_KINDS[:24], "linear_num_value_heads": 16,
                "num_attention_heads": 8, "num_hidden_layers": 24, "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            },
        },
        _qwen35(24, 16, 752_393_024),
    ),
    "Qwen/Qwen3.5-2B": (
        {
            **_QWEN35_OUTER, "tie_word_embeddings": True, "vision_config": {"depth": 24},
            "text_config": {
                **_QWEN35_TEXT, "hidden_size": 2048, "intermediate_size": 6144,
                "layer_types": _QWEN35_KINDS[:24], "linear_num_value_heads": 16,
                "num_attention_heads": 8, "num_hidden_layers": 24, "num_key_value_heads": 2,
                "tie_word_embeddings": True,
            },
        },
        _qwen35(24, 16, 1_881_825_088),
    ),
    "Qwen/Qwen3.5-4B": (
        {
            **_QWEN35_OUTER, "tie_word_embeddings": True, "vision_config": {"depth": 24},
            "text_config": {
                **_QWEN35_TEXT, "hidden_size": 2560, "intermediate_size": 9216,
                "layer_types": _QWEN35_KINDS, "linear_num_value_heads": 32,
                "num_attention_heads": 16, "num_hidden_layers": 32, "num_key_value_heads": 4,
                "tie_word_embeddings": True,
            },
        },
        _qwen35(32, 32, 4_205_751_296),
    ),
}  # fmt: skip

_LFM2_MOE_ATTENTION = [2, 6, 10, 14, 18, 21]
_EXPERTS: dict[str, Published] = {
    "ibm-granite/granite-3.1-1b-a400m-instruct": (
        {
            "model_type": "granitemoe", "attention_bias": False, "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 512, "logits_scaling": 6.0, "max_position_embeddings": 131072,
            "num_attention_heads": 16, "num_experts_per_tok": 8, "num_hidden_layers": 24,
            "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
            "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_scaling": None,
            "rope_theta": 1500000.0, "router_aux_loss_coef": 0.0, "tie_word_embeddings": True,
            "vocab_size": 49155,
        },
        {
            "parameters": 1_334_628_352, "rotated": 64, "theta": 1_500_000, "embedding_scale": 12,
            "score_scale": 0.015625, "residual_scale": 0.22, "logits_scale": 1 / 6, "tied": True,
            "experts": (24, 8, 32, 512, "renormalised softmax"),
        },
    ),
    "LiquidAI/LFM2-8B-A1B": (
        {
            "model_type": "lfm2_moe", "conv_L_cache": 3, "conv_bias": False, "hidden_size": 2048,
            "intermediate_size": 7168,
            "layer_types": [
                "full_attention" if i in _LFM2_MOE_ATTENTION else "conv" for i in range(24)
            ],
            "max_position_embeddings": 128000, "moe_intermediate_size": 1792, "norm_eps": 1e-05,
            "norm_topk_prob": True, "num_attention_heads": 32, "num_dense_layers": 2,
            "num_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 24,
            "num_key_value_heads": 8, "rope_theta": 1000000.0, "routed_scaling_factor": 1.0,
            "use_expert_bias": True, "vocab_size": 65536,
        },
        {
            "parameters": 8_339_930_560, "rotated": 64, "theta": 1_000_000, "qk_norm": "per head",
            "convs": {i: 3 for i in range(24) if i not in _LFM2_MOE_ATTENTION}, "tied": True,
            "widths": {7168, 1792},
            "experts": (22, 4, 32, 1792, "renormalised sigmoid, chosen with a bias"),
        },
    ),
    "allenai/OLMoE-1B-7B-0924-Instruct": (
        {
            "model_type": "olmoe", "attention_bias": False, "clip_qkv": None, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 1024, "max_position_embeddings": 4096,
            "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64,
            "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
            "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_scaling": None,
            "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False,
            "vocab_size": 50304,
        },
        {
            "parameters": 6_919_161_856, "rotated": 128, "theta": 10_000, "qk_norm": "full width",
            "experts": (16, 8, 64, 1024, "softmax"),
        },
    ),
    "openai/gpt-oss-20b": (
        {
            "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64,
            "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
            "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4,
            "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
            "output_router_logits": False, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": False,
            },
            "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
            "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
        },
        {
            "parameters": 20_914_757_184, "rotated": 64, "theta": 150_000, "stretch": 32.0,
            "attention_factor": 1.3466, "windows": [128, None] * 12,
            "biases": "q k v o gate up down", "activation": "quick_gelu",
            "experts": (24, 4, 32, 2880, "renormalised softmax, biased"), "sinks": 24,
            "limit": (7.0, 1.0),
        },
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (
        {
            "model_type": "mixtral", "attention_dropout": 0.0, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
            "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
            "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32000,
        },
        {
            "parameters": 46_702_792_704, "rotated": 128, "theta": 1_000_000,
            "experts": (32, 2, 8, 14336, "renormalised softmax"),
        },
    ),
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": (
        {
            "model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 8192,
            "max_window_layers": 21, "moe_intermediate_size": 1408, "norm_topk_prob": False,
            "num_attention_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
            "num_hidden_layers": 24, "num_key_value_heads": 16, "output_router_logits": False,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 5632, "sliding_window": 32768,
            "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
        },
        {
            "parameters": 14_315_784_192, "rotated": 128, "theta": 1_000_000, "biases": "q k v",
            "experts": (24, 4, 60, 1408, "softmax, beside 5632, gated"),
        },
    ),
    "Qwen/Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
            "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
            "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32,
            "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
            "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
            "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {
            "parameters": 30_532_122_624, "rotated": 128, "theta": 1_000_000,
            "qk_norm": "per head", "experts": (48, 8, 128, 768, "renormalised softmax"),
        },
    ),
}  # fmt: skip

PUBLISHED: dict[str, Published] = {
    **_LLAMA, **_LFM2, **_QWEN, **_QWEN35, **_GEMMA, **_GEMMA4, **_MISTRAL, **_GRANITE,
    **_GRANITE_HYBRID, **_FALCON_H1, **_NEMOTRON_H, **_PHI, **_EXPERTS,
    **_OTHERS,
}  # fmt: skip
