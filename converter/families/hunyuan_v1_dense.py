"""Hunyuan (`hunyuan_v1_dense`), dense; in a GGUF it is `hunyuan-dense`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, Attention, QKNorm, Rope
from converter.families.base import Family
from converter.families.config_keys import ROPE_SETTINGS
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class HunyuanV1Dense(Family):
    """The plain decoder with queries and keys normalised per head, after the rotary embedding."""

    name: ClassVar[str] = "hunyuan_v1_dense"
    rotary_settings: ClassVar[frozenset[str]] = ROPE_SETTINGS | {"alpha"}
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.q_norm", "layers.{i}.self_attn.query_layernorm.weight", "blk.{i}.attn_q_norm.weight"),
        ("layers.{i}.attention.k_norm", "layers.{i}.self_attn.key_layernorm.weight", "blk.{i}.attn_k_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' HunYuanDenseV1Config.
    vocab_size: int = 290943
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False

    def rope(self, theta: float, scaling: Mapping[str, Any] | None) -> Rope:
        settings = self.rope_settings(theta, scaling)
        if settings.kind != "dynamic" or not settings.values.get("alpha"):
            return super().rope(theta, scaling)
        # NTK by a fixed alpha, which it calls dynamic; llama.cpp's converter has done this already.
        d = self.attention_head_dim
        if d == 2:
            raise self.unsupported("head_dim", d, "only wider heads are where there is an alpha")
        return super().rope(theta * settings.number("alpha") ** (d / (d - 2)), None)

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        return dataclasses.replace(plain, qk_norm=QKNorm(self.norm(), after_rope=True))

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()
