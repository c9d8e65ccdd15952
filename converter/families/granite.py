"""Granite (`granite`): IBM's dense Granite 3 and 4.1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import Attention, DecoderSpec, LayerSpec, Rope
from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Granite(Llama):
    """The plain decoder with factors on embedding, scores, residuals and logits."""

    name: ClassVar[str] = "granite"

    # Defaults are those of transformers' GraniteConfig.
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    # llama.cpp's granite without positions (NoPE) says so by `rope.scaling.finetuned`.
    gguf_rope_finetuned: bool = True

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, scale=self.attention_multiplier)

    def layers(self) -> tuple[LayerSpec, ...]:
        if self.gguf_rope_finetuned:
            return super().layers()
        return (self.layer(None),) * self.num_hidden_layers

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            embedding_scale=self.embedding_multiplier,
            residual_scale=self.residual_multiplier,
            logits_scale=1 / self.logits_scaling,
        )
