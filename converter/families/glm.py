"""GLM-4 and GLM-Edge (`glm`), GLM-4-0414 (`glm4`); in a GGUF the first is `chatglm`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import DecoderSpec, Placement
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Glm(Family):
    """The plain decoder with gate and up in one matrix; neighbours in half a head are rotated."""

    name: ClassVar[str] = "glm"
    rotates_part: ClassVar[bool] = True
    interleaved: ClassVar[frozenset[str]] = frozenset({"safetensors", "gguf"})
    # The vision tower of GLM-Edge-V, whose class transformers does not have.
    ignored: ClassVar[tuple[str, ...]] = (*Family.ignored, "vision.")
    # A GGUF of the older format (ChatGLM's own code) has q, k and v in one matrix.
    names: ClassVar[Names] = with_names(
        NAMES,
        *(
            (
                f"layers.{{i}}.attention.{part}{suffix}",
                f"layers.{{i}}.self_attn.{part}_proj.{kind}",
                f"blk.{{i}}.attn_{part}.{kind}|blk.{{i}}.attn_qkv.{kind}",
            )
            for part in "qkv"
            for suffix, kind in (("", "weight"), (".bias", "bias"))
        ),
        ("layers.{i}.mlp.gate", "layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight"),
    )

    # Defaults are those of transformers' GlmConfig.
    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 2
    head_dim: int | None = 128
    max_position_embeddings: int = 131072
    partial_rotary_factor: float = 0.5
    rms_norm_eps: float = 1.5625e-07
    attention_bias: bool = True

    def biases(self) -> tuple[str, ...]:
        return ("q", "k", "v") if self.attention_bias else ()


@dataclass(frozen=True, kw_only=True)
class Glm4(Glm):
    """GLM with norms before and after both blocks."""

    name: ClassVar[str] = "glm4"
    names: ClassVar[Names] = with_names(
        Glm.names,
        ("layers.{i}.attention.post_norm", "layers.{i}.post_self_attn_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
        ("layers.{i}.mlp.post_norm", "layers.{i}.post_mlp_layernorm.weight", "blk.{i}.post_ffw_norm.weight"),
    )  # fmt: skip

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), placement=Placement.BOTH)
