"""A GGUF's metadata in the words of a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.gguf_header import DAMAGED
from converter.errors import SourceError, UnsupportedError

# {arch}.KEY -> config key, for what a family may use or must refuse. Zero means "not set" in all
# of them, as in llama.cpp, and is left out.
_OPTIONAL_KEYS = {
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attention.clamp_kqv": "clip_qkv",
    "attention.max_alibi_bias": "max_alibi_bias",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "rope.freq_base_swa": "rope_local_base_freq",
    "use_parallel_residual": "use_parallel_residual",
}
_ROPE_SCALING_KEYS = {
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# Read by the code below, or of no consequence for the numbers.
_OTHER_KEYS = {
    "vocab_size", "block_count", "embedding_length", "attention.head_count", "attention.causal",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.sliding_window_pattern", "rope.dimension_count", "rope.freq_base",
    "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "tensor_data_layout",
}  # fmt: skip


def translate_config(
    path: str,
    metadata: dict[str, Any],
    tensors: Mapping[str, TensorInfo],
    read_vector: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """Translate metadata to Hugging Face's config keys.

    Keys that this table does not know are listed, sorted, under `unknown_gguf_keys`, so that a
    family can refuse what it would otherwise ignore. Llama's permuted q and k rows are the
    family's business.

    Args:
        path: the file as the user knows it.
        metadata: its key-value pairs.
        tensors: its tensors.
        read_vector: gives the values of a tensor of one dimension; asked for `rope_freqs.weight`,
            which holds what other formats keep in the config.

    Raises:
        SourceError: a key is missing or damaged.
        UnsupportedError: a config cannot say it.
    """
    keys = _Keys(path, metadata)
    heads = keys.count("attention.head_count")
    config: dict[str, Any] = {
        "model_type": keys.arch,
        "vocab_size": _embedding_rows(path, tensors),
        "hidden_size": keys.count("embedding_length"),
        "num_hidden_layers": _layer_count(keys, len(tensors)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    config["head_dim"] = _head_dim(keys, config["hidden_size"], heads)
    for key, name in _OPTIONAL_KEYS.items():
        if value := keys.number(key):
            config[name] = value
    if keys.values.get("attention.causal") is False:
        config["is_causal"] = False
    rotary = keys.count("rope.dimension_count", config["head_dim"])
    if rotary != config["head_dim"]:
        config["partial_rotary_factor"] = rotary / config["head_dim"]
    if keys.arch.startswith("gemma") and "attention_multiplier" in config:
        scale = config.pop("attention_multiplier")
        if not 1e-6 < scale < 1e6:
            raise keys.wrong("attention.scale", f"is {scale}")
        config["query_pre_attn_scalar"] = scale**-2
    config.update(_sliding_pattern(keys, config["num_hidden_layers"]))
    scaling = _rope_scaling(keys, tensors, read_vector, rotary)
    if scaling:
        config["rope_scaling"] = scaling
    unknown = sorted(keys.values.keys() - _OPTIONAL_KEYS.keys() - _OTHER_KEYS)
    if unknown:
        config["unknown_gguf_keys"] = unknown
    return config


class _Keys:
    """The `{arch}.*` metadata of one file, by the rest of the name."""

    def __init__(self, path: str, metadata: dict[str, Any]) -> None:
        self.path = path
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise SourceError(self.path, "metadata key 'general.architecture' is missing", DAMAGED)
        self.arch = arch
        prefix = f"{arch}."
        self.values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }

    def wrong(self, key: str, why: str) -> SourceError:
        return SourceError(self.path, f"metadata key '{self.arch}.{key}' {why}", DAMAGED)

    def number(self, key: str, default: Any = None) -> Any:
        """A number, or one number per layer that is the same for all of them.

        float32 becomes the shortest decimal that rounds to it: 1e-06 as in the model's config.json,
        not 9.999999974752427e-07.
        """
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray) and value.size:
            if np.any(value != value[0]):
                raise UnsupportedError(
                    self.path,
                    f"{self.arch}.{key} differs between layers",
                    "use a model whose layers all have the same shape",
                )
            value = value[0].item()
        if isinstance(value, float):
            with np.errstate(over="ignore"):
                single = np.float32(value)
            value = float(str(single)) if float(single) == value else value
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise self.wrong(key, f"is {value!r:.80}, not a number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number that must be there unless `default` is given."""
        value = self.number(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        if type(value) is not int or value < 1:
            raise self.wrong(key, f"is {value!r:.80}, not a positive whole number")
        return value


def _embedding_rows(path: str, tensors: Mapping[str, TensorInfo]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SourceError(
            path,
            "tensor 'token_embd.weight' is missing or not two-dimensional",
            "give the GGUF of a whole language model, not of a part or an adapter",
        )
    return embedding.shape[0]


def _layer_count(keys: _Keys, tensors: int) -> int:
    """The number of layers, which a damaged file must not make a number to loop over for ever."""
    layers = keys.count("block_count")
    if layers > tensors:
        raise keys.wrong("block_count", f"is {layers}, but the file has only {tensors} tensors")
    return layers


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    if "attention.key_length" not in keys.values and hidden % heads:
        raise keys.wrong("attention.head_count", f"is {heads}, which does not divide {hidden}")
    key = keys.count("attention.key_length", hidden // heads)
    value = keys.count("attention.value_length", key)
    if key != value:
        raise UnsupportedError(
            keys.path,
            f"{keys.arch}.attention.key_length {key} differs from value_length {value}",
            "use a model whose keys and values have the same size",
        )
    return key


def _sliding_pattern(keys: _Keys, layers: int) -> dict[str, Any]:
    """`layer_types` where the file speaks of each layer, `sliding_window_pattern` for a period."""
    pattern = keys.values.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if len(pattern) < layers:
            raise keys.wrong("attention.sliding_window_pattern", f"has {len(pattern)} entries")
        names = ("full_attention", "sliding_attention")
        return {"layer_types": [names[bool(is_local)] for is_local in pattern[:layers]]}
    period = keys.number("attention.sliding_window_pattern")
    return {"sliding_window_pattern": period} if period else {}


def _rope_scaling(
    keys: _Keys,
    tensors: Mapping[str, TensorInfo],
    read_vector: Callable[[str], np.ndarray],
    rotary: int,
) -> dict[str, Any] | None:
    """Rope scaling in Hugging Face's form; `factors` divides each frequency by a stored number."""
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1.0
    # llama.cpp's default: a factor without a type is linear.
    kind = keys.values.get("rope.scaling.type", "linear" if factor != 1.0 else "none")
    if not isinstance(kind, str):
        raise keys.wrong("rope.scaling.type", f"is {kind!r:.80}, not a name")
    if "rope_factors_long.weight" in tensors:
        kind = "longrope"
    is_scaled = kind in ("yarn", "longrope") or (kind != "none" and factor != 1.0)
    if "rope_freqs.weight" in tensors:
        if is_scaled:
            raise UnsupportedError(
                keys.path,
                f"rope_freqs.weight together with {kind} rope scaling",
                "use another GGUF",
            )
        shape = tensors["rope_freqs.weight"].shape
        if shape != (rotary // 2,):
            raise SourceError(
                keys.path,
                f"tensor 'rope_freqs.weight' has shape {shape}, not ({rotary // 2},)",
                DAMAGED,
            )
        return {"rope_type": "factors", "factors": read_vector("rope_freqs.weight").tolist()}
    if not is_scaled:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    if kind != "linear":
        for key, name in _ROPE_SCALING_KEYS.items():
            if value := keys.number(f"rope.scaling.{key}"):
                scaling[name] = value
    return scaling
