"""What an adapter makes of a weight, a block of its rows at a time.

    rows -> the whole weight that takes their place -> + scaling * B[rows] @ A -> lengths (DoRA)
         -> single rows

Everything that belongs to a row (of B, a length, a row of a whole weight) lies in the adapter as in
a checkpoint of its format, and is read as from one: out of a fused tensor, in the order of its
heads (`placed_rows`). So an adapter and its base may have different formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from converter.checkpoint.base import Checkpoint
from converter.families.tensors import WeightSource
from converter.weights.placed_rows import read_placed


@dataclass(frozen=True)
class Factor:
    """A tensor that is one side of a product, or whose transpose is."""

    tensor: str
    transposed: bool = False


@dataclass(frozen=True)
class LowRank:
    """`scaling * left @ right`.

    Attributes:
        left, right: of shapes (out, rank) and (rank, in): B and A. Of an embedding, whose table is
            the product's transpose, A and B.
        magnitude: DoRA's tensor of the length that each row has in the end, (out,).
    """

    left: Factor
    right: Factor
    scaling: float
    magnitude: str | None = None


@dataclass(frozen=True)
class Update:
    """What an adapter makes of one weight.

    Attributes:
        weights: the adapter's tensors.
        source: where the weight stands in a checkpoint of the adapter's format.
        whole: the tensor that takes its place, None where it stays.
        low_rank: what is added to it.
        rows: single rows that take the place of its own: index -> place in the tensor `row_values`.
    """

    weights: Checkpoint
    source: WeightSource
    whole: str | None = None
    low_rank: LowRank | None = None
    rows: Mapping[int, int] = field(default_factory=dict)
    row_values: str | None = None

    @property
    def is_sum(self) -> bool:
        """Whether it only adds: such updates can be weighted, and added up in any order."""
        adds = self.low_rank is not None and self.low_rank.magnitude is None
        return adds and self.whole is None and self.row_values is None

    def apart(self) -> tuple[Update | None, Update]:
        """The table of the base that stands beside a product, and what is made of it.

        Of the modules that it adapts PEFT saves embeddings and heads, too, untrained.
        """
        if self.whole is None or self.low_rank is None:
            return None, self
        return Update(self.weights, self.source, self.whole), replace(self, whole=None)

    def weighted(self, weight: float) -> Update:
        """The same with `weight` times what it adds."""
        if self.low_rank is None:
            return self
        low_rank = replace(self.low_rank, scaling=self.low_rank.scaling * weight)
        return replace(self, low_rank=low_rank)

    def apply(self, rows: np.ndarray, start: int) -> None:
        """Change rows from `start` on in place.

        Args:
            rows: of the network, float32 (n, in); a vector is (1, n).
            start: the first one's index; whole heads, where `source` has them in another order.
        """
        stop = start + len(rows)
        if self.whole is not None:
            is_vector = len(self.weights.tensors[self.whole].shape) == 1
            span = (0, rows.shape[1]) if is_vector else (start, stop)
            rows[:] = read_placed(self.weights, self.whole, self.source, *span)
            rows += np.float32(self.source.add)
        if self.low_rank is not None:
            self._add(self.low_rank, rows, start)
        for index in self.rows.keys() & range(start, stop):
            place = self.rows[index]
            assert self.row_values is not None
            rows[index - start] = self.weights.read_rows(self.row_values, place, place + 1)

    def _add(self, pair: LowRank, rows: np.ndarray, start: int) -> None:
        stop, width = start + len(rows), rows.shape[1]
        tensor = pair.left.tensor
        if pair.left.transposed:
            # Its rows are as long as the vocabulary: one at a time.
            rank = self.weights.tensors[tensor].shape[0]
            row = self.weights.read_rows
            left = np.stack([row(tensor, i, i + 1)[0, start:stop] for i in range(rank)], axis=1)
        else:
            left = read_placed(self.weights, tensor, self.source, start, stop)
        tensor = pair.right.tensor
        if pair.right.transposed:
            right = self.weights.read_rows(tensor, 0, width).T
        else:
            right = self.weights.read_rows(tensor, 0, self.weights.tensors[tensor].shape[0])
        rows += (left @ right) * np.float32(pair.scaling)
        if pair.magnitude is not None:
            lengths = read_placed(self.weights, pair.magnitude, self.source, start, stop)[0]
            rows *= (lengths / np.linalg.norm(rows, axis=1))[:, None]
