"""Jais 2 (`jais2`): Jais-2-8B, Jais-2-70B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, FeedForward, Norm, NormKind
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Jais2(Family):
    """Layer norms, relu squared without a gate, biases everywhere."""

    name: ClassVar[str] = "jais2"
    aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}

    # Defaults are those of transformers' Jais2Config.
    vocab_size: int = 150272
    hidden_size: int = 3328
    intermediate_size: int = 26624
    num_hidden_layers: int = 32
    num_attention_heads: int = 26
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    hidden_act: str = "relu2"
    attention_bias: bool = True
    mlp_bias: bool = True

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps, has_bias=True)

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (("up", "down") if self.mlp_bias else ())
