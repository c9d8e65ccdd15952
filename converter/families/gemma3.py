"""Gemma 3 text (`gemma3_text`), and the text part of the multimodal `gemma3`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import ATTENTION_PROJECTIONS, Activation, DecoderSpec, LayerSpec
from converter.families.base import NAMES, Family, WeightSource

_LAYERS_IN_27B = 62


@dataclass(frozen=True, kw_only=True)
class Gemma3(Family):
    """Norms before and after both blocks, q/k norm, five local layers to each global one."""

    name: ClassVar[str] = "gemma3"
    prefers_sentencepiece: ClassVar[bool] = True
    activations: ClassVar[Mapping[str, Activation]] = {"gelu_pytorch_tanh": Activation.GELU_TANH}
    ignored: ClassVar[tuple[str, ...]] = (
        *Family.ignored,
        "vision_tower.",
        "vision_model.",
        "multi_modal_projector.",
    )
    names: ClassVar[tuple[tuple[str, str, str], ...]] = (
        *(row for row in NAMES if row[0] != "layers.{i}.mlp.norm"),
        ("layers.{i}.attention.post_norm", "layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight"),
        ("layers.{i}.mlp.norm", "layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight"),
        ("layers.{i}.mlp.post_norm", "layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Gemma3TextConfig: published configs leave them out.
    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 131072
    hidden_act: str = "gelu_pytorch_tanh"
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    query_pre_attn_scalar: float | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(config)
        if isinstance(config.get("text_config"), dict):
            config = {**config, **config.pop("text_config")}
        for alias, key in (
            ("hidden_activation", "hidden_act"),
            ("_sliding_window_pattern", "sliding_window_pattern"),
        ):
            if config.get(alias) is not None:
                config[key] = config.pop(alias)
        rope = config.get("rope_parameters")
        if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):
            # transformers 5 keeps one set of parameters for each kind of layer.
            local = rope.get("sliding_attention", {})
            config["rope_local_base_freq"] = local.get("rope_theta", cls.rope_local_base_freq)
            config["rope_parameters"] = rope["full_attention"]
            if local.get("rope_type", "default") != "default":
                raise cls.unsupported(
                    "rope_parameters.sliding_attention.rope_type",
                    local["rope_type"],
                    "only 'default' is",
                )
        return super().resolve_aliases(config)

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            attention_scale=self.attention_scalar**-0.5,
            embedding_scale=math.sqrt(self.hidden_size),
            qk_norm=True,
            post_norms=True,
        )

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()

    @property
    def attention_scalar(self) -> float:
        """`query_pre_attn_scalar`, which a GGUF does not state.

        llama.cpp's rule: the width of a head, but hidden_size / heads in the 27B model.
        """
        if self.query_pre_attn_scalar is not None:
            return self.query_pre_attn_scalar
        if self.num_hidden_layers == _LAYERS_IN_27B:
            return self.hidden_size / self.num_attention_heads
        return self.attention_head_dim

    def layers(self) -> tuple[LayerSpec, ...]:
        local = LayerSpec(self.rope(self.rope_local_base_freq, None), self.sliding_window)
        everywhere = LayerSpec(self.rope(self.rope_theta, self.rope_scaling))
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % self.sliding_window_pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        by_kind = {"sliding_attention": local, "full_attention": everywhere}
        for kind in kinds:
            if kind not in by_kind:
                raise self.unsupported("layer_types", kind, f"only {', '.join(by_kind)} are")
        return tuple(by_kind[kind] for kind in kinds)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # Hugging Face stores a norm's weight less 1; llama.cpp's converter has added it already.
        if fmt == "safetensors" and path.endswith("norm"):
            return WeightSource(tensor, add=1.0)
        return super().source_of(path, tensor, fmt)
