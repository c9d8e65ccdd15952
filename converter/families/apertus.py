"""Apertus (`apertus`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    Activation,
    Attention,
    FeedForward,
    QKNorm,
    Rope,
)
from converter.families.base import ACTIVATIONS, Family
from converter.families.tensors import NAMES, Names, with_names

# What transformers' ApertusConfig takes where a config says nothing.
_DEFAULT_ROPE = {
    "rope_type": "llama3", "rope_theta": 1.2e7, "factor": 8.0,
    "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Apertus(Family):
    """The plain decoder with q/k norm per head, and xIELU between two matrices."""

    name: ClassVar[str] = "apertus"
    activations: ClassVar[Mapping[str, Activation]] = {**ACTIVATIONS, "xielu": Activation.XIELU}
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.norm", "layers.{i}.attention_layernorm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight"),
        # A GGUF has them among its metadata; `converter/checkpoint/gguf.py` shows them as tensors.
        ("layers.{i}.mlp.alpha_p", "layers.{i}.mlp.act_fn.alpha_p", "blk.{i}.ffn_act.alpha_p"),
        ("layers.{i}.mlp.alpha_n", "layers.{i}.mlp.act_fn.alpha_n", "blk.{i}.ffn_act.alpha_n"),
    )  # fmt: skip
    # Constants of transformers' class, 0.5 and -1e-6, which it saves.
    ignored: ClassVar[tuple[str, ...]] = (*Family.ignored, "act_fn.beta", "act_fn.eps")

    # Defaults are those of transformers' ApertusConfig.
    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 65536
    rms_norm_eps: float = 1e-5
    hidden_act: str = "xielu"
    attention_bias: bool = False

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if not (config.get("rope_parameters") or config.get("rope_scaling")):
            config = {**config, "rope_parameters": _DEFAULT_ROPE}
        return super().resolve_aliases(config)

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm()))

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
