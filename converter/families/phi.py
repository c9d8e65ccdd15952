"""Phi (`phi`): Phi-1, 1.5 and 2; in a GGUF they are `phi2`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import DecoderSpec, FeedForward, Norm, NormKind, Placement
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Phi(Family):
    """Both blocks side by side behind one layer norm, biases everywhere, no gate."""

    name: ClassVar[str] = "phi"
    rotates_part: ClassVar[bool] = True
    aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"qk_layernorm": (None, False)}
    names: ClassVar[Names] = with_names(
        NAMES,
        *(
            (f"layers.{{i}}.attention.{part}", f"layers.{{i}}.self_attn.{part}_proj.weight", f"blk.{{i}}.attn_{part}.weight|blk.{{i}}.attn_qkv.weight")
            for part in "qkv"
        ),
        ("layers.{i}.attention.o", "layers.{i}.self_attn.dense.weight", "blk.{i}.attn_output.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.mlp.fc1.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.mlp.fc2.weight", "blk.{i}.ffn_down.weight"),
        ("final_norm", "final_layernorm.weight", "output_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' PhiConfig.
    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-5
    hidden_act: str = "gelu_new"
    partial_rotary_factor: float = 0.5

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps, has_bias=True)

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), is_gated=False)

    def biases(self) -> tuple[str, ...]:
        return ("q", "k", "v", "o", "up", "down")

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), placement=Placement.PARALLEL, head_bias=True)
