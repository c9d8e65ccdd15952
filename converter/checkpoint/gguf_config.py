"""A GGUF's metadata in the words of a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.gguf_header import DAMAGED
from converter.errors import SourceError, UnsupportedError

# {arch}.KEY -> config key, for what a family may use or refuses by name. Zero means "not set" in
# all of them, as in llama.cpp, and is left out.
_OPTIONAL_KEYS = {
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.temperature_scale": "llama_4_scaling_beta",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "shortconv.l_cache": "conv_L_cache",
    "rope.freq_base": "rope_theta",
    "use_parallel_residual": "use_parallel_residual",
    "rope.freq_base_swa": "rope_local_base_freq",
}
_YARN_KEYS = {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Without effect on the numbers of a dense decoder: what a converter read, how embeddings are
# pooled, what a mixture of experts does (its `expert_count` is refused).
_WITHOUT_EFFECT = {
    "vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned",
    "expert_shared_count", "expert_weights_scale",
    "expert_weights_norm", "expert_gating_func", "expert_group_count", "expert_group_used_count",
    "interleave_moe_layer_step", "moe_every_n_layers",
}  # fmt: skip
# Without effect where they say what another key says.
_REPEATED = {
    "embedding_length_out": "embedding_length",
    "attention.key_length_swa": "attention.key_length",
    "attention.value_length_swa": "attention.value_length",
    "rope.dimension_count_swa": "rope.dimension_count",
}
# What layers are that have no heads of keys and values, in the words of `layer_types`.
_WITHOUT_HEADS = {
    "lfm2": "conv", "lfm2moe": "conv", "granitehybrid": "mamba", "nemotron_h": "mamba",
}  # fmt: skip
# Architectures whose layers may differ in width: `intermediate_size` becomes a list.
_WITH_WIDTHS = frozenset({"gemma3n", "gemma4"})
_BIASES = {
    "attn_q": ("q",), "attn_k": ("k",), "attn_v": ("v",), "attn_qkv": ("q", "k", "v"),
    "attn_output": ("o",), "ffn_gate": ("gate",), "ffn_up": ("up",), "ffn_down": ("down",),
}  # fmt: skip


def translate_config(
    path: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    read_vector: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """Translate metadata to Hugging Face's config keys.

    A key that nothing here reads and that says something (0, false, an empty list and zeros do not,
    as in llama.cpp) is refused by name. What a GGUF says by its tensors alone is read from all of
    them: the head, the biases (`gguf_biases`) and the factors of the rotary embedding. Llama's
    permuted q and k rows are the family's business.

    Args:
        path: the file as the user knows it.
        metadata: its key-value pairs.
        tensors: its tensors.
        read_vector: gives the values of a tensor of one dimension; asked for `rope_freqs.weight`,
            which holds what other formats keep in the config.

    Raises:
        SourceError: a key is missing or damaged.
        UnsupportedError: a config cannot say it, or nothing here knows what it means.
    """
    keys = _Keys(path, metadata)
    heads = keys.count("attention.head_count")
    layers = _layer_count(keys, len(tensors))
    config: dict[str, Any] = {
        "model_type": keys.arch,
        "vocab_size": _embedding_rows(path, tensors),
        "hidden_size": keys.count("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": "output.weight" not in tensors,
        "gguf_biases": _biases(tensors, layers),
    }
    if keys.arch.startswith("granite") and keys.get("rope.scaling.finetuned") is False:
        config["gguf_rope_finetuned"] = False
    config["head_dim"] = _head_dim(keys, config["hidden_size"], heads)
    config.update(_sliding_pattern(keys, layers))
    config.update(_kv_heads(keys, layers, heads, config.get("layer_types", ())))
    if keys.arch in _WITH_WIDTHS:
        config.update(_per_layer_gemma(keys, tensors, layers))
    if keys.arch == "lfm2moe":
        config["num_dense_layers"] = keys.number("leading_dense_block_count", 0)
        config["use_expert_bias"] = any(name.endswith("exp_probs_b.bias") for name in tensors)
    if keys.arch == "nemotron_h":
        config.update(_single_blocks(keys, config["layer_types"]))
    if keys.arch == "granitehybrid":
        # Of a feed-forward block it says the width where experts have theirs.
        config["num_experts"] = keys.number("expert_count", 0)
        width = (
            "expert_shared_feed_forward_length" if config["num_experts"] else "feed_forward_length"
        )
        config["shared_intermediate_size"] = keys.count(width)
    if keys.arch == "qwen3moe":  # there is no key for it
        config["norm_topk_prob"] = True
    for key, name in _OPTIONAL_KEYS.items():
        if name not in config and (value := keys.number(key)):
            config[name] = value
    rotary = keys.count("rope.dimension_count", config["head_dim"])
    if keys.arch != "nemotron_h":  # which has no positions; the width it says is not its heads'
        config["partial_rotary_factor"] = rotary / config["head_dim"]  # defaults differ by family
    if keys.arch == "gemma4":
        config.update(_gemma4_heads(keys, tensors, config))
    if keys.arch.startswith("gemma") and "attention_multiplier" in config:
        scale = config.pop("attention_multiplier")
        if not 1e-6 < scale < 1e6:
            raise keys.wrong("attention.scale", f"is {scale}")
        config["query_pre_attn_scalar"] = scale**-2
    if keys.arch in ("granitehybrid", "falcon-h1", "nemotron_h"):
        config.update(_mamba(keys, tensors, config["hidden_size"]))
    if keys.arch == "qwen35":
        config.update(_delta_net(keys, layers))
    scaling = _rope_scaling(keys, tensors, read_vector, rotary)
    if scaling:
        config["rope_scaling"] = scaling
    if unknown := keys.unread():
        raise UnsupportedError(
            path,
            f"it says {', '.join(unknown[:10])}, and what that does to the numbers is unknown here",
            "convert the model's Hugging Face folder, or use another GGUF of it",
        )
    return config


class _Keys:
    """The `{arch}.*` metadata of one file, by the rest of the name; it knows what was asked for."""

    def __init__(self, path: str, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.arch = architecture(path, metadata)
        prefix = f"{self.arch}."
        self._values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
        self._read: set[str] = set()

    def wrong(self, key: str, why: str) -> SourceError:
        return SourceError(self.path, f"metadata key '{self.arch}.{key}' {why}", DAMAGED)

    def differs(self, key: str) -> UnsupportedError:
        return UnsupportedError(
            self.path,
            f"{self.arch}.{key} differs between layers",
            "use a model whose layers all have the same shape",
        )

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it is."""
        self._read.add(key)
        return self._values.get(key, default)

    def number(self, key: str, default: Any = None) -> Any:
        """A number, or one number per layer that is the same for all of them.

        float32 becomes the shortest decimal that rounds to it: 1e-06 as in the model's config.json,
        not 9.999999974752427e-07.
        """
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.size:
            if np.any(value != value[0]):
                raise self.differs(key)
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

    def unread(self) -> list[str]:
        """`KEY=VALUE` of the keys that say something and that nobody asked for, sorted."""
        found = []
        for key in sorted(self._values.keys() - self._read - _WITHOUT_EFFECT):
            value = self._values[key]
            repeated: Any = self._values.get(_REPEATED.get(key, ""))
            is_set = bool(np.any(value)) if isinstance(value, np.ndarray) else bool(value)
            if key == "attention.causal":  # false says that tokens see those that come after them
                is_set = not is_set
            if is_set and not np.array_equal(value, repeated):
                found.append(f"{self.arch}.{key}={value!r:.40}")
        return found


