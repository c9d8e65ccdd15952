"""What the stream of weights asks of a format, for either target: rows in, packed rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from enum import StrEnum

import numpy as np

from converter.weights.compensation import Compensation


class Clip(StrEnum):
    """How numbers are rounded: `--clip`.

    MSE: the scale of an int4 block is that of least squared error, and columns are scaled by what
    reaches them (`converter.weights.inputs`). MAX: plainly, the largest magnitude gives the
    scale. An int8 row always takes that: with so many steps, clipping gains nothing that can be
    measured (benchmarks/README.md).
    """

    MSE = "mse"
    MAX = "max"


class ValueRangeError(ValueError):
    """A weight holds a value that the format cannot represent; the message says which."""


class RowFormat(ABC):
    """How a weight is stored.

    The result of rows that are packed together depends on those rows alone, so that the bytes do
    not depend on block size or number of threads.
    """

    @property
    @abstractmethod
    def dtype_name(self) -> str:
        """The type of its values, as `inspect` calls it."""

    @property
    def rounds_inputs(self) -> bool:
        """Whether a product with it takes its input in int8, rounded token by token."""
        return False

    @property
    def lacks_inputs(self) -> bool:
        """Whether a product with it loses more by its input, so rounded, than by the weights."""
        return False

    @property
    def takes_bf16(self) -> bool:
        """Whether `pack` takes BF16 rows as uint16, which saves widening them."""
        return False

    @property
    def takes_importance(self) -> bool:
        """Whether `pack` minds what an error costs in a column."""
        return False

    @property
    def is_int8(self) -> bool:
        """Whether packed rows are int8, with one float32 scale each."""
        return False

    @property
    def sees_all_rows(self) -> bool:
        """Whether all rows share something, so that `settled` comes before `pack`."""
        return False

    @property
    def wider(self) -> str:
        """What may help where a value is beyond its range, after what always does."""
        return ""

    def carries(self, stored_block: int) -> bool:
        """Whether a checkpoint's blocks of int4, of so many columns, may go in bit for bit."""
        return False

    def row_step(self, columns: int) -> int:
        """How many rows are packed together."""
        return 1

    @property
    def compensated_block(self) -> int | None:
        """Columns that share a scale where `pack_compensated` is for this format; else None."""
        return None

    @abstractmethod
    def pack(
        self,
        rows: np.ndarray,
        buffer: np.ndarray | None = None,
        clip: Clip = Clip.MSE,
        importance: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        stored_block: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pack rows, `(n, columns)`; they may be used as scratch space and lost.

        Args:
            rows: float32; or uint16 for BF16, where the format `takes_bf16`.
            buffer: int8, of one dimension and large enough, for a result that is int8 or int4.
            clip: how the scales of int4 blocks are chosen.
            importance: what a squared error in each column costs, float32 `(columns,)`; None where
                all cost the same.
            factors: what columns are multiplied with first, float32 `(columns,)`.
            stored_block: columns that shared a scale in int4 before, where the format carries them.

        Returns:
            The packed rows, and what the format stores beside them (scales, tables), or None.

        Raises:
            ValueRangeError: a value is NaN or infinite, or too large for the format.
        """

    def settled(
        self, blocks: Iterable[np.ndarray], importance: np.ndarray | None
    ) -> tuple[RowFormat, np.ndarray]:
        """What packs rows that share something, once all of them were seen; and what they share.

        Raises:
            ValueRangeError: see `pack`.
        """
        raise NotImplementedError

    def pack_compensated(
        self,
        rows: np.ndarray,
        compensation: Compensation,
        buffer: np.ndarray | None = None,
        factors: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `pack`; columns make up for each other's errors.

        Args:
            compensation: for blocks of `compensated_block`.

        Raises:
            ValueRangeError: see `pack`.
        """
        raise NotImplementedError

    def widened(self, packed: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        """What `pack` made, in float32 again, `(n, columns)`."""
        raise NotImplementedError
