"""Granite 4.0 (`granitemoehybrid`), where it is dense: 350M, 1B, Micro, and their H models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.granite import Granite
from converter.families.mamba2_keys import MAMBA_NAMES, Mamba2Keys
from converter.families.tensors import NAMES, Names, WeightSource, with_names


@dataclass(frozen=True, kw_only=True)
class GraniteHybrid(Mamba2Keys, Granite):
    """Granite whose feed-forward block is called a shared expert; most layers of an H are Mamba2."""

    name: ClassVar[str] = "granitemoehybrid"
    aliases: ClassVar[Mapping[str, str]] = {"shared_intermediate_size": "intermediate_size"}
    gguf_aliases: ClassVar[Mapping[str, str]] = {
        "intermediate_size": "shared_intermediate_size",
        "partial_rotary_factor": "gguf_rotated_part",
    }
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_local_experts": (0,)}
    # Of its experts, which are not there, and of training.
    beside: ClassVar[frozenset[str]] = Mamba2Keys.of_training | {
        "intermediate_size", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
    }  # fmt: skip
    names: ClassVar[Names] = with_names(
        NAMES,
        *MAMBA_NAMES,
        ("layers.{i}.mlp.gate", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_gate.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.shared_mlp.input_linear.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.shared_mlp.output_linear.weight", "blk.{i}.ffn_down.weight"),
    )  # fmt: skip

    intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: Sequence[str] | None = None
    # Bamba's architecture in llama.cpp is Granite's.
    gguf_rotated_part: float = 1.0

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
        return super().resolve_aliases(cls.resolve_mamba(resolved))

    def layers(self) -> tuple[LayerSpec, ...]:
        is_gguf = self.gguf_biases is not None
        if self.gguf_rotated_part != 1:
            raise self.unsupported(
                "rope.dimension_count", self.gguf_rotated_part, "a whole head is"
            )
        has_rope = self.gguf_rope_finetuned if is_gguf else self.position_embedding_type == "rope"
        attention = self.layer(self.rope(self.rope_theta, self.rope_scaling) if has_rope else None)
        by_kind = {"attention": attention, "full_attention": attention}
        # transformers' default is what has no names.
        kinds = self.layer_types or ["mamba"] * self.num_hidden_layers
        if {"mamba", "linear_attention"} & set(kinds):
            mixer = self.mamba(
                self.name,
                self.mamba_expand * self.hidden_size,
                self.activations[self.hidden_act],
                self.norm(),
                self.mamba_n_groups if is_gguf else 1,
            )
            mamba = LayerSpec(mixer, self.feed_forward())
            by_kind |= {"mamba": mamba, "linear_attention": mamba}
        return self.layers_of(kinds, by_kind)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        return self.mamba_source(path, tensor, fmt) or super().source_of(path, tensor, fmt)
