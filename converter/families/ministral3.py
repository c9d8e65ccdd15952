"""Ministral 3 (`ministral3`), mostly inside a `mistral3`; in a GGUF it is `mistral3`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, LayerSpec, PositionScale, Rope
from converter.families.base import Family

# What transformers' Ministral3Config takes where a config says nothing.
_DEFAULT_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
    "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ministral3(Family):
    """The plain decoder with queries that grow with the position."""

    name: ClassVar[str] = "ministral3"
    interleaved: ClassVar[frozenset[str]] = frozenset({"gguf"})

    # Defaults are those of transformers' Ministral3Config.
    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 34
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if not (config.get("rope_parameters") or config.get("rope_scaling")):
            config = {**config, "rope_parameters": _DEFAULT_ROPE}
        resolved = super().resolve_aliases(config)
        if (beta := resolved.pop("llama_4_scaling_beta", None)) is not None:  # of a GGUF
            resolved["rope_scaling"]["llama_4_scaling_beta"] = beta
        return resolved

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        plain = super().attention(rope, sliding_window)
        settings = self.rope_settings(self.rope_theta, self.rope_scaling)
        if not settings.values.get("llama_4_scaling_beta"):
            return plain
        beta, length = settings.number("llama_4_scaling_beta"), int(settings.original_positions)
        return dataclasses.replace(plain, position_scale=PositionScale(beta, length))

    def layers(self) -> tuple[LayerSpec, ...]:
        rope = self.rope(self.rope_theta, self.rope_scaling)
        return (self.layer(rope, self.sliding_window),) * self.num_hidden_layers
