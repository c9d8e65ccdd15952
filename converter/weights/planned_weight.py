"""One weight on its way from a checkpoint into a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converter.families.tensors import WeightSource
from converter.weights.lora_update import Update
from converter.weights.row_format import RowFormat
from converter.weights.weight_rows import row_units

# Values per block, measured (benchmarks/README.md): a block of 2^18 would stay in the L2 cache, but
# with so few the threads spend their time handing Python's lock to each other.
BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class PlannedWeight:
    """One weight on its way: where it comes from, how it is stored, where its bytes go.

    Attributes:
        path: in the network. Several may have the same: pieces, some rows each.
        stored_as: its type in the checkpoint; `zeros` where that has no such tensor.
        stored_block: columns that share a scale there, where they lie on a grid of int4.
        nbytes: what is streamed: its data, and the scales of its blocks or its tables.
        offset: bytes from the start of the file.
        scales_offset: the same of its blocks' scales, or of its tables, where it has some.
        scales_nbytes: of those.
        row_scales: where its rows' scales go, float32 `(rows,)`, where each has one.
        updates: what adapters make of it, one after the other.
        factor: what all values are multiplied with then.
        first_row: of a piece, which row of the whole weight it begins with.
    """

    path: str
    source: WeightSource
    stored_as: str
    stored_block: int | None
    shape: tuple[int, ...]
    format: RowFormat
    nbytes: int
    offset: int
    scales_offset: int | None = None
    scales_nbytes: int = 0
    row_scales: np.ndarray | None = None
    updates: tuple[Update, ...] = ()
    factor: float = 1.0
    first_row: int = 0

    @property
    def data_nbytes(self) -> int:
        """Without scales or tables."""
        return self.nbytes - self.scales_nbytes

    @property
    def carries_blocks(self) -> bool:
        """Whether the checkpoint's own blocks of int4 may go in bit for bit."""
        stored = self.stored_block
        is_changed = bool(self.updates) or self.factor != 1
        return stored is not None and not is_changed and self.format.carries(stored)

    def row_blocks(self) -> Iterator[tuple[int, int]]:
        """(first row, row after the last) of pieces that are worked on at once: whole heads."""
        rows, columns = as_matrix(self.shape)
        step = max(1, BLOCK_VALUES // columns)
        unit = math.lcm(*row_units(self.source, self.updates), self.format.row_step(columns))
        step = -(-step // unit) * unit
        if len(self.shape) == 1:
            step = rows
        for start in range(0, rows, step):
            yield start, min(start + step, rows)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a weight; a vector is one row to a checkpoint."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))
