"""Qwen3.5 text (`qwen3_5_text`), and the text part of the multimodal `qwen3_5`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    Activation,
    Attention,
    GatedDeltaNet,
    LayerSpec,
    QKNorm,
    Rope,
)
from converter.errors import SourceError
from converter.families.base import Family
from converter.families.config_keys import ROPE_SETTINGS
from converter.families.tensors import NAMES, Names, WeightSource, with_names

# What stands in the order of the value heads.
_BY_VALUE_HEAD = frozenset({"qkv", "z", "beta", "alpha", "conv", "step", "decay", "o"})


@dataclass(frozen=True, kw_only=True)
class Qwen35(Family):
    """Three delta nets to each layer of attention, which is gated; a quarter of a head is rotated."""

    name: ClassVar[str] = "qwen3_5"
    rotates_part: ClassVar[bool] = True
    # Of pictures: a token of text has the same place on all three axes.
    rotary_settings: ClassVar[frozenset[str]] = ROPE_SETTINGS | {
        "mrope_interleaved",
        "mrope_section",
    }
    # Where a delta net's own convolution and gates take SiLU, too.
    activations: ClassVar[Mapping[str, Activation]] = {
        "silu": Activation.SILU,
        "swish": Activation.SILU,
    }
    beside: ClassVar[frozenset[str]] = frozenset(
        {
            "attn_output_gate", "image_token_id", "language_model_only", "mamba_ssm_dtype",
            "mlp_only_layers", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
            "text_config", "video_token_id", "vision_config", "vision_end_token_id",
            "vision_start_token_id",
        }
    )  # fmt: skip
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.attention.gate", "layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
        ("layers.{i}.delta.norm", "layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
        ("layers.{i}.delta.qkv", "layers.{i}.linear_attn.in_proj_qkv.weight", "blk.{i}.attn_qkv.weight"),
        ("layers.{i}.delta.z", "layers.{i}.linear_attn.in_proj_z.weight", "blk.{i}.attn_gate.weight"),
        ("layers.{i}.delta.beta", "layers.{i}.linear_attn.in_proj_b.weight", "blk.{i}.ssm_beta.weight"),
        ("layers.{i}.delta.alpha", "layers.{i}.linear_attn.in_proj_a.weight", "blk.{i}.ssm_alpha.weight"),
        ("layers.{i}.delta.conv", "layers.{i}.linear_attn.conv1d.weight", "blk.{i}.ssm_conv1d.weight"),
        ("layers.{i}.delta.step", "layers.{i}.linear_attn.dt_bias", "blk.{i}.ssm_dt.bias"),
        ("layers.{i}.delta.decay", "layers.{i}.linear_attn.A_log", "blk.{i}.ssm_a"),
        ("layers.{i}.delta.out_norm", "layers.{i}.linear_attn.norm.weight", "blk.{i}.ssm_norm.weight"),
        ("layers.{i}.delta.o", "layers.{i}.linear_attn.out_proj.weight", "blk.{i}.ssm_out.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Qwen3_5TextConfig.
    vocab_size: int = 248320
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 32768
    partial_rotary_factor: float = 0.25
    attention_bias: bool = False
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    layer_types: Sequence[str] | None = None
    full_attention_interval: int = 4
    # llama.cpp puts value heads of one key head as far apart as they can be.
    gguf_tiled_heads: bool = False

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(config)
        if isinstance(text := config.pop("text_config", None), dict):
            tied = config.get("tie_word_embeddings", False)  # the larger model's head
            config = {**text, "tie_word_embeddings": tied}
        return super().resolve_aliases(config)

    def validate(self) -> None:
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise SourceError(
                f"{self.name} config",
                f"linear_num_value_heads={self.linear_num_value_heads} is no multiple of "
                f"linear_num_key_heads={self.linear_num_key_heads}",
                "check config.json",
            )
        if self.linear_conv_kernel_dim < 2:
            raise self.unsupported(
                "linear_conv_kernel_dim", self.linear_conv_kernel_dim, "only 2 and more are"
            )
        super().validate()

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        return dataclasses.replace(
            super().attention(rope, sliding_window),
            qk_norm=QKNorm(self.norm()),
            is_gated=True,
            biases=(*ATTENTION_PROJECTIONS, "gate") if self.attention_bias else (),
        )

    def layers(self) -> tuple[LayerSpec, ...]:
        every = self.full_attention_interval
        kinds = self.layer_types or [
            "linear_attention" if (i + 1) % every else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        delta = GatedDeltaNet(
            num_key_heads=self.linear_num_key_heads,
            num_value_heads=self.linear_num_value_heads,
            key_dim=self.linear_key_head_dim,
            value_dim=self.linear_value_head_dim,
            kernel=self.linear_conv_kernel_dim,
            norm=self.norm(),
            is_tiled=self.gguf_tiled_heads,
        )
        by_kind = {
            "full_attention": self.layer(self.rope(self.rope_theta, self.rope_scaling)),
            "linear_attention": LayerSpec(delta, self.feed_forward()),
        }
        return self.layers_of(kinds, by_kind)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        _, _, part = path.partition(".attention.")
        part = part.removesuffix(".bias")
        if part in ("q", "gate"):
            is_second = part == "gate"
            return WeightSource(tensor, turns=self.attention_head_dim, is_second=is_second)
        # Hugging Face stores a norm's weight less 1, but for that of a delta net's output, and the
        # logarithm of its decay; llama.cpp's converter has worked both out.
        if fmt == "safetensors" and path.endswith("norm") and not path.endswith(".out_norm"):
            return WeightSource(tensor, add=1.0)
        if fmt == "safetensors" and path.endswith(".delta.decay"):
            return WeightSource(tensor, is_log_of_negative=True)
        return super().source_of(path, tensor, fmt)

    def _is_ignored(self, plain: str, head: str) -> bool:
        # Of what predicts a token more: in a GGUF layers after the others, in a folder `mtp.*`.
        number = plain.removeprefix("blk.").partition(".")[0]
        is_after = number.isdecimal() and int(number) >= self.num_hidden_layers
        return is_after or super()._is_ignored(plain, head)

    def places(self, names: Collection[str], fmt: str) -> dict[str, WeightSource]:
        placed = super().places(names, fmt)
        is_other = self.gguf_tiled_heads != (fmt == "gguf")
        if is_other and self.linear_num_value_heads > self.linear_num_key_heads:
            found = [path for path in placed if _is_by_value_head(path)]
            if found:
                raise self.unsupported(
                    "adapter", placed[found[0]].tensor, "in the format of its base it is"
                )
        return placed


def _is_by_value_head(path: str) -> bool:
    _, _, part = path.partition(".delta.")
    return part in _BY_VALUE_HEAD
