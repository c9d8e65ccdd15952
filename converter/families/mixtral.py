"""Mixtral (`mixtral`): Mixtral 8x7B and 8x22B; in a GGUF they are `llama`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Experts
from converter.families.experts import OF_MLP, OF_TRAINING, experts_of, with_num_experts
from converter.families.mistral import Mistral
from converter.families.tensors import NAMES, Names, with_names

_BLOCK = "layers.{i}.block_sparse_moe"
_FUSED = "layers.{i}.mlp.experts.gate_up_proj"
_STORED = {
    "router": f"{_BLOCK}.gate.weight|layers.{{i}}.mlp.gate.weight",
    "gate": f"{_BLOCK}.experts.{{e}}.w1.weight|{_FUSED}",
    "up": f"{_BLOCK}.experts.{{e}}.w3.weight|{_FUSED}",
    "down": f"{_BLOCK}.experts.{{e}}.w2.weight|layers.{{i}}.mlp.experts.down_proj",
}


def _in_gguf(name: str) -> str:
    """Those of 2024 and before have a tensor for each expert: ffn_gate.0.weight."""
    return f"{name}|{name.replace('_exps.', '.{e}.')}"


@dataclass(frozen=True, kw_only=True)
class Mixtral(Mistral):
    """Mistral with experts in all layers; weights are the softmax of those taken."""

    name: ClassVar[str] = "mixtral"
    interleaved: ClassVar[frozenset[str]] = frozenset({"gguf"})
    beside: ClassVar[frozenset[str]] = OF_TRAINING
    names: ClassVar[Names] = with_names(
        NAMES,
        *(
            (path, _STORED[path.rpartition(".")[2]], _in_gguf(in_gguf))
            for path, _, in_gguf in OF_MLP
        ),
    )

    # Defaults are those of transformers' MixtralConfig.
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    sliding_window: int | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() | {"num_local_experts"}

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().resolve_aliases(with_num_experts(config))

    def block(self) -> Experts:
        return experts_of(
            self.name, self.feed_forward(), self.num_experts, self.num_experts_per_tok
        )
