"""Arcee (`arcee`): AFM-4.5B."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import FeedForward
from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Arcee(Llama):
    """The plain decoder with a feed-forward block of two matrices, relu squared between them."""

    name: ClassVar[str] = "arcee"

    # Defaults are those of transformers' ArceeConfig.
    vocab_size: int = 32000
    hidden_size: int = 2560
    intermediate_size: int = 18432
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    hidden_act: str = "relu2"

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        return tuple(part for part in super().biases() if part != "gate")
