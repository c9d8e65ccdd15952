"""Llama (`llama`): Llama 3.x, SmolLM2, TinyLlama, DeepSeek-R1-Distill-Llama and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, Rope, llama3_rope_factors
from converter.families.base import Family, WeightSource


@dataclass(frozen=True, kw_only=True)
class Llama(Family):
    """The plain decoder, with Llama 3's rotary scaling and optional biases."""

    name: ClassVar[str] = "llama"

    attention_bias: bool = False
    mlp_bias: bool = False

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (MLP_PROJECTIONS if self.mlp_bias else ())

    def rope(self, theta: float, scaling: Mapping[str, Any] | None) -> Rope:
        scaling = scaling or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind == "llama3":
            keys = (
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            )
            numbers: dict[str, Any] = {key: self._rope_number(scaling, key) for key in keys}
            return Rope(theta, llama3_rope_factors(theta, self.attention_head_dim, **numbers))
        if kind == "factors":  # a GGUF holds the outcome of llama3, not its settings
            return Rope(theta, tuple(scaling["factors"]))
        return super().rope(theta, scaling)

    def rope_types(self) -> tuple[str, ...]:
        return (*super().rope_types(), "llama3")

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # llama.cpp rotates neighbours, not halves, in this architecture alone: its converter
        # reorders the rows of every q and k head to match, and we undo that.
        if fmt == "gguf" and (".attention.q" in path or ".attention.k" in path):
            return WeightSource(tensor, interleaved_head_dim=self.attention_head_dim)
        return super().source_of(path, tensor, fmt)
