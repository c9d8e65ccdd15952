"""Qwen2 (`qwen2`): Qwen2, Qwen2.5 and DeepSeek-R1-Distill-Qwen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import LayerSpec
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Qwen2(Family):
    """The plain decoder with biases on q, k and v."""

    name: ClassVar[str] = "qwen2"
    templates: ClassVar[tuple[str, ...]] = ("chatml.jinja", "deepseek_r1.jinja")

    # Defaults are those of transformers' Qwen2Config.
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: Sequence[str] | None = None

    def biases(self) -> tuple[str, ...]:
        return ("q", "k", "v")

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        kinds = self.layer_types
        if kinds is None:  # configs before transformers 4.53: layers past the limit slide
            full = self.max_window_layers if self.use_sliding_window else self.num_hidden_layers
            kinds = [
                "full_attention" if i < full else "sliding_attention"
                for i in range(self.num_hidden_layers)
            ]
        by_kind = {
            "full_attention": self.layer(rope),
            "sliding_attention": self.layer(rope, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)
