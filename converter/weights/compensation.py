"""Rounding in which later columns make up for the errors of those before: GPTQ.

What a matrix does to its inputs suffers from errors E of its weights by `trace(E H E^T)`, where H
is the sum of `x x^T` over what arrives. With `H = R R^T`, R upper triangular, that is the sum over
columns c of `R_cc^2 (w_c - q_c + sum over i < c of (w_i - q_i) R_ic / R_cc)^2`: the errors of the
columns before say what the next one should be, and what is left over counts by `R_cc^2`.

Blocks, whose columns share a scale, go by their weight in H, the heaviest first: the last ones have
nobody who makes up for them.

Where it is known what would have arrived had nothing been rounded, rows are first moved by what the
inputs have lost on their way, as far as that follows from the inputs that are left: of all matrices
near W that is the one whose products with them are nearest to those of W with exact ones.

Source: GPTQ (Frantar et al., 2022), in the form of QuIP (Chee et al., 2023, LDLQ), which needs no
inverse; the scale of a block is the one that leaves least of this sum. Rows are moved as in QEP
(Arai and Ichikawa, 2025), by the part of what least squares say that was true of other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from converter.kernels import round_compensated, round_rows
from converter.weights.matrices import Do, cholesky, multiply, solve, square

# Of the mean of H's diagonal, added to all of it. Some thousand tokens know the large directions of
# H, not the small ones: with GPTQ's 0.01 these are trusted too far (benchmarks/README.md).
_DAMPING = 0.2
# Integers to which a block's largest magnitude is taken while its scale is searched.
_REACHES = (9.5, 9.0, 8.5, 8.0, 7.6, 7.2, 6.8, 6.4, 6.0, 5.5, 5.0)
# Columns of a row with one scale that are rounded at once.
_TOGETHER = 64


@dataclass(frozen=True)
class Compensation:
    """How the errors of columns go on, for blocks of one size.

    Attributes:
        order: of the columns, `(columns,)`.
        feedback: R_ic / R_cc in that order, float32 `(columns, columns)`, upper triangular.
        costs: R_cc^2, over their mean, float32 `(columns,)`.
        block: columns that share a scale.
        move: rows are moved by themselves times this, float32 `(columns, columns)`; None where
            they stay.
    """

    order: np.ndarray
    feedback: np.ndarray
    costs: np.ndarray
    block: int
    move: np.ndarray | None = None

    def moved(self, rows: np.ndarray) -> np.ndarray:
        """What is rounded in place of rows, `(n, columns)`, as stored columns have them."""
        return rows if self.move is None else rows + rows @ self.move

    def round(self, rows: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> bool:
        """Round rows, each by itself.

        Args:
            rows: finite float32 `(n, columns)`.
            integers: int8 `(n, columns)`, written: -8 to 7.
            scales: float16 `(n, blocks)`, written.

        Returns:
            False, with the results undefined, where a scale is infinite in float16.
        """
        size, errors = self.block, np.empty_like(rows)
        found, scale = np.empty((len(rows), size), np.int8), np.empty(len(rows), np.float16)
        for start in range(0, rows.shape[1], size):
            part = slice(start, start + size)
            columns, values, wanted, feedback = self._part(rows, errors, part)
            if not round_compensated(
                values, wanted, feedback, self.costs[part], _REACHES, found, scale
            ):
                return False
            errors[:, part] = values - found * scale.astype(np.float32)[:, None]
            integers[:, columns] = found
            scales[:, columns[0] // size] = scale
        return True

    @property
    def importance(self) -> np.ndarray:
        """What is left of a squared error in each column, as they are stored: `(columns,)`."""
        found = np.empty_like(self.costs)
        found[self.order] = self.costs
        return found

    def round_rows(
        self, rows: np.ndarray, scales: np.ndarray, limits: tuple[int, int], integers: np.ndarray
    ) -> None:
        """Round rows that have a scale each, for blocks of one column.

        Args:
            rows: finite float32 `(n, columns)`.
            scales: float32 `(n,)`.
            limits: the least and the largest integer.
            integers: int8 `(n, columns)`, written.
        """
        errors = np.empty_like(rows)
        for start in range(0, rows.shape[1], _TOGETHER):
            part = slice(start, start + _TOGETHER)
            columns, values, wanted, feedback = self._part(rows, errors, part)
            found = np.empty(values.shape, np.int8)
            round_rows(values, wanted, feedback, scales, limits, found)
            errors[:, part] = values - found * scales[:, None]
            integers[:, columns] = found

    def _part(
        self, rows: np.ndarray, errors: np.ndarray, part: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which columns are rounded together, their values, and the same with what the errors of
        those before ask of them; and how their own errors go on among them.
        """
        columns = self.order[part]
        values = rows.take(columns, axis=1)
        wanted = values + errors[:, : part.start] @ self.feedback[: part.start, part]
        return columns, values, wanted, np.ascontiguousarray(self.feedback[part, part])


