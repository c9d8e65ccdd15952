"""Gemma 2 (`gemma2`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, DecoderSpec, LayerSpec, Placement, Rope
from converter.families.gemma import Gemma
from converter.families.gemma3 import Gemma3
from converter.families.tensors import Names

_LAYERS_IN_27B = 46


@dataclass(frozen=True, kw_only=True)
class Gemma2(Gemma):
    """Gemma with norms before and after both blocks, softcaps, and a window in every second layer."""

    name: ClassVar[str] = "gemma2"
    names: ClassVar[Names] = Gemma3.names
    activation_key: ClassVar[str] = "hidden_activation"

    # Defaults are those of transformers' Gemma2Config.
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    # A GGUF does not state it: see `attention`.
    query_pre_attn_scalar: float | None = None
    sliding_window: int | None = 4096
    layer_types: Sequence[str] | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fmt: str = "safetensors") -> Gemma2:
        if fmt != "gguf":
            config = {"query_pre_attn_scalar": 256, **config}
        return super().from_config(config, fmt)

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        # A `hidden_act` is nothing to transformers here.
        resolved["hidden_act"] = resolved.pop(cls.activation_key, None) or cls.hidden_act
        return resolved

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"hidden_act"} | {cls.activation_key}

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        scalar = self.query_pre_attn_scalar
        if scalar is None:  # llama.cpp's rule: the width of a head, but in the 27B model
            is_27b = self.num_hidden_layers == _LAYERS_IN_27B
            heads = self.num_attention_heads
            scalar = self.hidden_size / heads if is_27b else self.attention_head_dim
        return dataclasses.replace(
            super().attention(rope, sliding_window),
            scale=scalar**-0.5,
            softcap=self.attn_logit_softcapping,
        )

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        kinds = self.layer_types or [
            "full_attention" if i % 2 else "sliding_attention"
            for i in range(self.num_hidden_layers)
        ]
        by_kind = {
            "full_attention": self.layer(rope),
            "sliding_attention": self.layer(rope, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            placement=Placement.BOTH,
            logits_softcap=self.final_logit_softcapping,
        )
