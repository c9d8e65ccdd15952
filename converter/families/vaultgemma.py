"""VaultGemma (`vaultgemma`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import DecoderSpec, Placement
from converter.families.gemma2 import Gemma2
from converter.families.tensors import NAMES, Names, with_names


@dataclass(frozen=True, kw_only=True)
class VaultGemma(Gemma2):
    """Gemma 2 without the norms after its blocks."""

    name: ClassVar[str] = "vaultgemma"
    # Its class has no `use_bidirectional_attention`.
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    names: ClassVar[Names] = with_names(
        NAMES,
        ("layers.{i}.mlp.norm", "layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    )  # fmt: skip

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), placement=Placement.BEFORE)
