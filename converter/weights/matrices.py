"""Algebra of large square matrices in float32, by threads: numpy's LAPACK takes one, and its time.

Most of it is made products of blocks. Their sizes do not follow the number of threads, so results
do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from converter.workers import Task

# Does all of some tasks, in any order.
Do = Callable[[Iterable[Task]], object]

# Rows and columns of a block.
_BLOCK = 256


def multiply(x: np.ndarray, y: np.ndarray, do: Do) -> np.ndarray:
    """`x.T @ y`: `(n, a)` and `(n, b)` to `(a, b)`."""
    found = np.empty((x.shape[1], y.shape[1]), np.float32)

    def fill(part: slice) -> None:
        found[:, part] = x.T @ y[:, part]

    do(partial(fill, part) for part in _blocks(y.shape[1]))
    return found


def square(x: np.ndarray, do: Do) -> np.ndarray:
    """`x.T @ x`: `(n, columns)` to `(columns, columns)`."""
    found = np.empty((x.shape[1], x.shape[1]), np.float32)

    def fill(part: slice) -> None:
        found[: part.stop, part] = x[:, : part.stop].T @ x[:, part]
        found[part, : part.start] = found[: part.start, part].T

    do(partial(fill, part) for part in _blocks(x.shape[1]))
    return found


def cholesky(matrix: np.ndarray, do: Do) -> np.ndarray:
    """L with `L @ L.T` = matrix, lower triangular, in the matrix's place.

    Block by block of columns: what the block takes away from those behind it is one product.

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive definite.
    """
    for own in _blocks(len(matrix)):
        matrix[own, own] = np.linalg.cholesky(matrix[own, own])
        below = matrix[own.stop :, own]
        below[:] = below @ np.linalg.inv(matrix[own, own]).T
        matrix[own, own.stop :] = 0

        def subtract(part: slice, below: np.ndarray = below, first: int = own.stop) -> None:
            rest = matrix[first + part.start :, first + part.start : first + part.stop]
            rest -= below[part.start :] @ below[part].T

        do(partial(subtract, part) for part in _blocks(len(below)))
    return matrix


def solve(lower: np.ndarray, sides: np.ndarray, do: Do) -> np.ndarray:
    """X with `L @ L.T @ X` = sides: `(n, n)`, what `cholesky` made, and `(n, m)` to `(n, m)`."""
    blocks = list(_blocks(len(lower)))
    inverses = [np.linalg.inv(lower[own, own]) for own in blocks]
    found = np.empty_like(sides)

    def fill(part: slice) -> None:
        x = sides[:, part].copy()
        for own, inverse in zip(blocks, inverses, strict=True):
            x[own] = inverse @ (x[own] - lower[own, : own.start] @ x[: own.start])
        for own, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
            x[own] = inverse.T @ (x[own] - lower[own.stop :, own].T @ x[own.stop :])
        found[:, part] = x

    do(partial(fill, part) for part in _blocks(sides.shape[1]))
    return found


def _blocks(count: int) -> Iterable[slice]:
    return (slice(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK))
