"""Helium (`helium`): Kyutai's Helium 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Helium(Llama):
    """The plain decoder whose rotary embedding turns neighbours."""

    name: ClassVar[str] = "helium"
    interleaved: ClassVar[frozenset[str]] = frozenset({"safetensors"})

    # Defaults are those of transformers' HeliumConfig.
    vocab_size: int = 48000
    hidden_size: int = 2560
    intermediate_size: int = 7040
    num_hidden_layers: int = 24
    num_attention_heads: int = 20
    num_key_value_heads: int | None = 20
    head_dim: int | None = 128
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-8
    rope_theta: float = 100_000.0

    def biases(self) -> tuple[str, ...]:
        # Its output projection has none, whatever the config says.
        return tuple(part for part in super().biases() if part != "o")
