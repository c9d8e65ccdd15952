"""OLMoE (`olmoe`): OLMoE 1B-7B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, Attention, Experts, QKNorm, Rope
from converter.families.base import Family
from converter.families.experts import OF_MLP, OF_TRAINING, experts_of, with_num_experts
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Olmoe(Family):
    """The plain decoder with experts; queries and keys normalised over their full width."""

    name: ClassVar[str] = "olmoe"
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"clip_qkv": (None,)}
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    names: ClassVar[Names] = with_names(NAMES, *OF_MLP)

    # Defaults are those of transformers' OlmoeConfig.
    vocab_size: int = 50304
    hidden_size: int = 2048
    intermediate_size: int = 2048
    num_hidden_layers: int = 16
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    num_experts: int = 64
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() | {"num_local_experts"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().resolve_aliases(with_num_experts(config))

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm(), is_full_width=True))

    def block(self) -> Experts:
        return experts_of(
            self.name,
            self.feed_forward(),
            self.num_experts,
            self.num_experts_per_tok,
            renormalises=self.norm_topk_prob,
        )

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
