"""EXAONE 4 (`exaone4`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, DecoderSpec, LayerSpec, Placement, QKNorm, Rope
from converter.families.base import Family
from converter.families.olmo2 import Olmo2
from converter.families.tensors import Names


@dataclass(frozen=True, kw_only=True)
class Exaone4(Family):
    """Norms after both blocks alone, q/k norm per head; with windows, the others are NoPE layers."""

    name: ClassVar[str] = "exaone4"
    names: ClassVar[Names] = Olmo2.names

    # Defaults are those of transformers' Exaone4Config.
    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = 4096
    sliding_window_pattern: int | None = 4
    layer_types: Sequence[str] | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        if resolved.get("layer_types"):  # which says the same as a pattern, "LLLG" in older configs
            resolved.pop("sliding_window_pattern", None)
        return resolved

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm()))

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), placement=Placement.AFTER)

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        window = self.sliding_window
        period = (self.sliding_window_pattern or 1) if window else 1
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % period else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        by_kind = {
            "full_attention": self.layer(None if window else rope),
            "sliding_attention": self.layer(rope, window),
        }
        return self.layers_of(kinds, by_kind)
