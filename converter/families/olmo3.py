"""OLMo 3 (`olmo3`); in a GGUF it is `olmo2` with windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import LayerSpec
from converter.families.olmo2 import Olmo2

_THETA = 500_000.0


@dataclass(frozen=True, kw_only=True)
class Olmo3(Olmo2):
    """OLMo 2 with windows in three of four layers; positions are stretched in the others alone."""

    name: ClassVar[str] = "olmo3"

    rope_theta: float = _THETA
    rope_local_base_freq: float = _THETA
    sliding_window: int | None = 4096
    layer_types: Sequence[str] | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(config)
        sets = config.pop("rope_parameters", None) or {}
        everywhere = {**(sets.get("full_attention") or {}), **(config.get("rope_scaling") or {})}
        local = sets.get("sliding_attention") or {}
        if everywhere.get("rope_theta") is not None:
            config["rope_theta"] = everywhere["rope_theta"]
        if local.get("rope_theta") is not None:
            config["rope_local_base_freq"] = local["rope_theta"]
        if local.get("rope_type", "default") != "default":
            raise cls.unsupported("rope_parameters.sliding_attention", local, "only default is")
        return config | {"rope_scaling": everywhere}

    def layers(self) -> tuple[LayerSpec, ...]:
        kinds = self.layer_types or [
            "sliding_attention" if (i + 1) % 4 else "full_attention"
            for i in range(self.num_hidden_layers)
        ]
        local = self.rope(self.rope_local_base_freq, None)
        by_kind = {
            "full_attention": self.layer(self.rope(self.rope_theta, self.rope_scaling)),
            "sliding_attention": self.layer(local, self.sliding_window),
        }
        return self.layers_of(kinds, by_kind)
