"""Falcon-H1 (`falcon_h1`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    MLP_PROJECTIONS,
    DecoderSpec,
    LayerSpec,
    Mamba2,
)
from converter.families.base import Family
from converter.families.mamba2_keys import MAMBA_NAMES, Mamba2Keys
from converter.families.tensors import NAMES, Names, WeightSource, with_names


@dataclass(frozen=True, kw_only=True)
class FalconH1(Mamba2Keys, Family):
    """Attention and Mamba2 side by side in every layer, and a factor on every matrix."""

    name: ClassVar[str] = "falcon_h1"
    beside: ClassVar[frozenset[str]] = Mamba2Keys.of_training | {"num_logits_to_keep"}
    names: ClassVar[Names] = with_names(
        NAMES,
        *MAMBA_NAMES,
        ("layers.{i}.mlp.norm", "layers.{i}.pre_ff_layernorm.weight", "blk.{i}.ffn_norm|blk.{i}.ffn_norm.weight"),
        ("layers.{i}.mlp.gate", "layers.{i}.feed_forward.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
        ("layers.{i}.mlp.up", "layers.{i}.feed_forward.up_proj.weight", "blk.{i}.ffn_up.weight"),
        ("layers.{i}.mlp.down", "layers.{i}.feed_forward.down_proj.weight", "blk.{i}.ffn_down.weight"),
        ("final_norm", "final_layernorm.weight", "output_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' FalconH1Config.
    vocab_size: int = 128000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    projectors_bias: bool = False
    mamba_d_ssm: int | None = 1024
    mamba_norm_before_gate: bool = True
    mamba_rms_norm: bool = False
    embedding_multiplier: float = 1.0
    lm_head_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    key_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    ssm_multipliers: Sequence[float] | None = None
    mlp_multipliers: Sequence[float] | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().resolve_aliases(cls.resolve_mamba(config))

    def biases(self) -> tuple[str, ...]:
        attention = ATTENTION_PROJECTIONS if self.attention_bias else ()
        return attention + (MLP_PROJECTIONS if self.mlp_bias else ())

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            embedding_scale=self.embedding_multiplier,
            logits_scale=self.lm_head_multiplier,
        )

    def layers(self) -> tuple[LayerSpec, ...]:
        self._several("ssm_multipliers", 5), self._several("mlp_multipliers", 2)
        # llama.cpp normalises what is gated, each group by itself.
        is_gguf = self.gguf_biases is not None
        mamba = self.mamba(
            self.name,
            self.mamba_d_ssm or self.mamba_expand * self.hidden_size,
            self.activations[self.hidden_act],
            self.norm() if self.mamba_rms_norm else None,
            self.mamba_n_groups,
            gates_last=self.mamba_norm_before_gate and not is_gguf,
            has_out_bias=self.projectors_bias,
        )
        layer = self.layer(self.rope(self.rope_theta, self.rope_scaling))
        return (dataclasses.replace(layer, beside=mamba),) * self.num_hidden_layers

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        """A factor on a matrix's input or output is one on its rows; a GGUF's rows have it already."""
        if (found := self.mamba_source(path, tensor, fmt)) or fmt == "gguf":
            return found or WeightSource(tensor)
        part = path.partition(".")[2].partition(".")[2]
        of_input, of_output = self._factors().get(part.removesuffix(".bias"), (1.0, ()))
        if not part.endswith(".bias"):
            of_output = tuple((rows, of_input * factor) for rows, factor in of_output)
        changes = any(factor != 1 for _, factor in of_output)
        return WeightSource(tensor, factors=of_output if changes else ())

    def _several(self, key: str, count: int) -> Sequence[float]:
        """So many factors; 1 where the config has none."""
        factors: Sequence[float] | None = getattr(self, key)
        if factors is not None and len(factors) != count:
            raise self.unsupported(key, factors, f"only {count} numbers are")
        return factors or (1.0,) * count

    def _factors(self) -> dict[str, tuple[float, tuple[tuple[int, float], ...]]]:
        """Of each matrix, the factor on its input, and those on so many rows each."""
        mixer = self.layers()[0].beside
        assert isinstance(mixer, Mamba2)
        fed, told = self.attention_in_multiplier, self.ssm_in_multiplier
        heads = self.attention_head_dim
        q, kv = self.num_attention_heads * heads, self.kv_heads * heads
        gate, *xbc, dt = self._several("ssm_multipliers", 5)
        mlp_gate, mlp_down = self._several("mlp_multipliers", 2)
        return {
            "attention.q": (fed, ((q, 1.0),)),
            "attention.k": (fed, ((kv, self.key_multiplier),)),
            "attention.v": (fed, ((kv, 1.0),)),
            "attention.o": (1.0, ((self.hidden_size, self.attention_out_multiplier),)),
            "mamba.gate": (told, ((mixer.width, gate),)),
            "mamba.xbc": (told, tuple(zip(mixer.widths, xbc, strict=True))),
            "mamba.dt": (told, ((mixer.num_heads, dt),)),
            "mamba.o": (1.0, ((self.hidden_size, self.ssm_out_multiplier),)),
            "mlp.gate": (1.0, ((self.intermediate_size, mlp_gate),)),
            "mlp.down": (1.0, ((self.hidden_size, mlp_down),)),
        }
