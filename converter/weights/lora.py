"""LoRA adapters of PEFT, merged while weights stream: `rows += scaling * B[rows] @ A`.

An adapter is a folder with adapter_config.json and adapter_model.safetensors
(https://huggingface.co/docs/peft). A low-rank update changes one matrix, so a block of its rows can
be merged alone. So can whole weights that were trained and saved beside them (`modules_to_save`, an
embedding). Whatever an adapter holds beyond that would be lost, and is refused.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
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

_LOW_RANK = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_WHOLE = re.compile(r"(.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(weight|bias)")


@dataclass(frozen=True)
class LowRank:
    """`scaling * B @ A`.

    Attributes:
        a, b: names in the adapter; (rank, in) and (out, rank).
        transposed: an embedding's, whose table is the product's transpose: (rank, tokens) and
            (width, rank).
    """

    a: str
    b: str
    scaling: float
    transposed: bool


@dataclass(frozen=True)
class Update:
    """What an adapter makes of one weight.

    Attributes:
        whole: the tensor that takes its place, None where it stays.
        add: constant to add to that, as the family stores it (see `WeightSource`).
        low_rank: what is added to it.
    """

    weights: SafetensorsCheckpoint
    whole: str | None = None
    add: float = 0.0
    low_rank: LowRank | None = None

    def apply(self, rows: np.ndarray, start: int) -> None:
        """Change rows from `start` on, float32 (n, in), in place."""
        read, stop = self.weights.read_rows, start + len(rows)
        if self.whole is not None:
            rows[:] = read(self.whole, start, stop)
            rows += np.float32(self.add)
        pair = self.low_rank
        if pair is None:
            return
        rank = self.weights.tensors[pair.a].shape[0]
        if pair.transposed:
            # A's rows are as long as the vocabulary: one at a time.
            left = np.stack([read(pair.a, i, i + 1)[0, start:stop] for i in range(rank)], axis=1)
            right = read(pair.b, 0, rows.shape[1]).T
        else:
            left, right = read(pair.b, start, stop), read(pair.a, 0, rank)
        rows += (left @ right) * np.float32(pair.scaling)


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
        pairs: dict[str, dict[str, str]] = {}
        wholes: dict[str, str] = {}
        strange = []
        for name in sorted(self.weights.tensors):
            low, whole = _LOW_RANK.fullmatch(name), _WHOLE.fullmatch(name)
            if low:
                path = paths.get(f"{without_wrappers(low[1])}.weight")
                if path is not None and (path == "embedding") == (low[2] is not None):
                    pairs.setdefault(path, {})[low[3]] = name
                    continue
            elif whole:
                path = paths.get(f"{without_wrappers(whole[1])}.{whole[2]}")
                if path is not None and path not in wholes:
                    wholes[path] = name
                    continue
            strange.append(name)
        if strange:
            raise UnsupportedError(
                str(self.path),
                f"it changes what cannot be merged: {', '.join(strange[:5])}",
                MERGE,
            )
        if family.tie_word_embeddings:
            self._share(wholes)
        updates = {}
        for path in sorted({*pairs, *wholes}):
            tensor = wholes.get(path)
            if tensor is not None and self.weights.tensors[tensor].shape != shapes[path]:
                raise self._of_another(path, str(list(self.weights.tensors[tensor].shape)), shapes)
            pair = self._low_rank(path, pairs[path], shapes) if path in pairs else None
            add = family.source_of(path, "", "safetensors").add if tensor is not None else 0.0
            updates[path] = Update(self.weights, tensor, add, pair)
        return updates

    def _share(self, wholes: dict[str, str]) -> None:
        """Let a tied table that was saved whole take the place of both of its uses.

        In peft `modules_to_save` makes a copy for one use, and other saved tables are loaded into
        the one that is shared.
        """
        copies = self.config.get("modules_to_save") or []
        for path, other, module in (
            ("embedding", "head", "embed_tokens"),
            ("head", "embedding", "lm_head"),
        ):
            if path in wholes and other not in wholes and module not in copies:
                wholes[other] = wholes[path]

    def _low_rank(
        self, path: str, found: dict[str, str], shapes: dict[str, tuple[int, ...]]
    ) -> LowRank:
        if set(found) != {"A", "B"}:
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
        return LowRank(found["A"], found["B"], factor, transposed)

    def _of_another(self, path: str, shape: str, shapes: dict[str, tuple[int, ...]]) -> SourceError:
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
