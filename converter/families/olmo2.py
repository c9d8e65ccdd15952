"""OLMo 2 (`olmo2`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, Attention, DecoderSpec, Placement, QKNorm, Rope
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Olmo2(Family):
    """Norms after both blocks alone; queries and keys normalised over their full width."""

    name: ClassVar[str] = "olmo2"
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.post_norm", "layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
        ("layers.{i}.mlp.post_norm", "layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Olmo2Config.
    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm(), is_full_width=True))

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), placement=Placement.AFTER)

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
