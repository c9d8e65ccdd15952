"""Algebra by threads, beside numpy's in float64; sizes that are no multiple of a block."""

from __future__ import annotations

import numpy as np
import pytest

from converter.weights import matrices
from converter.workers import Workers

SIZES = (1, 255, 256, 700)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def positive(size: int) -> np.ndarray:
    x = random(2 * size, size)
    return x.T @ x + np.float32(0.1 * size) * np.eye(size, dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_products(size: int) -> None:
    x, y = random(40, size), random(40, 300)
    with Workers(2) as workers:
        square, product = matrices.square(x, workers.do), matrices.multiply(x, y, workers.do)
        workers.finish()
    np.testing.assert_allclose(square, x.astype(np.float64).T @ x, atol=1e-4)
    np.testing.assert_allclose(product, x.astype(np.float64).T @ y, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_cholesky_and_what_it_solves(size: int) -> None:
    matrix, sides = positive(size), random(size, 300)
    with Workers(2) as workers:
        lower = matrices.cholesky(matrix.copy(), workers.do)
        found = matrices.solve(lower, sides, workers.do)
        workers.finish()
    expected = np.linalg.cholesky(matrix.astype(np.float64))
    np.testing.assert_allclose(lower, expected, atol=1e-4 * expected.max())
    solved = np.linalg.solve(matrix.astype(np.float64), sides)
    np.testing.assert_allclose(found, solved, atol=1e-4 * np.abs(solved).max())


def test_threads_do_not_change_a_bit() -> None:
    results = []
    for threads in (1, 3):
        with Workers(threads) as workers:
            lower = matrices.cholesky(positive(700), workers.do)
            results.append((lower, matrices.solve(lower, random(700, 600), workers.do)))
            workers.finish()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_positive_definite_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        matrices.cholesky(-positive(300), lambda tasks: [task() for task in tasks])
