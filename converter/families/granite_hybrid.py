"""Granite 4.0 (`granitemoehybrid`), where its layers are attention: 350M, 1B, Micro."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Experts, FeedForward, LayerSpec
from converter.families.experts import OF_TRAINING, experts_of
from converter.families.granite import Granite
from converter.families.granite_moe import GRANITE_EXPERTS
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class GraniteHybrid(Granite):
    """Granite with a block beside its experts, or instead; with mamba layers it is refused."""

    name: ClassVar[str] = "granitemoehybrid"
    aliases: ClassVar[Mapping[str, str]] = {
        "shared_intermediate_size": "intermediate_size",
        "intermediate_size": "expert_width",
    }
    # Of mamba layers, which are not there.
    beside: ClassVar[frozenset[str]] = OF_TRAINING | frozenset(
        {
            "mamba_n_heads", "mamba_n_groups", "mamba_d_state",
            "mamba_d_head", "mamba_d_conv", "mamba_expand", "mamba_chunk_size", "mamba_conv_bias",
            "mamba_proj_bias", "time_step_min", "time_step_max", "time_step_limit",
        }
    )  # fmt: skip
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.mlp.gate", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_gate.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.shared_mlp.output_linear.weight", "blk.{i}.ffn_down.weight"),
        ("layers.{i}.mlp.shared.gate", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_gate_shexp.weight"),
        ("layers.{i}.mlp.shared.up", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_up_shexp.weight"),
        ("layers.{i}.mlp.shared.down", "layers.{i}.shared_mlp.output_linear.weight", "blk.{i}.ffn_down_shexp.weight"),
        *GRANITE_EXPERTS,
    )  # fmt: skip

    intermediate_size: int = 1024
    expert_width: int = 11008
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    position_embedding_type: str | None = None
    layer_types: Sequence[str] | None = None

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"mlp_bias"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads no such key.
        resolved = {key: value for key, value in config.items() if key != "mlp_bias"}
        resolved["layer_types"] = resolved.pop("layers_block_type", resolved.get("layer_types"))
        return super().resolve_aliases(resolved)

    def block(self) -> FeedForward | Experts:
        shared, count = self.feed_forward(), self.num_local_experts
        if not count:
            return shared
        expert = dataclasses.replace(shared, width=self.expert_width)
        return experts_of(self.name, expert, count, self.num_experts_per_tok, shared=shared)

    def layers(self) -> tuple[LayerSpec, ...]:
        has_rope = self.position_embedding_type == "rope"
        layer = self.layer(self.rope(self.rope_theta, self.rope_scaling) if has_rope else None)
        kinds = self.layer_types or ["mamba"] * self.num_hidden_layers  # which is its default
        return self.layers_of(kinds, {"attention": layer, "full_attention": layer})
