"""Ministral (`ministral`): Ministral 8B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from converter.decoder import LayerSpec
from converter.families.mistral import Mistral


@dataclass(frozen=True, kw_only=True)
class Ministral(Mistral):
    """Mistral with a window in some of its layers."""

    name: ClassVar[str] = "ministral"

    layer_types: Sequence[str] | None = None

    def layers(self) -> tuple[LayerSpec, ...]:
        if self.layer_types is None:
            return super().layers()
        rope = self.rope(self.rope_theta, self.rope_scaling)
        by_kind = {
            "full_attention": self.layer(rope),
            "sliding_attention": self.layer(rope, self.sliding_window),
        }
        return self.layers_of(self.layer_types, by_kind)
