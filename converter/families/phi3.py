"""Phi-3 (`phi3`): Phi-3, Phi-3.5 and Phi-4-mini."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.base import Family
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class Phi3(Family):
    """The plain decoder with fused matrices, of whose heads a part may be rotated."""

    name: ClassVar[str] = "phi3"
    rotates_part: ClassVar[bool] = True
    names: ClassVar[Names] = with_names(
        NAMES,
        *(
            (f"layers.{{i}}.attention.{part}", "layers.{i}.self_attn.qkv_proj.weight", "blk.{i}.attn_qkv.weight")
            for part in "qkv"
        ),
        ("layers.{i}.mlp.gate", "layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Phi3Config.
    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    partial_rotary_factor: float = 1.0
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        scaling = dict(resolved.get("rope_scaling") or {})
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind in ("su", "yarn"):  # what longrope was called before
            scaling["rope_type"] = "longrope"
        original = resolved.get("original_max_position_embeddings")
        scaling.setdefault("original_max_position_embeddings", original or 4096)
        return resolved | {"rope_scaling": scaling}

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        return (self.layer(rope, self.sliding_window),) * self.num_hidden_layers
