"""What is read of weights while a text goes through their network, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.errors import UnsupportedError
from converter.weights.inputs import Inputs
from converter.weights.planned_weight import PlannedWeight
from converter.weights.row_format import Clip, RowFormat
from converter.weights.weight_rows import read_weight
from converter.workers import Task, Workers

# Tokens of a product in float32 that are made at once.
TOGETHER = 256


class WeightReader:
    """Weights of a checkpoint by their path; the part of `Weights` that only reads.

    Attributes (of those who inherit it):
        _workers: threads, while something is read.
    """

    _workers: Workers

    def __init__(
        self, checkpoint: Checkpoint, name: str, weights: Iterable[PlannedWeight], clip: Clip
    ) -> None:
        self._checkpoint, self._name, self._clip = checkpoint, name, clip
        self._pieces: dict[str, list[PlannedWeight]] = {}
        for weight in weights:
            self._pieces.setdefault(weight.path, []).append(weight)
        self._floats = ThreadBuffer(np.float32)

    def embed(self, tokens: np.ndarray, path: str) -> np.ndarray:
        table = self._whole(path)
        return np.stack([self._read(table, i, i + 1)[0].copy() for i in tokens.tolist()])

    def vector(self, path: str) -> np.ndarray:
        found: np.ndarray = self._read(self._whole(path), 0, 1)[0].copy()
        return found

    def table(self, path: str) -> np.ndarray:
        weight = self._whole(path)
        found: np.ndarray = self._read(weight, 0, weight.shape[0]).copy()
        return found

    def may_scale(self, *paths: str) -> bool:
        pieces = [piece for path in paths for piece in self._pieces[path]]
        return all(w.format.rounds_inputs and not w.carries_blocks for w in pieces)

    def lack_inputs(self, *paths: str) -> bool:
        return all(piece.format.lacks_inputs for path in paths for piece in self._pieces[path])

    def do(self, tasks: Iterable[Task]) -> None:
        self._workers.do(tasks)

    def _whole(self, path: str) -> PlannedWeight:
        [weight] = self._pieces[path]
        return weight

    def _read(
        self, weight: PlannedWeight, start: int, stop: int, keep_bf16: bool = False
    ) -> np.ndarray:
        """Rows of a weight as the network has it, valid until the thread's next call."""
        return read_weight(
            self._checkpoint,
            weight.source,
            weight.shape,
            weight.updates,
            start,
            stop,
            self._floats,
            keep_bf16,
            weight.first_row,
            weight.factor,
        )

    def _pack(
        self,
        form: RowFormat,
        rows: np.ndarray,
        inputs: Inputs,
        buffer: ThreadBuffer,
        stored_block: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        room = buffer.of_size(rows.size)
        importance, factors = inputs.importance, inputs.factors
        return form.pack(rows, room, self._clip, importance, factors, stored_block)

    def _out_of_range(self, weight: PlannedWeight, why: str, wider: str = "") -> UnsupportedError:
        return UnsupportedError(
            f"{self._name}: {weight.source.tensor}",
            why,
            f"the checkpoint is damaged: fetch or make it again{wider}",
        )
