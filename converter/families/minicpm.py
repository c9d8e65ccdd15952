"""MiniCPM (`minicpm`): MiniCPM 1B and 2B, MiniCPM4; their code is in their own repositories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import DecoderSpec
from converter.families.llama import Llama


@dataclass(frozen=True, kw_only=True)
class MiniCPM(Llama):
    """The plain decoder with factors on embedding, residuals and logits, told by its width."""

    name: ClassVar[str] = "minicpm"
    gguf_aliases: ClassVar[Mapping[str, str]] = {
        "embedding_multiplier": "scale_emb",
        "residual_multiplier": "gguf_residual_scale",
        "logits_scaling": "gguf_logits_scaling",
    }
    # Attention that leaves out blocks of long texts, which MiniCPM4 8B may be run with; MiniCPM-MoE.
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "sparse_config": (None,),
        "num_experts": (None, 0),
    }
    # The first is of its drafting heads.
    beside: ClassVar[frozenset[str]] = frozenset({"mup_denominator", "use_sdpa"})

    # Defaults are those of MiniCPMConfig (configuration_minicpm.py of MiniCPM-2B).
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    tie_word_embeddings: bool = True
    scale_emb: float = 1.0
    scale_depth: float = 1.0
    dim_model_base: float = 1.0
    gguf_residual_scale: float | None = None
    gguf_logits_scaling: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fmt: str = "safetensors") -> MiniCPM:
        if fmt == "gguf":  # the first ones have no keys for them
            config = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0, **config}
        return super().from_config(config, fmt)

    def spec(self) -> DecoderSpec:
        residual = self.scale_depth / self.num_hidden_layers**0.5
        logits = self.hidden_size / self.dim_model_base
        return dataclasses.replace(
            super().spec(),
            embedding_scale=self.scale_emb,
            residual_scale=self.gguf_residual_scale or residual,
            logits_scale=1 / (self.gguf_logits_scaling or logits),
        )
