"""Llama (`llama`): Llama 3.x, SmolLM2, TinyLlama, DeepSeek-R1-Distill-Llama and their kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, MLP_PROJECTIONS
from converter.families.base import Family, WeightSource


@dataclass(frozen=True, kw_only=True)
class Llama(Family):
    """The plain decoder, with optional biases."""

    name: ClassVar[str] = "llama"

    attention_bias: bool = False
    mlp_bias: bool = False

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (MLP_PROJECTIONS if self.mlp_bias else ())

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # llama.cpp rotates neighbours, not halves, in this architecture alone: its converter
        # reorders the rows of every q and k head to match, and we undo that.
        if fmt == "gguf" and (".attention.q" in path or ".attention.k" in path):
            return WeightSource(tensor, interleaved_head_dim=self.attention_head_dim)
        return super().source_of(path, tensor, fmt)
