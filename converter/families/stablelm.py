"""StableLM (`stablelm`): StableLM 2 1.6B, Zephyr 3B."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import DecoderSpec, Norm, NormKind, Placement
from converter.families.base import Family


@dataclass(frozen=True, kw_only=True)
class StableLM(Family):
    """The plain decoder with layer norms, of whose heads a quarter is rotated."""

    name: ClassVar[str] = "stablelm"
    rotates_part: ClassVar[bool] = True
    aliases: ClassVar[Mapping[str, str]] = {"layer_norm_eps": "rms_norm_eps"}
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {"qk_layernorm": (None, False)}

    # Defaults are those of transformers' StableLmConfig.
    vocab_size: int = 50304
    hidden_size: int = 2560
    intermediate_size: int = 6912
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    partial_rotary_factor: float = 0.25
    use_qkv_bias: bool = False
    use_parallel_residual: bool = False

    def norm(self) -> Norm:
        return Norm(NormKind.LAYER, self.rms_norm_eps, has_bias=True)

    def biases(self) -> tuple[str, ...]:
        return ("q", "k", "v") if self.use_qkv_bias else ()

    def spec(self) -> DecoderSpec:
        placement = Placement.PARALLEL if self.use_parallel_residual else Placement.BEFORE
        return dataclasses.replace(super().spec(), placement=placement)
