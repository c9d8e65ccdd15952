"""Gemma 4's assistants, `gemma4_assistant` and `gemma4_unified_assistant`: they draft for a Gemma 4.

They are no models of their own: their layers have queries alone, and look at the keys and values of
the last layer of each kind that has some in the model that they were trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, DecoderSpec, LayerSpec
from converter.errors import UnsupportedError
from converter.families.gemma4 import Gemma4

# Of the assistant itself, beside its `text_config`.
_OWN = (
    "backbone_hidden_size",
    "use_ordered_embeddings",
    "num_centroids",
    "centroid_intermediate_top_k",
)
# No assistant has per-layer embeddings, and zeros stand for that.
_WITHOUT = ("hidden_size_per_layer_input", "vocab_size_per_layer_input")


@dataclass(frozen=True, kw_only=True)
class Gemma4Assistant(Gemma4):
    """Four layers or so, between two projections from and to the width of the model's own.

    Attributes:
        backbone_hidden_size: that width.
        use_ordered_embeddings: whether only the tokens of the most likely clusters have logits.
        num_centroids: how many clusters there are, all of the same size.
        centroid_intermediate_top_k: how many of them are looked at.
    """

    name: ClassVar[str] = "gemma4_assistant"

    hidden_size_per_layer_input: int | None = None
    backbone_hidden_size: int = 1536
    use_ordered_embeddings: bool = False
    num_centroids: int = 2048
    centroid_intermediate_top_k: int = 32

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        for key in _WITHOUT:
            if not resolved.get(key):
                resolved.pop(key, None)
        return resolved | {key: config[key] for key in _OWN if key in config}

    def validate(self) -> None:
        if self.hidden_size_per_layer_input or self.enable_moe_block:
            raise self.unsupported("text_config", "per-layer embeddings or experts", "neither is")
        clusters = self.num_centroids
        if self.use_ordered_embeddings and self.vocab_size % clusters:
            raise self.unsupported("num_centroids", clusters, "only what divides vocab_size is")
        super().validate()

    def layers(self) -> tuple[LayerSpec, ...]:
        """`cache_of` is a stand-in: which layer that is, is the other model's to say (`over`)."""
        kinds = tuple(self.layer_types or self.kinds())
        kinds = (*kinds[:-1], "full_attention")  # see `Gemma4.layers`
        by_kind = {
            kind: LayerSpec(dataclasses.replace(mixer, cache_of=0), self.feed_forward())
            for kind, mixer in self.mixers().items()
        }
        return self.layers_of(kinds, by_kind)

    @property
    def first_shared(self) -> int:
        """All layers look at caches of others."""
        return 0

    def over(self, model: DecoderSpec, name: str) -> DecoderSpec:
        """The assistant's layers, each with the layer of the model whose cache it looks at.

        Raises:
            UnsupportedError: the model has no such cache, so that it was made for another one.
        """
        layers = []
        for layer in self.layers():
            mixer = layer.mixer
            assert isinstance(mixer, Attention)
            found = [
                i
                for i, other in enumerate(model.layers)
                if isinstance(other.mixer, Attention)
                and other.mixer.cache_of is None
                and _cache_of(other.mixer) == _cache_of(mixer)
            ]
            if not found:
                kind = "everything" if mixer.sliding_window is None else "a window"
                raise UnsupportedError(
                    name,
                    f"it looks at {mixer.num_kv_heads} heads of {mixer.head_dim} values in a layer "
                    f"that sees {kind}, and this model has no such layer",
                    "name the assistant that was made for this model",
                )
            mixer = dataclasses.replace(mixer, cache_of=found[-1])
            layers.append(dataclasses.replace(layer, mixer=mixer))
        return dataclasses.replace(self.spec(), layers=tuple(layers))


def _cache_of(mixer: Attention) -> tuple[int, int, int | None]:
    """What of a layer its cache depends on."""
    return mixer.num_kv_heads, mixer.head_dim, mixer.sliding_window
