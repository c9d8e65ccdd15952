"""Gemma 3 text (`gemma3_text`), and the text part of the multimodal `gemma3`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    Attention,
    DecoderSpec,
    LayerSpec,
    Placement,
    QKNorm,
    Rope,
)
from converter.families.base import Family
from converter.families.rope import by_kind_of_layer, lost_by_kind
from converter.families.tensors import NAMES, Names, WeightSource, with_names

_LAYERS_IN_27B = 62


@dataclass(frozen=True, kw_only=True)
class Gemma3(Family):
    """Norms before and after both blocks, q/k norm, five local layers to each global one."""

    name: ClassVar[str] = "gemma3"
    templates: ClassVar[tuple[str, ...]] = ("gemma3.jinja",)
    prefers_sentencepiece: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
    }
    activation_key: ClassVar[str] = "hidden_activation"
    beside: ClassVar[frozenset[str]] = frozenset(
        {
            "boi_token_id", "boi_token_index", "eoi_token_id", "eoi_token_index", "image_token_id",
            "image_token_index", "mm_tokens_per_image", "text_config", "vision_config",
        }
    )  # fmt: skip
    ignored: ClassVar[tuple[str, ...]] = (
        *Family.ignored,
        "vision_tower.",
        "vision_model.",
        "multi_modal_projector.",
    )
    names: ClassVar[Names] = with_names(
        NAMES,
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
    rope_local_scaling: dict[str, Any] | None = None
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 6
    layer_types: Sequence[str] | None = None
    query_pre_attn_scalar: float | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(config)
        if isinstance(text := config.pop("text_config", None), dict):
            tied = config.get("tie_word_embeddings", True)  # the larger model's head
            config = {**text, "tie_word_embeddings": tied}
        # A `hidden_act` is nothing to transformers here.
        config["hidden_act"] = config.pop(cls.activation_key, None) or cls.hidden_act
        return by_kind_of_layer(config)

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"hidden_act", "rope_local_scaling"} | {cls.activation_key}

    @classmethod
    def ignored_keys(cls, config: Mapping[str, Any]) -> tuple[str, ...]:
        lost = lost_by_kind(config.get("text_config") or config)
        return tuple(sorted(lost.union(super().ignored_keys(config))))

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            placement=Placement.BOTH,
            embedding_scale=math.sqrt(self.hidden_size),
        )

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        return dataclasses.replace(
            super().attention(rope, sliding_window),
            scale=self.attention_scalar**-0.5,
            qk_norm=QKNorm(self.norm()),
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
        local = self.rope(self.rope_local_base_freq, self.rope_local_scaling)
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % self.sliding_window_pattern else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        by_kind = {
            "full_attention": self.layer(self.rope(self.rope_theta, self.rope_scaling)),
            "sliding_attention": self.layer(local, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        # Hugging Face stores a norm's weight less 1; llama.cpp's converter has added it already.
        if fmt == "safetensors" and path.endswith("norm"):
            return WeightSource(tensor, add=1.0)
        return super().source_of(path, tensor, fmt)
