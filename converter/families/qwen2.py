"""Qwen2 (`qwen2`): Qwen2, Qwen2.5 and DeepSeek-R1-Distill-Qwen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import LayerSpec
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Qwen2(Family):
    """The plain decoder with biases on q, k and v."""

    name: ClassVar[str] = "qwen2"

    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int | None = None

    def biases(self) -> tuple[str, ...]:
        return ("q", "k", "v")

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        kinds = self.layer_types
        if kinds is None:  # configs before transformers 4.53: layers past the limit slide
            full = self.max_window_layers if self.use_sliding_window else self.num_hidden_layers
            kinds = [
                "full_attention" if full is not None and i < full else "sliding_attention"
                for i in range(self.num_hidden_layers)
            ]
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.unsupported(
                    "layer_types", kind, "only 'full_attention' and 'sliding_attention' are"
                )
        return tuple(
            LayerSpec(rope, self.sliding_window if kind == "sliding_attention" else None)
            for kind in kinds
        )
