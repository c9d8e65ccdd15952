"""Palettes: a matrix as indices into tables of few float16 numbers, one table for a group of rows.

This is the weights' format of Core ML's `constexpr_lut_to_dense`; the tables are those of least
squared error (`converter.kernels.palettize`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converter.errors import OptionError, UnsupportedError
from converter.kernels import (
    KEYS,
    PALETTE_BITS,
    assign_palette,
    count_halves,
    find_palette,
    palettize,
)
from converter.weights.row_format import Clip, RowFormat, ValueRangeError

_MOST_NAMED = 64  # rows of the largest group that a message names
_OUT_OF_RANGE = "holds NaN, infinite values, or some beyond float16's 65504"


@dataclass(frozen=True)
class Palette(RowFormat):
    """How a matrix is stored.

    Attributes:
        bits: of an index; a table has `2^bits` numbers.
        group: consecutive rows, which are output channels, that share a table; 0 where all do.

    Raises:
        OptionError: Core ML has no such indices, or groups are of fewer than no rows.
    """

    bits: int
    group: int = 8

    def __post_init__(self) -> None:
        if self.bits not in PALETTE_BITS:
            raise OptionError(
                f"a palette of {self.bits} bits",
                "is none that Core ML has",
                f"choose one of: {', '.join(map(str, PALETTE_BITS))}",
            )
        if self.group < 0:
            raise OptionError(
                f"a palette for groups of {self.group} rows",
                "is for no rows at all",
                "choose 1 or more rows, or 0 for one table per tensor",
            )

    def tables_shape(self, path: str, rows: int) -> tuple[int, int]:
        """That of a matrix's tables: `(groups, 2^bits)`.

        Raises:
            UnsupportedError: groups do not divide its rows.
        """
        if self.group and rows % self.group:
            sizes = [n for n in range(1, min(rows, _MOST_NAMED) + 1) if rows % n == 0]
            raise UnsupportedError(
                path,
                f"has {rows} rows, which groups of {self.group} do not divide",
                f"choose groups of {', '.join(map(str, sizes))} rows, or 0 for one table",
            )
        return (rows // self.group if self.group else 1, 1 << self.bits)

    def index_bytes(self, rows: int, columns: int) -> int:
        """Bytes of so many rows' indices, which are one stream of bits."""
        return -(-rows * columns * self.bits // 8)

    @property
    def dtype_name(self) -> str:
        return f"lut{self.bits}"

    @property
    def takes_bf16(self) -> bool:
        return True

    @property
    def takes_importance(self) -> bool:
        return True

    @property
    def sees_all_rows(self) -> bool:
        return not self.group

    def row_step(self, columns: int) -> int:
        """Whole groups in whole bytes."""
        return math.lcm(self.group or 1, 8 // math.gcd(8, columns * self.bits))

    def pack(
        self,
        rows: np.ndarray,
        buffer: np.ndarray | None = None,
        clip: Clip = Clip.MSE,
        importance: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        stored_block: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `RowFormat.pack`, of whole groups; rows are contiguous, and stay as they are.

        Returns:
            Indices, uint8 `(index_bytes(n, columns),)`, and tables, float16 `(groups, 2^bits)`.

        Raises:
            ValueRangeError: a value is NaN, infinite or too large for float16.
        """
        assert factors is None, "nobody would undo them"
        group = self.group or len(rows)
        packed = np.empty(self.index_bytes(*rows.shape), np.uint8)
        tables = np.empty((len(rows) // group, 1 << self.bits), np.float16)
        if not palettize(rows, self.bits, group, packed, tables, importance):
            raise ValueRangeError(_OUT_OF_RANGE)
        return packed, tables

    def settled(
        self, blocks: Iterable[np.ndarray], importance: np.ndarray | None
    ) -> tuple[RowFormat, np.ndarray]:
        """One table for all rows, float16 `(2^bits,)`, and what packs by it."""
        counted = np.zeros(KEYS, np.uint64)
        for rows in blocks:
            if not count_halves(rows, counted, importance):
                raise ValueRangeError(_OUT_OF_RANGE)
        table = np.empty(1 << self.bits, np.float16)
        find_palette(counted, table)
        return TablePalette(self, table), table


@dataclass(frozen=True)
class TablePalette(RowFormat):
    """A palette whose one table is known, float16 `(2^bits,)` in ascending order."""

    palette: Palette
    table: np.ndarray

    @property
    def dtype_name(self) -> str:
        return self.palette.dtype_name

    @property
    def takes_bf16(self) -> bool:
        return True

    def pack(
        self,
        rows: np.ndarray,
        buffer: np.ndarray | None = None,
        clip: Clip = Clip.MSE,
        importance: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        stored_block: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Indices alone; see `Palette.pack`."""
        packed = np.empty(self.palette.index_bytes(*rows.shape), np.uint8)
        if not assign_palette(rows, self.table, packed):
            raise ValueRangeError(_OUT_OF_RANGE)
        return packed, None
