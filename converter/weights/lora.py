"""LoRA adapters of PEFT, merged while weights stream: `rows += scaling * B[rows] @ A`.

An adapter is a folder with adapter_config.json and adapter_model.safetensors
(https://huggingface.co/docs/peft). A low-rank update changes one matrix, so a block of its rows can
be merged alone. Whatever an adapter holds beyond such updates would be lost, and is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.files import ADAPTER_FILES, PositionedFile
from converter.checkpoint.safetensors import SafetensorsCheckpoint, read_config, read_header
from converter.errors import SourceError, UnsupportedError

# What of a config changes the numbers in a way that is not done here: key -> neutral values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_dora": (None, False),
    "use_qalora": (None, False),
}
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Update:
    """The change of one matrix: `scaling * B @ A`.

    Attributes:
        a, b: names in the adapter; (rank, in) and (out, rank).
    """

    adapter: Adapter
    a: str
    b: str
    scaling: float

    def add_to(self, rows: np.ndarray, start: int) -> None:
        """Add it to rows from `start` on, float32 (n, in), in place."""
        tensors, read = self.adapter.weights.tensors, self.adapter.weights.read_rows
        a = read(self.a, 0, tensors[self.a].shape[0])
        b = read(self.b, start, start + len(rows))
        rows += (b @ a) * np.float32(self.scaling)


def adapter_files(folder: Path) -> list[Path]:
    """What is read of an adapter."""
    return [folder / name for name in ADAPTER_FILES]


class Adapter:
    """An open adapter; see `open_adapter`.

    Attributes:
        config: the contents of adapter_config.json.
        weights: its tensors.
    """

    def __init__(self, path: Path, config: dict[str, Any], weights: SafetensorsCheckpoint) -> None:
        self.path = path
        self.config = config
        self.weights = weights

    def updates(
        self, paths: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Update]:
        """The update of each weight that has one, by its path in the network.

        Args:
            paths: a weight's name in safetensors, without wrappers -> its path.
            shapes: of the weights, by path.

        Raises:
            UnsupportedError: it changes something that is not a matrix of the decoder.
            SourceError: it is for another model, or damaged.
        """
        pairs: dict[str, dict[str, str]] = {}
        strange = []
        for name in self.weights.tensors:
            match = _KEY.fullmatch(name)
            path = paths.get(f"{_plain(match[1])}.weight") if match else None
            if match is None or path is None or path == "embedding" or path not in shapes:
                strange.append(name)
            else:
                pairs.setdefault(path, {})[match[2]] = name
        if strange:
            raise UnsupportedError(
                str(self.path),
                f"it changes what cannot be merged: {', '.join(sorted(strange)[:5])}",
                "merge it with peft's merge_and_unload and convert the result",
            )
        return {path: self._update(path, found, shapes[path]) for path, found in pairs.items()}

    def _update(self, path: str, found: dict[str, str], shape: tuple[int, ...]) -> Update:
        if set(found) != {"A", "B"}:
            raise self._damaged(f"{next(iter(found.values()))} has no counterpart")
        (rank, columns), (rows, rank_of_b) = (
            self.weights.tensors[found[side]].shape for side in ("A", "B")
        )
        if (rows, columns) != shape or rank != rank_of_b or rank == 0:
            raise SourceError(
                str(self.path),
                f"its update of {path} is [{rows}, {rank_of_b}] x [{rank}, {columns}], the model's "
                f"is {list(shape)}",
                "take the model that the adapter was made for: "
                f"{self.config.get('base_model_name_or_path') or 'its page names it'}",
            )
        module = found["A"].partition(".lora_A")[0]
        alpha = self._of_module("alpha_pattern", module, self.config.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise self._damaged(f"lora_alpha={alpha!r} is not a number")
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return Update(self, found["A"], found["B"], alpha / divisor)

    def _of_module(self, key: str, module: str, default: Any) -> Any:
        """A value that the config may give for some modules alone, by the end of their names."""
        for pattern, value in (self.config.get(key) or {}).items():
            if module == pattern or module.endswith(f".{pattern}"):
                return value
            if re.search(r"[^\w.]", pattern):
                raise UnsupportedError(
                    str(self.path),
                    f"{key} holds the pattern {pattern!r}",
                    "merge it with peft's merge_and_unload and convert the result",
                )
        return default

    def _damaged(self, why: str) -> SourceError:
        return SourceError(str(self.path), why, "fetch or make the adapter again")


def open_adapter(path: Path) -> Adapter:
    """Open a PEFT folder. Only the config and the header are read.

    Raises:
        SourceError: it is not there, or damaged.
        UnsupportedError: it is not a plain LoRA adapter.
    """
    missing = [name for name in ADAPTER_FILES if not (path / name).is_file()]
    if missing:
        raise SourceError(
            f"--lora {path}",
            f"it has no {' and no '.join(missing)}",
            "pass a PEFT adapter's folder, or its id on the hub",
        )
    config_name, weights_name = ADAPTER_FILES
    config = read_config(path / config_name)
    for key, neutral in _NEUTRAL.items():
        value = config.get(key)
        if value not in neutral:
            raise UnsupportedError(
                str(path),
                f"{key}={value!r} cannot be merged row by row",
                "merge it with peft's merge_and_unload and convert the result",
            )
    with ExitStack() as stack:
        file = stack.enter_context(PositionedFile(path / weights_name))
        entries = list(read_header(file))
        weights = SafetensorsCheckpoint.of_file(path, file, entries, stack.pop_all())
    return Adapter(path, config, weights)


def _plain(module: str) -> str:
    """A module's name without the parts that say only where the decoder sits."""
    from converter.families.base import without_wrappers

    return without_wrappers(module)
