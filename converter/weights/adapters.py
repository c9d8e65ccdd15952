"""Which adapters are merged; how is `lora`'s."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter to merge.

    Attributes:
        path: a folder of PEFT's or a GGUF file.
        weight: what its update is multiplied by.
        name: how the user knows it; None where that is the path.
    """

    path: Path
    weight: float = 1.0
    name: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.name is None else self.name
