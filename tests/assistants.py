"""Tiny Gemma 4 assistants, as transformers saves them, for the tiny Gemma 4 of `tiny_models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_models import settle_torch

CLUSTERS = {"use_ordered_embeddings": True, "num_centroids": 20, "centroid_intermediate_top_k": 3}


def random_assistant(config: Any, hidden_size: int = 32, **values: Any) -> Any:
    """An assistant with random weights.

    Args:
        config: of the model that it drafts for, as transformers has it.
        hidden_size: its own.
        values: of its config, beside `text_config`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settle_torch()
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": config.num_key_value_heads,
        "num_global_key_value_heads": getattr(config, "num_global_key_value_heads", None),
        "attention_k_eq_v": getattr(config, "attention_k_eq_v", False),
        "head_dim": config.head_dim,
        "attention_bias": config.attention_bias,
        "global_head_dim": config.global_head_dim,
        "sliding_window": config.sliding_window,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "num_kv_shared_layers": 3,
    }
    kind = "gemma4_assistant"
    if config.model_type.startswith("gemma4_unified"):
        kind = "gemma4_unified_assistant"
        for key in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
            del text[key]
    values = {"backbone_hidden_size": config.hidden_size, **values}
    torch.manual_seed(7)
    assistant = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, text_config=text, **values), attn_implementation="eager"
    )
    assistant = assistant.eval().float()
    with torch.no_grad():
        for parameter in assistant.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        for name, buffer in assistant.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)
            if name.endswith("token_ordering"):
                buffer.copy_(torch.randperm(config.vocab_size))
    return assistant


def make_assistant(config: Any, folder: Path, **values: Any) -> Any:
    """The same, saved; see `random_assistant`."""
    assistant = random_assistant(config, **values)
    assistant.save_pretrained(folder)
    return assistant
