"""ERNIE 4.5 (`ernie4_5`), dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, MLP_PROJECTIONS
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Ernie45(Family):
    """The plain decoder whose rotary embedding turns neighbours."""

    name: ClassVar[str] = "ernie4_5"
    interleaved: ClassVar[frozenset[str]] = frozenset({"safetensors", "gguf"})

    # Defaults are those of transformers' Ernie4_5Config.
    vocab_size: int = 103424
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 18
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 2
    head_dim: int | None = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    tie_word_embeddings: bool = True
    use_bias: bool = False

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS + MLP_PROJECTIONS if self.use_bias else ()
