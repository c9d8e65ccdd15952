"""InternLM 3 (`internlm3`), whose code is in its own repository; in a GGUF it is `llama`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import MLP_PROJECTIONS
from converter.families.base import Family
from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class InternLM3(Family):
    """The plain decoder, with optional biases on q, k and v, and on all other matrices."""

    name: ClassVar[str] = "internlm3"
    templates: ClassVar[tuple[str, ...]] = Llama.templates
    interleaved: ClassVar[frozenset[str]] = Llama.interleaved

    # Defaults are those of InternLM3Config (configuration_internlm3.py of InternLM3-8B-Instruct).
    vocab_size: int = 128512
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 32768
    qkv_bias: bool = False
    bias: bool = False

    def biases(self) -> tuple[str, ...]:
        inner = ("q", "k", "v") if self.qkv_bias else ()
        return inner + (("o", *MLP_PROJECTIONS) if self.bias else ())
