"""Llama (`llama`): Llama 3.x, SmolLM2, TinyLlama, DeepSeek-R1-Distill-Llama and their kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, MLP_PROJECTIONS
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class Llama(Family):
    """The plain decoder, with optional biases."""

    name: ClassVar[str] = "llama"
    templates: ClassVar[tuple[str, ...]] = (
        "chatml.jinja", "llama3.jinja", "zephyr.jinja", "deepseek_r1.jinja"
    )  # fmt: skip

    interleaved: ClassVar[frozenset[str]] = frozenset({"gguf"})

    attention_bias: bool = False
    mlp_bias: bool = False

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (MLP_PROJECTIONS if self.mlp_bias else ())
