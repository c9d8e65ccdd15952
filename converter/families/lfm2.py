"""LFM2 and LFM2.5 (`lfm2`), dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, FeedForward, LayerSpec, QKNorm, Rope, ShortConv
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names

# Keys that have another one's meaning, and count where both are there.
_COUNTS = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


@dataclass(frozen=True, kw_only=True)
class Lfm2(Family):
    """Short convolutions, and in some layers attention with queries and keys normalised per head."""

    name: ClassVar[str] = "lfm2"
    aliases: ClassVar[Mapping[str, str]] = {"conv_L_cache": "kernel", "norm_eps": "rms_norm_eps"}
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.norm", "layers.{i}.operator_norm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.attention.q_norm", "layers.{i}.self_attn.q_layernorm.weight", "blk.{i}.attn_q_norm.weight"),
        ("layers.{i}.attention.k_norm", "layers.{i}.self_attn.k_layernorm.weight", "blk.{i}.attn_k_norm.weight"),
        ("layers.{i}.attention.o", "layers.{i}.self_attn.out_proj.weight", "blk.{i}.attn_output.weight"),
        ("layers.{i}.conv.norm", "layers.{i}.operator_norm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.conv.b", "layers.{i}.conv.in_proj.weight", "blk.{i}.shortconv.in_proj.weight"),
        ("layers.{i}.conv.c", "layers.{i}.conv.in_proj.weight", "blk.{i}.shortconv.in_proj.weight"),
        ("layers.{i}.conv.x", "layers.{i}.conv.in_proj.weight", "blk.{i}.shortconv.in_proj.weight"),
        ("layers.{i}.conv.kernel", "layers.{i}.conv.conv.weight", "blk.{i}.shortconv.conv.weight"),
        ("layers.{i}.conv.out", "layers.{i}.conv.out_proj.weight", "blk.{i}.shortconv.out_proj.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.ffn_norm.weight", "blk.{i}.ffn_norm.weight"),
        ("layers.{i}.mlp.gate", "layers.{i}.feed_forward.w1.weight", "blk.{i}.ffn_gate.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.feed_forward.w3.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.feed_forward.w2.weight", "blk.{i}.ffn_down.weight"),
        ("final_norm", "embedding_norm.weight", "token_embd_norm.weight"),
    )  # fmt: skip

    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 128_000
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    kernel: int = 3
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: Sequence[int] | None = None
    layer_types: Sequence[str] | None = None

    @classmethod
    def keys(cls) -> frozenset[str]:
        return (super().keys() | _COUNTS.keys()) - {"hidden_act"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads no activation.
        resolved = {key: value for key, value in config.items() if key != "hidden_act"}
        resolved.update({name: resolved.pop(key) for key, name in _COUNTS.items() if key in config})
        return super().resolve_aliases(resolved)

    @property
    def feed_forward_width(self) -> int:
        """What a GGUF says; of a config two thirds of it, rounded up, unless that is switched off."""
        if self.gguf_biases is not None or not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        width = 2 * self.intermediate_size // 3
        if self.block_ffn_dim_multiplier is None:
            return width
        blocks = -(-int(self.block_ffn_dim_multiplier * width) // self.block_multiple_of)
        return blocks * self.block_multiple_of

    def feed_forward(self) -> FeedForward:
        return dataclasses.replace(super().feed_forward(), width=self.feed_forward_width)

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm()))

    def layers(self) -> tuple[LayerSpec, ...]:
        if self.kernel < 2:
            raise self.unsupported("conv_L_cache", self.kernel, "only 2 or more is")
        numbers = range(self.num_hidden_layers)
        of_attention = numbers if self.full_attn_idxs is None else self.full_attn_idxs
        kinds = self.layer_types
        if kinds is None:
            kinds = ["full_attention" if i in of_attention else "conv" for i in numbers]
        by_kind = {
            "full_attention": self.layer(self.rope(self.rope_theta, self.rope_scaling)),
            "conv": LayerSpec(ShortConv(self.kernel, self.conv_bias), self.feed_forward()),
        }
        return self.layers_of(kinds, by_kind)
