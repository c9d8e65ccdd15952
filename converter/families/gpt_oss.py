"""gpt-oss (`gpt_oss`): gpt-oss 20B and 120B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    MLP_PROJECTIONS,
    Activation,
    Attention,
    Experts,
    FeedForward,
    LayerSpec,
    Rope,
)
from converter.families.base import Family
from converter.families.experts import OF_TRAINING, experts_of
from converter.families.tensors import NAMES, Names, WeightSource, with_names

# Of what transformers calls silu: x sigmoid(1.702 x), with limits that its class fixes.
_LIMIT = 7.0
_EXPERTS = "layers.{i}.mlp.experts"


@dataclass(frozen=True, kw_only=True)
class GptOss(Family):
    """Experts with biases and limits, a window in every other layer, a sink in every head."""

    name: ClassVar[str] = "gpt_oss"
    templates: ClassVar[tuple[str, ...]] = ()  # no other has its channels
    gguf_aliases: ClassVar[Mapping[str, str]] = {
        "num_experts": "num_local_experts",
        "moe_intermediate_size": "intermediate_size",
    }
    # transformers reads it where weights are in MXFP4, and else takes it to be this.
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"swiglu_limit": (None, _LIMIT)}
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    activations: ClassVar[Mapping[str, Activation]] = {"silu": Activation.QUICK_GELU}
    # `X.weight` has outputs for rows, as MXFP4 stores them; in plain numbers X has them as columns.
    # Unsloth's have a matrix for each expert.
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.sinks", "layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.post_attention_layernorm.weight",
         "blk.{i}.post_attention_norm.weight|blk.{i}.ffn_norm.weight"),
        ("layers.{i}.mlp.router", "layers.{i}.mlp.router.weight|layers.{i}.mlp.router.linear.weight", "blk.{i}.ffn_gate_inp.weight"),
        *(
            row
            for part, stored in (("gate", "gate_up_proj"), ("up", "gate_up_proj"), ("down", "down_proj"))
            for row in (
                (f"{_EXPERTS}.{{e}}.{part}",
                 f"{_EXPERTS}.{stored}.weight|{_EXPERTS}.{stored}|{_EXPERTS}.{stored}s.{{e}}.weight",
                 f"blk.{{i}}.ffn_{part}_exps.weight"),
                (f"{_EXPERTS}.{{e}}.{part}.bias", f"{_EXPERTS}.{stored}_bias|{_EXPERTS}.{stored}s.{{e}}.bias",
                 f"blk.{{i}}.ffn_{part}_exps.bias"),
            )
        ),
    )  # fmt: skip

    # Defaults are those of transformers' GptOssConfig.
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_hidden_layers: int = 36
    num_attention_heads: int = 64
    num_key_value_heads: int | None = 8
    head_dim: int | None = 64
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 150000.0
    attention_bias: bool = True
    sliding_window: int | None = 128
    layer_types: Sequence[str] | None = None
    num_local_experts: int = 128
    num_experts_per_tok: int = 4

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        # transformers' default; a GGUF without scaling has none.
        if not resolved.get("rope_scaling") and "gguf_biases" not in config:
            resolved["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
            }
        return resolved

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        return dataclasses.replace(super().attention(rope, sliding_window), has_sinks=True)

    def feed_forward(self) -> FeedForward:
        plain = super().feed_forward()
        return dataclasses.replace(plain, biases=MLP_PROJECTIONS, limit=_LIMIT, up_offset=1.0)

    def block(self) -> Experts:
        return experts_of(
            self.name,
            self.feed_forward(),
            self.num_local_experts,
            self.num_experts_per_tok,
            router_bias=True,
        )

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        by_kind = {
            "sliding_attention": self.layer(rope, self.sliding_window),
            "full_attention": self.layer(rope),
        }
        count = self.num_hidden_layers
        kinds = self.layer_types or [list(by_kind)[i % 2] for i in range(count)]
        return self.layers_of(kinds, by_kind)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        part = path.partition(".experts.")[2].partition(".")[2]  # of `3.gate.bias`
        is_bias, part = part.endswith(".bias"), part.removesuffix(".bias")
        if not part:
            return super().source_of(path, tensor, fmt)
        is_fused = fmt == "safetensors" and part in ("gate", "up")
        return WeightSource(
            tensor,
            turns=1 if is_fused else None,
            is_second=is_fused and part == "up",
            is_transposed=not is_bias and not tensor.endswith(".weight"),
            is_flattened=is_bias,
        )
