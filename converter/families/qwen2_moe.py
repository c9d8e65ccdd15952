"""Qwen2 with experts (`qwen2_moe`): Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.experts import OF_MLP, OF_TRAINING, experts_of, where_sparse
from converter.families.qwen2 import Qwen2
from converter.families.tensors import NAMES, Names, WeightSource, with_names

_SHARED = "layers.{i}.mlp.shared_expert"


@dataclass(frozen=True, kw_only=True)
class Qwen2Moe(Qwen2):
    """Qwen2 with experts, beside a shared one that every token weighs by a sigmoid."""

    name: ClassVar[str] = "qwen2_moe"
    templates: ClassVar[tuple[str, ...]] = ("chatml.jinja",)
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    names: ClassVar[Names] = with_names(
        NAMES,
        *OF_MLP,
        ("layers.{i}.mlp.shared.gate", f"{_SHARED}.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight"),
        ("layers.{i}.mlp.shared.up", f"{_SHARED}.up_proj.weight", "blk.{i}.ffn_up_shexp.weight"),
        ("layers.{i}.mlp.shared.down", f"{_SHARED}.down_proj.weight", "blk.{i}.ffn_down_shexp.weight"),
        ("layers.{i}.mlp.shared_gate", f"{_SHARED}_gate.weight", "blk.{i}.ffn_gate_inp_shexp.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Qwen2MoeConfig.
    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    num_experts: int = 60
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: Sequence[int] | None = None
    qkv_bias: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fmt: str = "safetensors") -> Qwen2Moe:
        if fmt == "gguf" and "shared_expert_intermediate_size" not in config:
            # llama.cpp's rule where a file does not say it: the width of a dense block.
            width = config.get("intermediate_size")
            config = {**config, "shared_expert_intermediate_size": width}
        return super().from_config(config, fmt)

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers makes a window that is switched off 0.
        read = {k: v for k, v in config.items() if k != "sliding_window" or v}
        return super().resolve_aliases(read)

    def biases(self) -> tuple[str, ...]:
        return super().biases() if self.qkv_bias else ()

    def layers(self) -> tuple[LayerSpec, ...]:
        kinds = self.layer_types
        if kinds is None:  # unlike Qwen2's, those before the limit slide, and every other one
            slides = self.max_window_layers if self.use_sliding_window else 0
            kinds = [
                "sliding_attention" if i < slides and not i % 2 else "full_attention"
                for i in range(self.num_hidden_layers)
            ]
        rope = self.rope(self.rope_theta, self.rope_scaling)
        window = self.sliding_window if self.use_sliding_window else None
        layers = self.layers_of(
            kinds,
            {
                "full_attention": self.layer(rope),
                "sliding_attention": self.layer(rope, window),
            },
        )
        dense = self.feed_forward()
        experts = experts_of(
            self.name,
            dataclasses.replace(dense, width=self.moe_intermediate_size),
            self.num_experts,
            self.num_experts_per_tok,
            renormalises=self.norm_topk_prob,
            shared=dataclasses.replace(dense, width=self.shared_expert_intermediate_size),
            shared_is_gated=True,
        )
        return where_sparse(layers, experts, self.decoder_sparse_step, self.mlp_only_layers or ())

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        if path.endswith(".shared_gate"):
            return WeightSource(tensor, is_flattened=True)
        return super().source_of(path, tensor, fmt)
