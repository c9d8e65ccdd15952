"""What Gemma 3n and Gemma 4 have in common: layers that look at earlier ones' caches, and per-layer
embeddings."""

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
    Experts,
    FeedForward,
    LayerSpec,
    PerLayerInput,
    Placement,
    QKNorm,
)
from converter.errors import SourceError
from converter.families.base import Family
from converter.families.gemma3 import Gemma3
from converter.families.rope import by_kind_of_layer, lost_by_kind
from converter.families.tensors import Names, with_names

_SHARED = {"safetensors": ("k_proj", "v_proj", "k_norm", "v_norm"), "gguf": ("k", "v", "k_norm")}


@dataclass(frozen=True, kw_only=True)
class PerLayerGemma(Family):
    """Gemma 3 with plain norms, normalised values, shared caches and per-layer embeddings."""

    templates: ClassVar[tuple[str, ...]] = Gemma3.templates
    activation_key: ClassVar[str] = Gemma3.activation_key
    beside: ClassVar[frozenset[str]] = frozenset(
        {
            "audio_config", "audio_soft_tokens_per_image", "audio_token_id", "boa_token_id",
            "boi_token_id", "eoa_token_id", "eoa_token_index", "eoi_token_id", "image_token_id",
            "text_config", "video_token_id", "vision_config", "vision_soft_tokens_per_image",
        }
    )  # fmt: skip
    ignored: ClassVar[tuple[str, ...]] = (
        *Gemma3.ignored,
        "audio_tower.",
        "embed_audio.",
        "embed_vision.",
    )
    names: ClassVar[Names] = with_names(
        Gemma3.names,
        ("per_layer_embedding", "embed_tokens_per_layer.weight", "per_layer_token_embd.weight"),
        ("per_layer_norm", "per_layer_projection_norm.weight", "per_layer_proj_norm.weight"),
        ("layers.{i}.per_layer.projection", "per_layer_model_projection.weight", "per_layer_model_proj.weight"),
        ("layers.{i}.per_layer.gate", "layers.{i}.per_layer_input_gate.weight", "blk.{i}.inp_gate.weight"),
        ("layers.{i}.per_layer.up", "layers.{i}.per_layer_projection.weight", "blk.{i}.proj.weight"),
        ("layers.{i}.per_layer.post_norm", "layers.{i}.post_per_layer_input_norm.weight", "blk.{i}.post_norm.weight"),
    )  # fmt: skip

    vocab_size: int = 262144
    num_attention_heads: int = 8
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_local_scaling: dict[str, Any] | None = None
    sliding_window: int | None = 512
    layer_types: Sequence[str] | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    final_logit_softcapping: float | None = None
    vocab_size_per_layer_input: int = 262144
    hidden_size_per_layer_input: int | None = 256
    num_kv_shared_layers: int = 0
    # `intermediate_size`, where it is a list: of each layer.
    widths: Sequence[int] | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(config)
        if isinstance(text := config.pop("text_config", None), dict):
            tied = config.get("tie_word_embeddings", True)  # the larger model's head
            config = {**text, "tie_word_embeddings": tied}
        # A `hidden_act` is nothing to transformers here.
        config["hidden_act"] = config.pop(cls.activation_key, None) or cls.hidden_act
        if isinstance(widths := config.get("intermediate_size"), list):
            config["widths"] = config.pop("intermediate_size")
            config["intermediate_size"] = widths[0] if widths else None
        return by_kind_of_layer(config)

    @classmethod
    def keys(cls) -> frozenset[str]:
        own = {"hidden_act", "rope_local_scaling", "widths"}
        return super().keys() - own | {cls.activation_key}

    @classmethod
    def ignored_keys(cls, config: Mapping[str, Any]) -> tuple[str, ...]:
        lost = lost_by_kind(config.get("text_config") or config)
        return tuple(sorted(lost.union(super().ignored_keys(config))))

    def spec(self) -> DecoderSpec:
        width = self.hidden_size_per_layer_input
        return dataclasses.replace(
            super().spec(),
            placement=Placement.BOTH,
            embedding_scale=math.sqrt(self.hidden_size),
            logits_softcap=self.final_logit_softcapping,
            per_layer_input=PerLayerInput(
                width, self.vocab_size_per_layer_input, self.activations[self.hidden_act]
            )
            if width
            else None,
        )

    def biases(self) -> tuple[str, ...]:
        return ATTENTION_PROJECTIONS if self.attention_bias else ()

    # Layers ---------------------------------------------------------------------------------------

    def kinds(self) -> Sequence[str]:
        """What each layer is, where the config does not say."""
        raise NotImplementedError

    def mixers(self) -> dict[str, Attention]:
        """The attention of each kind of layer."""
        raise NotImplementedError

    def feed_forwards(self) -> Sequence[FeedForward | Experts]:
        """The feed-forward block of each layer."""
        raise NotImplementedError

    def of_gemma(self, attention: Attention) -> Attention:
        """Scores as they are; queries, keys and values normalised, the values without a weight."""
        norm = self.norm()
        value_norm = dataclasses.replace(norm, has_weight=False)
        return dataclasses.replace(
            attention, scale=1.0, qk_norm=QKNorm(norm), value_norm=value_norm
        )

    def layers(self) -> tuple[LayerSpec, ...]:
        """The last `num_kv_shared_layers` look at the last cache of their kind before them."""
        mlp, mixers = super().feed_forward(), self.mixers()
        by_kind = {kind: LayerSpec(mixer, mlp) for kind, mixer in mixers.items()}
        kinds = self.layer_types or self.kinds()
        layers = list(self.layers_of(kinds, by_kind))
        for i, feed_forward in enumerate(self.feed_forwards()):
            mixer = mixers[kinds[i]]
            if i >= self.first_shared:
                before = [j for j in range(self.first_shared) if kinds[j] == kinds[i]]
                if not before:
                    raise SourceError(
                        f"{self.name} config",
                        f"num_kv_shared_layers={self.num_kv_shared_layers} leaves layer {i}, "
                        f"{kinds[i]}, no earlier one to share a cache with",
                        "check config.json",
                    )
                mixer = dataclasses.replace(mixer, cache_of=before[-1])
            layers[i] = LayerSpec(mixer, feed_forward)
        return tuple(layers)

    @property
    def first_shared(self) -> int:
        """The first layer that has no cache of its own."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def _is_ignored(self, plain: str, head: str) -> bool:
        """Published checkpoints hold keys and values of layers that share a cache, too."""
        parts = plain.split(".")
        if parts[0] in ("layers", "blk") and len(parts) > 2 and parts[1].isdigit():
            is_shared = int(parts[1]) >= self.first_shared
            if is_shared and parts[0] == "layers" and parts[2] == "self_attn":
                return parts[3] in _SHARED["safetensors"]
            if is_shared and parts[0] == "blk":
                return parts[2].removeprefix("attn_") in _SHARED["gguf"]
        return super()._is_ignored(plain, head)
