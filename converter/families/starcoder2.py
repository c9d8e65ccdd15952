"""StarCoder2 (`starcoder2`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, FeedForward, LayerSpec, Norm, NormKind
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Starcoder2(Family):
    """Layer norms and biases, a feed-forward block without a gate."""

    name: ClassVar[str] = "starcoder2"
    aliases: ClassVar[Mapping[str, str]] = {"norm_epsilon": "rms_norm_eps"}
    gguf_aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.mlp.up", "layers.{i}.mlp.c_fc.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.mlp.c_proj.weight", "blk.{i}.ffn_down.weight"),
    )

    # Defaults are those of transformers' Starcoder2Config.
    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    hidden_act: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    use_bias: bool = True

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps, has_bias=True)

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        return (*ATTENTION_PROJECTIONS, "up", "down") if self.use_bias else ()

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        return (self.layer(rope, self.sliding_window),) * self.num_hidden_layers
