"""LoRA adapters of PEFT, merged while weights stream: `rows += scaling * B[rows] @ A`.

An adapter is a folder with adapter_config.json and adapter_model.safetensors
(https://huggingface.co/docs/peft). A low-rank update changes one matrix, so a block of its rows can
be merged alone. So can DoRA's, which then sets the length of every row, and what was trained and
saved beside them: whole weights (`modules_to_save`, an embedding) and single rows of an embedding
(`trainable_token_indices`). Whatever an adapter holds beyond that would be lost, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.files import ADAPTER_FILES, PositionedFile, why_not_an_adapter
from converter.checkpoint.safetensors import SafetensorsCheckpoint, read_config, read_header
from converter.errors import SourceError, UnsupportedError
from converter.families.base import Family
from converter.families.matching import without_wrappers
from converter.weights.lora_config import MERGE, check_config, damaged, scaling
from converter.weights.tied_head import untied

# What a tensor of an adapter is, by its name: the module, and what it is to that.
_PARTS = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"|(?P<magnitude>lora_magnitude_vector)|token_adapter\.(?P<rows>trainable_tokens_delta))"
    r"(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(
    r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<whole>weight|bias)"
)
_TABLES = ("embedding", "head")


@dataclass(frozen=True)
class LowRank:
    """`scaling * B @ A`.

    Attributes:
        a, b: names in the adapter; (rank, in) and (out, rank).
        transposed: an embedding's, whose table is the product's transpose: (rank, tokens) and
            (width, rank).
        magnitude: DoRA's tensor of the length that each row has in the end, (out,).
    """

    a: str
    b: str
    scaling: float
    transposed: bool
    magnitude: str | None


@dataclass(frozen=True)
class Update:
    """What an adapter makes of one weight.

    Attributes:
        whole: the tensor that takes its place, None where it stays.
        add: constant to add to that, as the family stores it (see `WeightSource`).
        low_rank: what is added to it.
        rows: single rows that take the place of its own: index -> place in the tensor `row_values`.
    """

    weights: SafetensorsCheckpoint
    whole: str | None = None
    add: float = 0.0
    low_rank: LowRank | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    row_values: str | None = None

    def apply(self, rows: np.ndarray, start: int) -> None:
        """Change rows from `start` on, float32 (n, in), in place."""
        read, stop = self.weights.read_rows, start + len(rows)
        if self.whole is not None:
            rows[:] = read(self.whole, start, stop)
            rows += np.float32(self.add)
        if self.low_rank is not None:
            self._add(self.low_rank, rows, start)
        for index in self.rows.keys() & range(start, stop):
            place = self.rows[index]
            assert self.row_values is not None
            rows[index - start] = read(self.row_values, place, place + 1)

    def _add(self, pair: LowRank, rows: np.ndarray, start: int) -> None:
        read, stop = self.weights.read_rows, start + len(rows)
        rank = self.weights.tensors[pair.a].shape[0]
        if pair.transposed:
            # A's rows are as long as the vocabulary: one at a time.
            left = np.stack([read(pair.a, i, i + 1)[0, start:stop] for i in range(rank)], axis=1)
            right = read(pair.b, 0, rows.shape[1]).T
        else:
            left, right = read(pair.b, start, stop), read(pair.a, 0, rank)
        rows += (left @ right) * np.float32(pair.scaling)
        if pair.magnitude is not None:
            lengths = read(pair.magnitude, 0, 1)[0, start:stop]
            rows *= (lengths / np.linalg.norm(rows, axis=1))[:, None]


def _place_of(name: str, paths: Mapping[str, str]) -> tuple[str | None, str]:
    """The path of the weight that a tensor belongs to, None for none, and what it is to it."""
    match = _PARTS.fullmatch(name)
    if match is not None:
        part = match["side"] or ("magnitude" if match["magnitude"] else "rows")
        path = paths.get(f"{without_wrappers(match['module'])}.weight")
        # An embedding's update has names of its own; only tables have rows that are tokens'.
        fits = {
            "A": (path == "embedding") == (match["embedding"] is not None),
            "B": (path == "embedding") == (match["embedding"] is not None),
            "magnitude": path != "embedding",
            "rows": path in _TABLES,
        }[part]
        return path if fits else None, part
    match = _WHOLE.fullmatch(name)
    if match is not None:
        return paths.get(f"{without_wrappers(match['module'])}.{match['whole']}"), "whole"
    return None, ""


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

    def updates(self, family: Family) -> dict[str, Update]:
        """The update of each weight that has one, by its path in the network.

        Where the family ties its head, `embedding` and `head` are what they are apart: only equal
        updates leave them one table.

        Raises:
            UnsupportedError: it changes something that is no weight of the decoder.
            SourceError: it is for another model, or damaged.
        """
        apart = untied(family)
        paths, shapes = apart.paths(), dict(apart.spec().weight_shapes())
        found: dict[str, dict[str, str]] = {}
        strange = []
        for name in sorted(self.weights.tensors):
            path, part = _place_of(name, paths)
            if path is None or part in found.setdefault(path, {}):
                strange.append(name)
            else:
                found[path][part] = name
        if strange:
            raise UnsupportedError(
                str(self.path),
                f"it changes what cannot be merged: {', '.join(strange[:5])}",
                MERGE,
            )
        if family.tie_word_embeddings:
            self._share(found)
        return {path: self._update(path, parts, family, shapes) for path, parts in found.items()}

    def _update(
        self,
        path: str,
        parts: Mapping[str, str],
        family: Family,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Update:
        whole, values = parts.get("whole"), parts.get("rows")
        if whole is not None and self.weights.tensors[whole].shape != shapes[path]:
            raise self._of_another(path, str(list(self.weights.tensors[whole].shape)), shapes)
        return Update(
            self.weights,
            whole,
            family.source_of(path, "", "safetensors").add if whole is not None else 0.0,
            self._low_rank(path, parts, shapes) if {"A", "B", "magnitude"} & parts.keys() else None,
            self._rows(path, values, shapes) if values is not None else {},
            values,
        )

    def _share(self, found: dict[str, dict[str, str]]) -> None:
        """Let what was saved of a tied table change both of its uses, as peft loads it.

        Only what is in `modules_to_save` became a copy for one use; peft ties single rows itself.
        """
        copies = self.config.get("modules_to_save") or []
        for path, other, module in (
            ("embedding", "head", "embed_tokens"),
            ("head", "embedding", "lm_head"),
        ):
            parts = found.get(path, {})
            for part in ("rows",) if module in copies else ("whole", "rows"):
                if part in parts:
                    found.setdefault(other, {}).setdefault(part, parts[part])

    def _low_rank(
        self, path: str, found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
    ) -> LowRank:
        if not {"A", "B"} <= found.keys():
            raise damaged(self.path, f"{next(iter(found.values()))} has no counterpart")
        sides = [self.weights.tensors[found[side]].shape for side in ("A", "B")]
        if any(len(shape) != 2 for shape in sides):
            raise damaged(self.path, f"{found['A']} and its counterpart are no matrices")
        (rank, columns), (rows, rank_of_b) = sides
        transposed = path == "embedding"
        shape = (columns, rows) if transposed else (rows, columns)
        if shape != shapes[path] or rank != rank_of_b or rank == 0:
            raise self._of_another(path, f"[{rows}, {rank_of_b}] x [{rank}, {columns}]", shapes)
        module = found["A"].partition(".lora_")[0]
        factor = scaling(self.config, module, rank, self.path)
        magnitude = found.get("magnitude")
        if bool(self.config.get("use_dora")) != (magnitude is not None):
            raise damaged(self.path, f"use_dora and the tensors of {module} contradict each other")
        if magnitude is not None and self.weights.tensors[magnitude].shape != (rows,):
            raise damaged(self.path, f"{magnitude} is not [{rows}]")
        return LowRank(found["A"], found["B"], factor, transposed, magnitude)

    def _rows(
        self, path: str, values: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[int, int]:
        """Which row of `path` each row of the tensor `values` is."""
        stated = self.config.get("trainable_token_indices")
        if isinstance(stated, dict):
            module = values.partition(".token_adapter")[0].rpartition(".")[2]
            stated = stated.get(module)
        vocabulary, width = shapes[path]
        if not isinstance(stated, list) or self.weights.tensors[values].shape != (
            len(stated),
            width,
        ):
            raise damaged(self.path, f"trainable_token_indices does not describe {values}")
        if not all(type(index) is int and 0 <= index < vocabulary for index in stated):
            raise damaged(self.path, f"trainable_token_indices names tokens beyond {vocabulary}")
        return {index: place for place, index in enumerate(stated)}

    def _of_another(
        self, path: str, shape: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> SourceError:
        return SourceError(
            str(self.path),
            f"its update of {path} is {shape}, the model's is {list(shapes[path])}",
            "take the model that the adapter was made for: "
            f"{self.config.get('base_model_name_or_path') or 'its page names it'}",
        )


def open_adapter(path: Path) -> Adapter:
    """Open a PEFT folder. Only the config and the header are read.

    Raises:
        SourceError: it is not there, or damaged.
        UnsupportedError: it is not a LoRA adapter of peft, or cannot be merged row by row.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        names = set()
    unusable = why_not_an_adapter(f"--lora {path}", names)
    if unusable is not None:
        raise unusable
    config_name, weights_name = ADAPTER_FILES
    config = read_config(path / config_name)
    check_config(config, path)
    with ExitStack() as stack:
        file = stack.enter_context(PositionedFile(path / weights_name))
        entries = list(read_header(file))
        weights = SafetensorsCheckpoint.of_file(path, file, entries, stack.pop_all())
    return Adapter(path, config, weights)
