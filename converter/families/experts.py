"""What families with experts have in common: names of tensors, and what is checked of their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from converter.decoder import Experts, FeedForward, LayerSpec
from converter.errors import SourceError
from converter.families.tensors import Names

# An expert's matrices may be tensors of their own, or stand in one of all experts: in a GGUF, and
# in what transformers holds. Gate and up of an expert may stand in one tensor, too.
_ALL = "layers.{i}.mlp.experts"
OF_MLP: Names = (
    ("layers.{i}.mlp.router", "layers.{i}.mlp.gate.weight", "blk.{i}.ffn_gate_inp.weight"),
    (
        f"{_ALL}.{{e}}.gate",
        f"{_ALL}.{{e}}.gate_proj.weight|{_ALL}.gate_up_proj",
        "blk.{i}.ffn_gate_exps.weight",
    ),
    (
        f"{_ALL}.{{e}}.up",
        f"{_ALL}.{{e}}.up_proj.weight|{_ALL}.gate_up_proj",
        "blk.{i}.ffn_up_exps.weight",
    ),
    (
        f"{_ALL}.{{e}}.down",
        f"{_ALL}.{{e}}.down_proj.weight|{_ALL}.down_proj",
        "blk.{i}.ffn_down_exps.weight",
    ),
)


# Keys of training.
OF_TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})


def with_num_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says `num_experts`, where transformers takes `num_local_experts` as well."""
    renamed = {"num_local_experts": "num_experts"}
    return {renamed.get(key, key): value for key, value in config.items()}


def experts_of(
    family: str,
    expert: FeedForward,
    count: int,
    active: int,
    *,
    key: str = "num_experts_per_tok",
    **words: Any,
) -> Experts:
    """The words of `Experts`, checked.

    Args:
        key: where `active` is from.

    Raises:
        SourceError: a token takes no experts, or more than there are.
    """
    if not 1 <= active <= count:
        raise SourceError(
            f"{family} config",
            f"{key}={active} is not 1 to {count}, the experts that there are",
            "check config.json",
        )
    return Experts(expert, count, active, **words)


def where_sparse(
    layers: Sequence[LayerSpec], experts: Experts, step: int, dense: Collection[int]
) -> tuple[LayerSpec, ...]:
    """The layers with experts in every `step`th of them, but for those that `dense` names."""
    return tuple(
        layer if i in dense or (i + 1) % step else dataclasses.replace(layer, feed_forward=experts)
        for i, layer in enumerate(layers)
    )