@dataclass(frozen=True)
class Moment:
    """What arrives at matrices, and what follows for their columns.

    Attributes:
        inputs: of tokens, as stored columns meet them, float32 `(n, columns)`.
        do: does tasks, by threads.
        exact: what they would be had nothing been rounded before; None where that is not known.
    """

    inputs: np.ndarray
    do: Do
    exact: np.ndarray | None = None

    def compensation(self, block: int) -> Compensation:
        """That for blocks of so many columns; made once."""
        if block not in self._made:
            self._made[block] = self._compensation(block)
        return self._made[block]

    @cached_property
    def _made(self) -> dict[int, Compensation]:
        return {}

    def _compensation(self, block: int) -> Compensation:
        power = np.einsum("nc,nc->c", self.inputs, self.inputs)
        blocks = np.argsort(-power.reshape(-1, block).sum(axis=1), kind="stable")
        order = (blocks[:, None] * block + np.arange(block)).reshape(-1)
        # Of the columns in reverse, H is the reverse, and its L L^T that of R R^T.
        reverse = order[::-1]
        moment = square(self.inputs.take(reverse, axis=1), self.do)
        lower = cholesky(_damped(moment), self.do)
        others = list(self._made.values())
        move = others[0].move if others else self._move(lower, reverse)
        upper = np.ascontiguousarray(lower[::-1, ::-1])
        diagonal = upper.diagonal().copy()
        upper /= diagonal
        costs = diagonal * diagonal
        return Compensation(order, upper, costs / costs.mean(), block, move)

    def _move(self, lower: np.ndarray, order: np.ndarray) -> np.ndarray | None:
        """`D^T X H^-1` where inputs X lack D, as far as it is to be trusted: `Compensation.move`.

        Fewer tokens than columns would say it of themselves alone.

        Args:
            lower: the factor of H with its columns in this order.
        """
        if self.exact is None or len(self.exact) < len(order):
            return None
        inputs, lacks = self.inputs.take(order, axis=1), self.exact - self.inputs
        found = solve(lower, multiply(inputs, lacks, self.do), self.do)
        found *= self._trust(inputs, lacks)
        move = np.empty_like(found)
        move[:, order] = found.T
        return move

    def _trust(self, inputs: np.ndarray, lacks: np.ndarray) -> np.float32:
        """The part of what half of the tokens say of lacks that is true of the other half."""
        half = len(inputs) // 2
        lower = cholesky(_damped(square(inputs[:half], self.do)), self.do)
        said = solve(lower, multiply(inputs[:half], lacks[:half], self.do), self.do)
        foretold = multiply(inputs[half:].T, said, self.do)
        power = float(np.vdot(foretold, foretold))
        if not power:
            return np.float32(0)
        return np.float32(np.clip(np.vdot(foretold, lacks[half:]) / power, 0, 1))


def _damped(moment: np.ndarray) -> np.ndarray:
    """H so that float32 does for its factor, in its place."""
    moment.flat[:: len(moment) + 1] += np.float32(_DAMPING) * moment.diagonal().mean()
    return moment
