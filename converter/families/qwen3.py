"""Qwen3 (`qwen3`), dense."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, Attention, QKNorm, Rope
from converter.families.qwen2 import Qwen2


@dataclass(frozen=True, kw_only=True)
class Qwen3(Qwen2):
    """Qwen2 with queries and keys normalised per head, and biases only where the config says so."""

    name: ClassVar[str] = "qwen3"
    templates: ClassVar[tuple[str, ...]] = ("qwen3.jinja", "chatml.jinja")

    head_dim: int | None = 128
    attention_bias: bool = False

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm()))

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
