"""Granite 4.0 (`granitemoehybrid`): 350M, 1B, Micro, and the H models, Tiny and Small with experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Experts, FeedForward, LayerSpec
from converter.families.experts import OF_TRAINING, experts_of
from converter.families.granite import Granite
from converter.families.granite_moe import GRANITE_EXPERTS
from converter.families.mamba2_keys import MAMBA_NAMES, Mamba2Keys
from converter.families.tensors import NAMES, Names, WeightSource, with_names


@dataclass(frozen=True, kw_only=True)
class GraniteHybrid(Mamba2Keys, Granite):
    """Granite with a block beside its experts, or instead; most layers of an H are Mamba2."""

    name: ClassVar[str] = "granitemoehybrid"
    aliases: ClassVar[Mapping[str, str]] = {
        "shared_intermediate_size": "intermediate_size",
        "intermediate_size": "expert_width",
    }
    gguf_aliases: ClassVar[Mapping[str, str]] = {
        "num_experts": "num_local_experts",
        "partial_rotary_factor": "gguf_rotated_part",
    }
    beside: ClassVar[frozenset[str]] = Mamba2Keys.of_training | OF_TRAINING
    names: ClassVar[Names] = with_names(
        NAMES,
        *MAMBA_NAMES,
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
    # Bamba's architecture in llama.cpp is Granite's.
    gguf_rotated_part: float = 1.0

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"mlp_bias"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads no such key.
        resolved = {key: value for key, value in config.items() if key != "mlp_bias"}
        resolved["layer_types"] = resolved.pop("layers_block_type", resolved.get("layer_types"))
        return super().resolve_aliases(cls.resolve_mamba(resolved))

    def block(self) -> FeedForward | Experts:
        shared, count = self.feed_forward(), self.num_local_experts
        if not count:
            return shared
        expert = dataclasses.replace(shared, width=self.expert_width)
        return experts_of(self.name, expert, count, self.num_experts_per_tok, shared=shared)

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
            mamba = LayerSpec(mixer, self.block())
            by_kind |= {"mamba": mamba, "linear_attention": mamba}
        return self.layers_of(kinds, by_kind)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        return self.mamba_source(path, tensor, fmt) or super().source_of(path, tensor, fmt)
