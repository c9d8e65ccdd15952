"""One weight on its way from a checkpoint into a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from converter.families.tensors import WeightSource
from converter.kernels import SMALLEST_NORMAL
from converter.tflite.graph import Weight
from converter.tflite.writer import Layout
from converter.weights.lora_update import Update
from converter.weights.row_format import RowFormat
from converter.weights.weight_rows import row_units

# Values per block, measured (benchmarks/README.md): a block of 2^18 would stay in the L2 cache, but
# with so few the threads spend their time handing Python's lock to each other.
BLOCK_VALUES = 1 << 20
# Steps of the rest in one of the first part: int2 beside int4.
REST_STEPS = np.float32(4)


@dataclass(frozen=True)
class Rest:
    """The second part of rows in two.

    Attributes:
        offset: bytes from the start of the file.
        nbytes: of all rows.
        row_scales: where its rows' scales go, float32 `(rows,)`: a quarter of the first part's.
    """

    offset: int
    nbytes: int
    row_scales: np.ndarray


@dataclass(frozen=True)
class PlannedWeight:
    """One weight on its way: where it comes from, how it is stored, where its bytes go.

    Attributes:
        path: in the network. Several may have the same: pieces, some rows each.
        stored_as: its type in the checkpoint; `zeros` where that has no such tensor.
        stored_block: columns that share a scale there, where they lie on a grid of int4.
        nbytes: what is streamed: its data and its rest, and the scales of its blocks or its tables.
        offset: bytes from the start of the file.
        scales_offset: the same of its blocks' scales, or of its tables, where it has some.
        scales_nbytes: of those.
        row_scales: where its rows' scales go, float32 `(rows,)`, where each has one.
        rest: what its rows are beside what is at `offset`, where they are in two parts.
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
    rest: Rest | None = None
    updates: tuple[Update, ...] = ()
    factor: float = 1.0
    first_row: int = 0

    @property
    def data_nbytes(self) -> int:
        """Without scales, tables or rest."""
        return self.nbytes - self.scales_nbytes - (self.rest.nbytes if self.rest else 0)

    @property
    def carries_blocks(self) -> bool:
        """Whether the checkpoint's own blocks of int4 may go in bit for bit."""
        stored = self.stored_block
        is_changed = bool(self.updates) or self.factor != 1
        return stored is not None and not is_changed and self.format.carries(stored)

    @property
    def compensated_block(self) -> int | None:
        """Columns that share a scale, where columns may make up for each other's errors; else None.

        A checkpoint's own blocks have none.
        """
        return None if self.carries_blocks else self.format.compensated_block

    @classmethod
    def placed(
        cls,
        path: str,
        source: WeightSource,
        stored_as: str,
        stored_block: int | None,
        form: RowFormat,
        weight: Weight,
        layout: Layout,
        start: int = 0,
        updates: tuple[Update, ...] = (),
    ) -> PlannedWeight:
        """One that goes into a TFLite model, which begins at byte `start`."""
        scales, rest = weight.scales, weight.rest
        return cls(
            path,
            source,
            stored_as,
            stored_block,
            weight.shape,
            form,
            weight.streamed_nbytes,
            start + layout.offsets[path],
            start + layout.offsets[scales.name] if scales else None,
            scales.nbytes if scales else 0,
            layout.scales(path) if weight.quantized else None,
            Rest(start + layout.offsets[rest.name], rest.nbytes, layout.scales(rest.name))
            if rest
            else None,
            updates,
        )

    def set_scales(self, rows: slice, scales: np.ndarray) -> None:
        """Give rows their scales; XNNPACK refuses what is no normal number."""
        assert self.row_scales is not None
        least = SMALLEST_NORMAL
        if self.rest is not None:
            least = least * REST_STEPS
            self.rest.row_scales[rows] = np.maximum(scales, least) / REST_STEPS
        self.row_scales[rows] = np.maximum(scales, least)

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
