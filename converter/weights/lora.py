"""LoRA adapters, merged while weights stream: `rows += scaling * B[rows] @ A`.

An adapter is a folder of PEFT's (`lora_peft`) or a GGUF file (`lora_gguf`). A low-rank update
changes one matrix, so a block of its rows can be merged alone. So can DoRA's, which then sets the
length of every row, and what was trained and saved beside them: whole weights (`modules_to_save`,
an embedding) and single rows of an embedding (`trainable_token_indices`). Whatever an adapter holds
beyond that would be lost, and is refused.

Of several adapters the updates are added, each times its weight: what PEFT merges after
`add_weighted_adapter(..., combination_type="cat")`, and with weights of 1 one after the other with
`merge_and_unload(adapter_names=[...])`. (Its "linear" adds the As and the Bs apart: that multiplies
one adapter's A by another's B, and is no sum of updates.) What sets values and does not add cannot
be weighted, nor be changed by another adapter: for DoRA, PEFT's own forward and merge disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.errors import UnsupportedError
from converter.families.base import Family
from converter.weights.adapters import WeightedAdapter
from converter.weights.lora_adapter import Adapter
from converter.weights.lora_gguf import GGUFAdapter
from converter.weights.lora_peft import PeftAdapter
from converter.weights.lora_update import Update

_SETS = "sets values (DoRA, modules_to_save, biases, tokens)"


def merged_updates(
    adapters: Sequence[WeightedAdapter], family: Family
) -> dict[str, tuple[Update, ...]]:
    """What several adapters make of each weight that they change, by its path in the network.

    Raises:
        UnsupportedError: one sets values, which cannot be weighted, or changed by another.
        SourceError, UnsupportedError: see `open_adapter` and `Adapter.updates`.
    """
    bases: dict[str, Update] = {}  # of one that several hold, PEFT keeps what it loaded last
    found: dict[str, tuple[Update, ...]] = {}
    for adapter in adapters:
        for path, whole in open_adapter(adapter.path).updates(family).items():
            base, update = whole.apart()
            if base is not None:
                bases[path] = base
            others = found.get(path, ())
            tensor = update.source.tensor
            if adapter.weight != 1 and not update.is_sum:
                raise UnsupportedError(
                    f"--lora {adapter}",
                    f"it {_SETS} of {tensor}: they cannot be taken {adapter.weight:g} times",
                    "leave its weight out",
                )
            if others and not all(each.is_sum for each in (update, *others)):
                raise UnsupportedError(
                    f"--lora {adapter}",
                    f"it and another adapter change {tensor}, and one of them {_SETS} there",
                    "merge one of them alone",
                )
            found[path] = (*others, update.weighted(adapter.weight))
    return found | {path: (base, *found[path]) for path, base in bases.items()}


def open_adapter(path: Path) -> Adapter:
    """Open a folder of PEFT's or a GGUF file. Only the config and the header are read.

    Raises:
        SourceError: it is not there, or damaged.
        UnsupportedError: it is no LoRA adapter, or cannot be merged row by row.
    """
    is_gguf = path.is_file() or (path.suffix.lower() == ".gguf" and not path.is_dir())
    return GGUFAdapter(path) if is_gguf else PeftAdapter(path)