def architecture(path: str, metadata: Mapping[str, Any]) -> str:
    """The file's `general.architecture`.

    Raises:
        SourceError: it has none.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise SourceError(path, "metadata key 'general.architecture' is missing", DAMAGED)
    return arch


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
    """The number of layers, which a damaged file must not make a number to loop over for ever.

    Qwen3.5's are followed by those that predict a token more, which are left out.
    """
    layers = keys.count("block_count")
    if layers > tensors:
        raise keys.wrong("block_count", f"is {layers}, but the file has only {tensors} tensors")
    more = keys.number("nextn_predict_layers", 0) if keys.arch == "qwen35" else 0
    if not 0 <= more < layers:
        raise keys.wrong("nextn_predict_layers", f"is {more} of {layers} layers")
    return int(layers - more)


def _biases(tensors: Mapping[str, TensorInfo], layers: int) -> list[str]:
    """The projections that have a bias in any layer, by the network's names."""
    return [
        projection
        for stored, projections in _BIASES.items()
        for projection in projections
        if any(f"blk.{i}.{stored}.bias" in tensors for i in range(layers))
    ]


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    if keys.get("attention.key_length") is None and hidden % heads:
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


def _kv_heads(keys: _Keys, layers: int, heads: int, layer_types: Sequence[str]) -> dict[str, Any]:
    """`num_key_value_heads`, and what follows where layers differ in it.

    Those that have none are of another kind; in Gemma 4 those that see everything may have fewer.
    """
    key = "attention.head_count_kv"
    counts, other = keys.get(key), _WITHOUT_HEADS.get(keys.arch)
    by_kind = keys.arch == "gemma4" and layer_types
    if other and not isinstance(counts, np.ndarray):
        counts = np.full(layers, keys.count(key, heads))
    if not isinstance(counts, np.ndarray) or not (other or by_kind):
        return {"num_key_value_heads": keys.count(key, heads)}
    if len(counts) != layers or counts.min() < 0:
        raise keys.wrong(key, f"is not a number for each of {layers} layers")
    if by_kind:
        local = np.asarray([kind == "sliding_attention" for kind in layer_types])
        found = [set(counts[where].tolist()) or {heads} for where in (local, ~local)]
        if max(map(len, found)) > 1:
            raise keys.differs(key)
        return {
            "num_key_value_heads": found[0].pop(),
            "num_global_key_value_heads": found[1].pop(),
        }
    with_heads = set(counts.tolist()) - {0}
    if len(with_heads) > 1:
        raise keys.differs(key)
    return {
        "num_key_value_heads": with_heads.pop() if with_heads else heads,
        "layer_types": ["full_attention" if count else other for count in counts],
    }


