"""SmolLM3 (`smollm3`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import LayerSpec
from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class SmolLM3(Llama):
    """The plain decoder, in which every fourth layer has no rotary embedding (NoPE)."""

    name: ClassVar[str] = "smollm3"
    templates: ClassVar[tuple[str, ...]] = ("chatml.jinja",)

    # Defaults are those of transformers' SmolLM3Config.
    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layers: Sequence[int] | None = None
    no_rope_layer_interval: int = 4
    layer_types: Sequence[str] | None = None

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        count = self.num_hidden_layers
        # 1 for a layer that has one, in spite of the name.
        has_rope = self.no_rope_layers or [
            int((i + 1) % self.no_rope_layer_interval != 0) for i in range(count)
        ]
        slides = self.use_sliding_window and self.sliding_window is not None
        kinds = self.layer_types or [
            "sliding_attention" if slides and not has_rope[i] else "full_attention"
            for i in range(count)
        ]
        turning, still = (
            self.layers_of(
                kinds,
                {
                    "full_attention": self.layer(own),
                    "sliding_attention": self.layer(own, self.sliding_window),
                },
            )
            for own in (rope, None)
        )
        return tuple(
            turned if with_rope else unturned
            for with_rope, turned, unturned in self.by_layer(has_rope, turning, still)
        )
