"""Command R7B and Tiny Aya (`cohere2`), Command R and Aya (`cohere`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    DecoderSpec,
    LayerSpec,
    Norm,
    NormKind,
    Placement,
)
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Cohere(Family):
    """Both blocks side by side behind one layer norm; neighbours are rotated; scaled logits."""

    name: ClassVar[str] = "cohere"
    interleaved: ClassVar[frozenset[str]] = frozenset({"safetensors", "gguf"})
    aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}
    gguf_aliases: ClassVar[Mapping[str, str]] = {"logits_scaling": "logit_scale"}
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"use_qk_norm": (None, False)}

    # Defaults are those of transformers' CohereConfig.
    vocab_size: int = 256000
    hidden_size: int = 8192
    intermediate_size: int = 22528
    num_hidden_layers: int = 40
    num_attention_heads: int = 64
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps)

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(), placement=Placement.PARALLEL, logits_scale=self.logit_scale
        )


@dataclass(frozen=True, kw_only=True)
class Cohere2(Cohere):
    """Cohere with windows, and no rotary embedding in the layers that see everything."""

    name: ClassVar[str] = "cohere2"
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4
    layer_types: Sequence[str] | None = None

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % self.sliding_window_pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        by_kind = {
            "full_attention": self.layer(None),
            "sliding_attention": self.layer(rope, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)