def _single_blocks(keys: _Keys, kinds: Sequence[str]) -> dict[str, Any]:
    """Nemotron-H's layers, of one block each: a feed-forward block where the width is not 0."""
    key = "feed_forward_length"
    widths = keys.get(key)
    if not isinstance(widths, np.ndarray) or len(widths) != len(kinds) or widths.min() < 0:
        raise keys.wrong(key, f"is not a number for each of {len(kinds)} layers")
    found = set(widths.tolist()) - {0}
    if len(found) > 1:
        raise keys.differs(key)
    layers = zip(kinds, widths, strict=True)
    return {
        "layer_types": ["mlp" if width else kind for kind, width in layers],
        **({"intermediate_size": found.pop()} if found else {}),
    }


def _per_layer_gemma(keys: _Keys, tensors: Mapping[str, TensorInfo], layers: int) -> dict[str, Any]:
    """What Gemma 3n and 4 say of their layers; zeros say something, too."""

    def rows_of(name: str) -> dict[str, int]:
        return {"rows": tensors[name].shape[0]} if name in tensors else {}

    widths = keys.get("feed_forward_length")
    config: dict[str, Any] = {
        "num_kv_shared_layers": keys.number("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": keys.number("embedding_length_per_layer_input", 0),
    }
    if isinstance(widths, np.ndarray):
        config["intermediate_size"] = widths[:layers].tolist()
    if table := rows_of("per_layer_token_embd.weight"):
        config["vocab_size_per_layer_input"] = table["rows"]
    if keys.arch == "gemma3n":
        cutoffs = keys.get("activation_sparsity_scale")
        if isinstance(cutoffs, np.ndarray):
            config["gguf_cutoffs"] = cutoffs[:layers].tolist()
        if laurel := rows_of("blk.0.laurel_l.weight"):
            config["laurel_rank"] = laurel["rows"]
        config["altup_num_inputs"] = keys.count("altup.num_inputs", 4)
        config["altup_active_idx"] = keys.number("altup.active_idx", 0)
    return config


def _gemma4_heads(
    keys: _Keys, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The heads of Gemma 4's two kinds of layers; `key_length` is of those that see everything."""
    local = keys.count("attention.key_length_swa", config["head_dim"])
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if keys.count(key, local) != local:
            raise UnsupportedError(
                keys.path,
                f"{keys.arch}.{key} {keys.count(key, local)} differs from key_length_swa {local}",
                "use another GGUF",
            )
    kinds = config.get("layer_types", [])
    own = len(kinds) - config["num_kv_shared_layers"]
    everywhere = [i for i, kind in enumerate(kinds[:own]) if kind == "full_attention"]
    return {
        "head_dim": local,
        "global_head_dim": config["head_dim"],
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in tensors for i in everywhere),
    }


def _sliding_pattern(keys: _Keys, layers: int) -> dict[str, Any]:
    """`layer_types` where the file speaks of each layer, `sliding_window_pattern` for a period."""
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if len(pattern) < layers:
            raise keys.wrong("attention.sliding_window_pattern", f"has {len(pattern)} entries")
        names = ("full_attention", "sliding_attention")
        return {"layer_types": [names[bool(is_local)] for is_local in pattern[:layers]]}
    period = keys.number("attention.sliding_window_pattern")
    return {"sliding_window_pattern": period} if period else {}


def _mamba(keys: _Keys, tensors: Mapping[str, TensorInfo], hidden: int) -> dict[str, Any]:
    """Sizes of Mamba2, and what its tensors say."""
    heads, width = keys.count("ssm.time_step_rank"), keys.count("ssm.inner_size")
    config: dict[str, Any] = {
        "mamba_d_conv": keys.count("ssm.conv_kernel"),
        "mamba_d_state": keys.count("ssm.state_size"),
        "mamba_n_groups": keys.count("ssm.group_count"),
        "mamba_n_heads": heads,
        "mamba_d_head": max(1, width // heads),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in tensors),
    }
    if keys.arch == "falcon-h1":
        has_norm = any(name.endswith("ssm_norm.weight") for name in tensors)
        return config | {"mamba_d_ssm": width, "mamba_rms_norm": has_norm}
    unit = heads if keys.arch == "nemotron_h" else hidden
    if width % unit:
        raise keys.wrong("ssm.inner_size", f"is {width}, no multiple of {unit}")
    return config | {"mamba_expand": width // unit}


def _delta_net(keys: _Keys, layers: int) -> dict[str, Any]:
    """Sizes of a gated delta net, in llama.cpp's words for those of a state space model."""
    values = keys.count("ssm.time_step_rank")
    width = keys.count("ssm.inner_size")
    if width % values:
        raise keys.wrong("ssm.inner_size", f"is {width}, which {values} heads do not divide")
    keys.get("rope.dimension_sections")  # of pictures: a token of text has the same place on all
    found: dict[str, Any] = {}
    is_linear = keys.get("attention.recurrent_layers")
    if is_linear is not None:
        if not isinstance(is_linear, np.ndarray) or len(is_linear) < layers:
            raise keys.wrong(
                "attention.recurrent_layers", f"is not one for each of {layers} layers"
            )
        names = ("full_attention", "linear_attention")
        found["layer_types"] = [names[bool(value)] for value in is_linear[:layers]]
    return found | {
        "linear_conv_kernel_dim": keys.count("ssm.conv_kernel"),
        "linear_key_head_dim": keys.count("ssm.state_size"),
        "linear_value_head_dim": width // values,
        "linear_num_key_heads": keys.count("ssm.group_count"),
        "linear_num_value_heads": values,
        "full_attention_interval": keys.count("full_attention_interval", 4),
        "gguf_tiled_heads": True,
    }


def _rope_scaling(
    keys: _Keys,
    tensors: Mapping[str, TensorInfo],
    read_vector: Callable[[str], np.ndarray],
    rotary: int,
) -> dict[str, Any] | None:
    """Rope scaling in Hugging Face's form; `factors` divides each frequency by a stored number."""
    factor = float(keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1)
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default
    if not isinstance(kind, str):
        raise keys.wrong("rope.scaling.type", f"is {kind!r:.80}, not a name")
    if "rope_factors_long.weight" in tensors:
        kind = "longrope"
    yarn = _yarn(keys, kind, factor)
    if kind == "none":
        kind, factor = "linear", 1.0
    if "rope_freqs.weight" in tensors:
        if kind != "linear":
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
        factors = read_vector("rope_freqs.weight") * np.float32(factor)
        return {"rope_type": "factors", "factors": factors.tolist()}
    if kind == "linear" and factor == 1:
        return None
    if kind == "longrope":
        if "rope_factors_short.weight" not in tensors:
            raise SourceError(keys.path, "lacks the tensor 'rope_factors_short.weight'", DAMAGED)
        return yarn | {
            "rope_type": kind,
            "short_factor": read_vector("rope_factors_short.weight").tolist(),
            "long_factor": read_vector("rope_factors_long.weight").tolist(),
        }
    if kind == "yarn" and keys.arch == "gpt-oss":
        # As its config.json says. There is no key for it; llama.cpp rounds the ends in all models.
        yarn["truncate"] = False
    return {"rope_type": kind, "factor": factor} | (yarn if kind == "yarn" else {})


def _yarn(keys: _Keys, kind: str, factor: float) -> dict[str, Any]:
    """The parameters of YaRN, which say nothing where the scaling is of another kind."""
    found = {name: value for key, name in _YARN_KEYS.items() if (value := keys.number(key))}
    extrapolation = keys.number("rope.scaling.yarn_ext_factor", 1)
    is_known = kind != "yarn" or keys.arch == "mistral3"
    if is_known and (grown := keys.number("rope.scaling.yarn_log_multiplier")):
        found["mscale"] = found["mscale_all_dim"] = grown  # the share of it by which scores grow
    if kind == "yarn" and extrapolation != 1:
        raise UnsupportedError(
            keys.path, f"YaRN with yarn_ext_factor {extrapolation}", "use another GGUF"
        )
    attention = 1.0
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        attention *= keys.number(key) or 1
    if attention != 1:
        if kind not in ("yarn", "longrope"):
            raise UnsupportedError(
                keys.path, f"an attention factor of {attention} without YaRN", "use another GGUF"
            )
        # llama.cpp multiplies by what YaRN says, Hugging Face replaces it.
        grown = 0.1 * math.log(max(factor, 1)) + 1 if kind == "yarn" else 1
        found["attention_factor"] = attention * grown
    return found
