"""Nemotron-H (`nemotron_h`): 4B, 8B, Nemotron Nano v2 9B and 12B, Nemotron 3 Nano 4B."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import FeedForward, LayerSpec
from converter.families.base import Family
from converter.families.mamba2_keys import MAMBA_NAMES, Mamba2Keys
from converter.families.tensors import NAMES, Names, WeightSource, with_names

# The letters of `hybrid_override_pattern`.
_KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
# Of experts, which no layer here has, and of layers that predict a token more.
_OF_OTHER_LAYERS = frozenset(
    {
        "moe_intermediate_size", "moe_latent_size", "moe_shared_expert_intermediate_size",
        "moe_shared_expert_overlap", "mtp_hybrid_override_pattern", "mtp_layers_block_type",
        "n_group", "n_routed_experts", "n_shared_experts", "norm_topk_prob", "num_experts_per_tok",
        "num_nextn_predict_layers", "routed_scaling_factor", "topk_group",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NemotronH(Mamba2Keys, Family):
    """One block a layer: Mamba2, attention without positions, or relu squared without a gate."""

    name: ClassVar[str] = "nemotron_h"
    activation_key: ClassVar[str] = "mlp_hidden_act"
    aliases: ClassVar[Mapping[str, str]] = {
        "conv_kernel": "mamba_d_conv",
        "expand": "mamba_expand",
        "layer_norm_epsilon": "rms_norm_eps",
        "layers_block_type": "layer_types",
        "mamba_head_dim": "mamba_d_head",
        "mamba_num_heads": "mamba_n_heads",
        "mlp_hidden_act": "hidden_act",
        "n_groups": "mamba_n_groups",
        "ssm_state_size": "mamba_d_state",
        "use_bias": "mamba_proj_bias",
        "use_conv_bias": "mamba_conv_bias",
    }
    # transformers gives attention neither biases nor a window, whatever the config says.
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"attention_bias": (None, False)}
    beside: ClassVar[frozenset[str]] = (
        _OF_OTHER_LAYERS
        | Mamba2Keys.of_training
        | {
            "chunk_size", "mamba_proj_bias", "mamba_ssm_cache_dtype", "num_logits_to_keep",
            "rescale_prenorm_residual", "residual_in_fp32", "sliding_window", "time_step_floor",
            "use_mamba_kernels",
        }
    )  # fmt: skip
    names: ClassVar[Names] = with_names(
        NAMES,
        *((path, tensor.replace(".mamba.", ".mixer."), gguf) for path, tensor, gguf in MAMBA_NAMES),
        ("embedding", "embeddings.weight|embedding.weight", "token_embd.weight"),
        ("layers.{i}.mamba.norm", "layers.{i}.norm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.attention.norm", "layers.{i}.norm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.attention.q", "layers.{i}.mixer.q_proj.weight", "blk.{i}.attn_q.weight"),
        ("layers.{i}.attention.k", "layers.{i}.mixer.k_proj.weight", "blk.{i}.attn_k.weight"),
        ("layers.{i}.attention.v", "layers.{i}.mixer.v_proj.weight", "blk.{i}.attn_v.weight"),
        ("layers.{i}.attention.o", "layers.{i}.mixer.o_proj.weight", "blk.{i}.attn_output.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.norm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.mixer.up_proj.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.mixer.down_proj.weight", "blk.{i}.ffn_down.weight"),
        ("final_norm", "norm_f.weight", "output_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' NemotronHConfig.
    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 21504
    layer_types: Sequence[str]
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    hidden_act: str = "relu2"
    mlp_bias: bool = False
    mamba_n_groups: int = 8
    mamba_d_state: int = 128
    mamba_d_head: int | None = 64
    mamba_hidden_act: str = "silu"
    time_step_min: float = 0.001

    @classmethod
    def keys(cls) -> frozenset[str]:
        rope = {"rope_parameters", "rope_scaling", "rope_theta"}
        return super().keys() - rope | {"hybrid_override_pattern", "layer_types"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A pattern is what an older config has in place of a list; both count the layers."""
        resolved = super().resolve_aliases(cls.resolve_mamba(config))
        pattern, kinds = resolved.pop("hybrid_override_pattern", None), resolved.get("layer_types")
        if kinds is None and isinstance(pattern, str):
            kinds = resolved["layer_types"] = [_KINDS.get(kind, kind) for kind in pattern]
        if isinstance(kinds, list):
            resolved["num_hidden_layers"] = len(kinds)
        return resolved

    def biases(self) -> tuple[str, ...]:
        return ("up", "down") if self.mlp_bias else ()

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def layers(self) -> tuple[LayerSpec, ...]:
        if tuple(self.time_step_limit or (0, math.inf)) != (0, math.inf):
            # transformers heeds it on a GPU alone.
            raise self.unsupported("time_step_limit", self.time_step_limit, "only [0, inf] is")
        if self.mamba_hidden_act not in self.activations:
            supported = f"only {', '.join(self.activations)} are"
            raise self.unsupported("mamba_hidden_act", self.mamba_hidden_act, supported)
        mamba = self.mamba(
            self.name,
            self.mamba_n_heads * (self.mamba_d_head or 64),
            self.activations[self.mamba_hidden_act],
            self.norm(),
            self.mamba_n_groups,
        )
        if self.gguf_biases is None:  # llama.cpp has no least step
            mamba = dataclasses.replace(mamba, step_limits=(self.time_step_min, math.inf))
        attention = self.attention(rope=None, sliding_window=None)
        by_kind = {
            "linear_attention": LayerSpec(mamba, None),
            "full_attention": LayerSpec(attention, None),
            "mlp": LayerSpec(None, self.feed_forward()),
        }
        if set(self.layer_types) == {"mlp"}:
            raise self.unsupported("layer_types", "mlp", "only beside attention or Mamba2 is")
        older = {"mamba": by_kind["linear_attention"], "attention": by_kind["full_attention"]}
        return self.layers_of(self.layer_types, {**by_kind, **older})

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        return self.mamba_source(path, tensor, fmt) or super().source_of(path, tensor, fmt)
