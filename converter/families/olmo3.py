"""OLMo 3 (`olmo3`); in a GGUF it is `olmo2` with windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.olmo2 import Olmo2
from converter.families.rope import by_kind_of_layer, lost_by_kind

_THETA = 500_000.0


@dataclass(frozen=True, kw_only=True)
class Olmo3(Olmo2):
    """OLMo 2 with windows in three of four layers; positions are stretched in the others alone."""

    name: ClassVar[str] = "olmo3"

    rope_theta: float = _THETA
    rope_local_base_freq: float = _THETA
    rope_local_scaling: dict[str, Any] | None = None
    sliding_window: int | None = 4096
    layer_types: Sequence[str] | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return by_kind_of_layer(config)

    @classmethod
    def keys(cls) -> frozenset[str]:
        # transformers' class has a theta for windows among their rotary parameters alone.
        return super().keys() - {"rope_local_base_freq", "rope_local_scaling"}

    @classmethod
    def ignored_keys(cls, config: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(sorted(lost_by_kind(config).union(super().ignored_keys(config))))

    def layers(self) -> tuple[LayerSpec, ...]:
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % 4 else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        local = self.rope(self.rope_local_base_freq, self.rope_local_scaling)
        by_kind = {
            "full_attention": self.layer(self.rope(self.rope_theta, self.rope_scaling)),
            "sliding_attention": self.layer(local, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)
