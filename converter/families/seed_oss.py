"""Seed-OSS (`seed_oss`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import MLP_PROJECTIONS
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class SeedOss(Family):
    """The plain decoder with biases on q, k and v."""

    name: ClassVar[str] = "seed_oss"
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.mlp.norm", "layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' SeedOssConfig.
    vocab_size: int = 155136
    hidden_size: int = 4096
    intermediate_size: int = 27648
    num_hidden_layers: int = 64
    num_attention_heads: int = 80
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 524288
    attention_bias: bool = True
    attention_out_bias: bool = False
    mlp_bias: bool = False

    def biases(self) -> tuple[str, ...]:
        inputs = ("q", "k", "v") if self.attention_bias else ()
        output = ("o",) if self.attention_out_bias else ()
        return inputs + output + (MLP_PROJECTIONS if self.mlp_bias else ())
