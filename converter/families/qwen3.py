"""Qwen3 (`qwen3`), dense."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, DecoderSpec
from converter.families.qwen2 import Qwen2


@dataclass(frozen=True, kw_only=True)
class Qwen3(Qwen2):
    """Qwen2 with queries and keys normalised per head, and biases only where the config says so."""

    name: ClassVar[str] = "qwen3"

    head_dim: int | None = 128
    attention_bias: bool = False

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), qk_norm=True)

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
