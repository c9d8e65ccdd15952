"""Palettes: a matrix as indices into tables of few float16 numbers, one table for a group of rows.

This is the weights' format of Core ML's `constexpr_lut_to_dense`; the tables are those of least
squared error (`converter.kernels.palettize`).
"""

from __future__ import annotations

import math
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
from converter.weights.quantization import ValueRangeError

_MOST_NAMED = 64  # rows of the largest group that a message names
_OUT_OF_RANGE = "holds NaN, infinite values, or some beyond float16's 65504"


@dataclass(frozen=True)
class Palette:
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

    def block_step(self, columns: int) -> int:
        """What divides the rows of every block but the last: whole groups in whole bytes."""
        return math.lcm(self.group or 1, 8 // math.gcd(8, columns * self.bits))

    def pack(
        self, rows: np.ndarray, importance: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pack a block of rows, whole groups; what is in other blocks does not change the result.

        Args:
            rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
            importance: what a squared error in each column costs, float32 `(columns,)`, positive;
                None where all cost the same.

        Returns:
            Indices, uint8 `(index_bytes(n, columns),)`, and tables, float16 `(groups, 2^bits)`.

        Raises:
            ValueRangeError: a value is NaN, infinite or too large for float16.
        """
        group = self.group or len(rows)
        packed = np.empty(self.index_bytes(*rows.shape), np.uint8)
        tables = np.empty((len(rows) // group, 1 << self.bits), np.float16)
        if not palettize(rows, self.bits, group, packed, tables, importance):
            raise ValueRangeError(_OUT_OF_RANGE)
        return packed, tables

    def assign(self, rows: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Indices of a block of rows into a table that is there: of `TensorHistogram`.

        Args:
            rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
            table: float16 `(2^bits,)`, in ascending order.

        Returns:
            uint8 `(index_bytes(n, columns),)`.

        Raises:
            ValueRangeError: a value is NaN, infinite or too large for float16.
        """
        assert table.shape == (1 << self.bits,)
        packed = np.empty(self.index_bytes(*rows.shape), np.uint8)
        if not assign_palette(rows, table, packed):
            raise ValueRangeError(_OUT_OF_RANGE)
        return packed


class TensorHistogram:
    """How often a tensor holds each number, gathered block by block, for one table for all.

    Blocks may come in any order. Of several threads each needs one of its own; `add` joins them.
    """

    def __init__(self) -> None:
        self.weights = np.zeros(KEYS, np.uint64)

    def count(self, rows: np.ndarray, importance: np.ndarray | None = None) -> None:
        """Count a block of rows; see `Palette.pack`.

        Raises:
            ValueRangeError: a value is NaN, infinite or too large for float16.
        """
        if not count_halves(rows, self.weights, importance):
            raise ValueRangeError(_OUT_OF_RANGE)

    def add(self, other: TensorHistogram) -> None:
        """Count what another one counted."""
        self.weights += other.weights

    def table(self, palette: Palette) -> np.ndarray:
        """The table of least squared error, float16 `(2^bits,)`."""
        table = np.empty(1 << palette.bits, np.float16)
        find_palette(self.weights, table)
        return table
