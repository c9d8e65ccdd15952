"""Granite 4.0 (`granitemoehybrid`), where it is dense: 350M, 1B, Micro."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.granite import Granite
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class GraniteHybrid(Granite):
    """Granite whose feed-forward block is called a shared expert; with mamba layers it is refused."""

    name: ClassVar[str] = "granitemoehybrid"
    aliases: ClassVar[Mapping[str, str]] = {"shared_intermediate_size": "intermediate_size"}
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_local_experts": (0,)}
    # Of its experts and mamba layers, which are not there.
    beside: ClassVar[frozenset[str]] = frozenset(
        {
            "intermediate_size", "num_experts_per_tok", "output_router_logits",
            "router_aux_loss_coef", "mamba_n_heads", "mamba_n_groups", "mamba_d_state",
            "mamba_d_head", "mamba_d_conv", "mamba_expand", "mamba_chunk_size", "mamba_conv_bias",
            "mamba_proj_bias", "time_step_min", "time_step_max", "time_step_limit",
        }
    )  # fmt: skip
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.mlp.gate", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_gate.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.shared_mlp.output_linear.weight", "blk.{i}.ffn_down.weight"),
    )  # fmt: skip

    intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: Sequence[str] | None = None

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"mlp_bias"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads neither of them.
        unread = ("intermediate_size", "mlp_bias")
        resolved = {key: value for key, value in config.items() if key not in unread}
        resolved.setdefault("num_local_experts", 8)
        resolved["layer_types"] = resolved.pop("layers_block_type", resolved.get("layer_types"))
        return super().resolve_aliases(resolved)

    def layers(self) -> tuple[LayerSpec, ...]:
        has_rope = self.position_embedding_type == "rope"
        layer = self.layer(self.rope(self.rope_theta, self.rope_scaling) if has_rope else None)
        kinds = self.layer_types or ["mamba"] * self.num_hidden_layers  # which is its default
        return self.layers_of(kinds, {"attention": layer, "full_attention": layer})
