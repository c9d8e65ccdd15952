"""LFM2 with experts (`lfm2_moe`): LFM2 8B-A1B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec, Router
from converter.families.experts import OF_MLP, experts_of
from converter.families.lfm2 import Lfm2
from converter.families.tensors import Names, with_names

_BLOCK = "layers.{i}.feed_forward"
_STORED = {
    "router": f"{_BLOCK}.gate.weight",
    "gate": f"{_BLOCK}.experts.{{e}}.w1.weight|{_BLOCK}.experts.gate_up_proj",
    "up": f"{_BLOCK}.experts.{{e}}.w3.weight|{_BLOCK}.experts.gate_up_proj",
    "down": f"{_BLOCK}.experts.{{e}}.w2.weight|{_BLOCK}.experts.down_proj",
}
# What Lfm2MoeConfig knows no more.
_OF_DENSE = frozenset(
    {
        "block_auto_adjust_ff_dim", "block_ff_dim", "block_ffn_dim_multiplier",
        "block_multiple_of", "full_attn_idxs",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lfm2Moe(Lfm2):
    """LFM2 with experts behind the first layers; a bias has a say in which of them are taken."""

    name: ClassVar[str] = "lfm2_moe"
    names: ClassVar[Names] = with_names(
        Lfm2.names,
        *((path, _STORED[path.rpartition(".")[2]], in_gguf) for path, _, in_gguf in OF_MLP),
        ("layers.{i}.mlp.choice", f"{_BLOCK}.expert_bias", "blk.{i}.exp_probs_b.bias"),
    )

    # Defaults are those of transformers' Lfm2MoeConfig.
    hidden_size: int = 2048
    intermediate_size: int = 7168
    block_auto_adjust_ff_dim: bool = False
    moe_intermediate_size: int = 1792
    num_dense_layers: int = 2
    num_experts: int = 32
    num_experts_per_tok: int = 4
    use_expert_bias: bool = True
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - _OF_DENSE

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        read = {key: value for key, value in config.items() if key not in _OF_DENSE}
        return super().resolve_aliases(read)

    def layers(self) -> tuple[LayerSpec, ...]:
        expert = dataclasses.replace(self.feed_forward(), width=self.moe_intermediate_size)
        experts = experts_of(
            self.name,
            expert,
            self.num_experts,
            self.num_experts_per_tok,
            router=Router.SIGMOID,
            renormalises=self.norm_topk_prob,
            epsilon=1e-6,
            scale=self.routed_scaling_factor,
            choice_bias=self.use_expert_bias,
        )
        return tuple(
            layer if i < self.num_dense_layers else dataclasses.replace(layer, feed_forward=experts)
            for i, layer in enumerate(super().layers())
        )
