"""Mistral (`mistral`): Mistral 7B and its kin; in a GGUF they are `llama`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import LayerSpec
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Mistral(Family):
    """The plain decoder, with a window in every layer where the config names one."""

    name: ClassVar[str] = "mistral"

    # Defaults are those of transformers' MistralConfig: without a key there is a window.
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        return (self.layer(rope, self.sliding_window),) * self.num_hidden_layers
