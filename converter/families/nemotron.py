"""Nemotron (`nemotron`): Nemotron-Mini-4B, Minitron."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, FeedForward, Norm, NormKind
from converter.families.base import Family
from converter.families.tensors import WeightSource


@dataclass(frozen=True, kw_only=True)
class Nemotron(Family):
    """Layer norms stored less 1, half a head rotated, relu squared without a gate."""

    name: ClassVar[str] = "nemotron"
    rotates_part: ClassVar[bool] = True
    aliases: ClassVar[Mapping[str, str]] = {"norm_eps": "rms_norm_eps"}
    gguf_aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}

    # Defaults are those of transformers' NemotronConfig.
    vocab_size: int = 256000
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 32
    num_attention_heads: int = 48
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    hidden_act: str = "relu2"
    partial_rotary_factor: float = 0.5
    attention_bias: bool = False
    mlp_bias: bool = False

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps, has_bias=True)

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (("up", "down") if self.mlp_bias else ())

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # llama.cpp's converter has added the 1 already.
        if fmt == "safetensors" and path.endswith("norm"):
            return WeightSource(tensor, add=1.0)
        return super().source_of(path, tensor, fmt)
