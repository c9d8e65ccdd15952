"""Gemma (`gemma`), the first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, DecoderSpec
from converter.families.base import Family
from converter.families.tensors import WeightSource


@dataclass(frozen=True, kw_only=True)
class Gemma(Family):
    """The plain decoder with a scaled embedding, norms stored less 1, and a GELU gate."""

    name: ClassVar[str] = "gemma"
    templates: ClassVar[tuple[str, ...]] = ("gemma3.jinja",)
    prefers_sentencepiece: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_bidirectional_attention": (None, False),
    }

    # Defaults are those of transformers' GemmaConfig.
    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int | None = 256
    max_position_embeddings: int = 8192
    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), embedding_scale=math.sqrt(self.hidden_size))

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # Hugging Face stores a norm's weight less 1; llama.cpp's converter has added it already.
        if fmt == "safetensors" and path.endswith("norm"):
            return WeightSource(tensor, add=1.0)
        return super().source_of(path, tensor, fmt)
