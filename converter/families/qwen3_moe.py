"""Qwen3 with experts (`qwen3_moe`): Qwen3 30B-A3B, Qwen3-Coder 30B-A3B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.experts import (
    OF_MLP,
    OF_TRAINING,
    experts_of,
    where_sparse,
    with_num_experts,
)
from converter.families.qwen3 import Qwen3
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Qwen3Moe(Qwen3):
    """Qwen3 with experts in all layers, or in some."""

    name: ClassVar[str] = "qwen3_moe"
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    names: ClassVar[Names] = with_names(NAMES, *OF_MLP)

    # Defaults are those of transformers' Qwen3MoeConfig.
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 4
    head_dim: int | None = None
    moe_intermediate_size: int = 768
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: Sequence[int] | None = None

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"layer_types", "max_window_layers"} | {"num_local_experts"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads neither of them: a window is that of all layers.
        unread = ("layer_types", "max_window_layers")
        read = {key: value for key, value in config.items() if key not in unread}
        return super().resolve_aliases(with_num_experts(read))

    def layers(self) -> tuple[LayerSpec, ...]:
        window = self.sliding_window if self.use_sliding_window else None
        dense = self.layer(self.rope(self.rope_theta, self.rope_scaling), window)
        expert = dataclasses.replace(self.feed_forward(), width=self.moe_intermediate_size)
        experts = experts_of(
            self.name,
            expert,
            self.num_experts,
            self.num_experts_per_tok,
            renormalises=self.norm_topk_prob,
        )
        layers = (dense,) * self.num_hidden_layers
        return where_sparse(layers, experts, self.decoder_sparse_step, self.mlp_only_layers or ())
