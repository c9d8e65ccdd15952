"""Granite with experts (`granitemoe`): Granite 3.0 and 3.1 1B-A400M, 3B-A800M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Experts
from converter.families.experts import OF_MLP, OF_TRAINING, experts_of
from converter.families.granite import Granite
from converter.families.tensors import NAMES, Names, with_names

_BLOCK = "layers.{i}.block_sparse_moe"
# As they are stored, and as transformers holds them.
_GATE_UP = f"{_BLOCK}.input_linear.weight|{_BLOCK}.experts.gate_up_proj"
_DOWN = f"{_BLOCK}.output_linear.weight|{_BLOCK}.experts.down_proj"
_ROUTER = f"{_BLOCK}.router.layer.weight|{_BLOCK}.router.weight"
_STORED = {"router": _ROUTER, "gate": _GATE_UP, "up": _GATE_UP, "down": _DOWN}
GRANITE_EXPERTS: Names = tuple(
    (path, _STORED[path.rpartition(".")[2]], in_gguf) for path, _, in_gguf in OF_MLP
)


@dataclass(frozen=True, kw_only=True)
class GraniteMoe(Granite):
    """Granite with experts, all of them in one tensor; weights are the softmax of those taken."""

    name: ClassVar[str] = "granitemoe"
    gguf_aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    names: ClassVar[Names] = with_names(NAMES, *GRANITE_EXPERTS)

    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - {"mlp_bias"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        # transformers reads no such key.
        return super().resolve_aliases({k: v for k, v in config.items() if k != "mlp_bias"})

    def block(self) -> Experts:
        count, active = self.num_local_experts, self.num_experts_per_tok
        return experts_of(self.name, self.feed_forward(), count, active)
