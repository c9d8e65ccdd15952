"""Columns that make up for each other's errors, beside GPTQ as its paper has it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from converter.weights import compensation
from converter.weights.compensation import Compensation, Moment
from converter.weights.quantization import INT4_BLOCK32, INT4_BLOCK128, INT6, Format
from converter.weights.row_format import ValueRangeError
from converter.workers import Task

COLUMNS = 256


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    """Of 600 tokens, in some 60 directions, some columns larger than others: float32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 60)) @ rng.standard_normal((60, COLUMNS))
    x += 0.5 * rng.standard_normal(x.shape)
    return (x * rng.lognormal(0, 0.7, COLUMNS)).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, COLUMNS)).astype(np.float32)


def do(tasks: Iterable[Task]) -> None:
    for task in tasks:
        task()


def square(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = x.T @ x
    return found


def rounded(made: Compensation, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    integers = np.full(rows.shape, 99, np.int8)
    scales = np.empty((len(rows), rows.shape[1] // made.block), np.float16)
    assert made.round(rows.copy(), integers, scales)
    assert -8 <= integers.min() < integers.max() <= 7
    return integers, scales


def lost(found: np.ndarray, rows: np.ndarray, x: np.ndarray) -> float:
    """What rounding did to the products, over these."""
    products = x.astype(np.float64) @ rows.T
    return float(((x.astype(np.float64) @ (found - rows).T) ** 2).sum() / (products**2).sum())


@pytest.mark.parametrize("block", [32, 128])
def test_it_is_gptq(block: int, inputs: np.ndarray, rows: np.ndarray) -> None:
    """With the same scales: algorithm 1 of its paper, by the inverse, in float64."""
    made = Moment(inputs, do).compensation(block)
    found, scales = rounded(made, rows)
    hessian = square(inputs.astype(np.float64))
    hessian.flat[:: COLUMNS + 1] += compensation._DAMPING * hessian.diagonal().mean()
    inverse = np.linalg.inv(hessian[np.ix_(made.order, made.order)])
    upper = np.linalg.cholesky(inverse).T
    left = rows[:, made.order].astype(np.float64)
    expected = np.empty(rows.shape)
    for i, column in enumerate(made.order):
        scale = scales[:, column // block].astype(np.float64)
        expected[:, column] = np.clip(np.rint(left[:, i] / scale), -8, 7)
        error = (left[:, i] - expected[:, column] * scale) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    # Where a number lies between two, the last bits decide, and what comes after is another one.
    assert (found == expected).all(axis=1).mean() > 0.9


def test_rows_with_one_scale_are_gptq_column_by_column(
    inputs: np.ndarray, rows: np.ndarray
) -> None:
    made = Moment(inputs, do).compensation(1)
    assert (np.diff(square(inputs).diagonal()[made.order]) <= 0).all()
    found = np.full(rows.shape, 99, np.int8)
    scales = np.abs(rows).max(axis=1) / np.float32(29)
    made.round_rows(rows, scales, (-34, 29), found)
    hessian = square(inputs.astype(np.float64))
    hessian.flat[:: COLUMNS + 1] += compensation._DAMPING * hessian.diagonal().mean()
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(made.order, made.order)])).T
    left = rows[:, made.order].astype(np.float64)
    expected = np.empty(rows.shape)
    for i, column in enumerate(made.order):
        expected[:, column] = np.clip(np.rint(left[:, i] / scales), -34, 29)
        error = (left[:, i] - expected[:, column] * scales) / upper[i, i]
        left[:, i:] -= error[:, None] * upper[i, i:]
    # Where a number lies between two, the last bits decide, and what comes after is another one.
    assert (found == expected).all(axis=1).mean() > 0.8


def test_blocks_go_by_their_weight(inputs: np.ndarray) -> None:
    power = square(inputs).diagonal()
    order = Moment(inputs, do).compensation(32).order
    assert sorted(order) == list(range(COLUMNS))
    assert (np.diff(order.reshape(-1, 32), axis=1) == 1).all()
    assert (np.diff(power[order].reshape(-1, 32).sum(axis=1)) <= 0).all()


@pytest.mark.parametrize("form", [INT4_BLOCK32, INT4_BLOCK128, INT6])
def test_less_of_the_products_is_lost(form: Format, inputs: np.ndarray, rows: np.ndarray) -> None:
    """On inputs like those that it knows, in half of the tokens."""
    known, others = inputs[::2], inputs[1::2]
    assert form.compensated_block is not None
    made = Moment(known, do).compensation(form.compensated_block)
    power = (known**2).mean(axis=0)
    plain = form.widened(*form.pack(rows.copy(), importance=power / power.mean()))
    compensated = form.widened(*form.pack_compensated(rows.copy(), made))
    assert lost(compensated, rows, others) < 0.5 * lost(plain, rows, others)


def test_what_is_packed_is_what_was_found(inputs: np.ndarray, rows: np.ndarray) -> None:
    made = Moment(inputs, do).compensation(32)
    integers, scales = rounded(made, rows)
    widened = INT4_BLOCK32.widened(*INT4_BLOCK32.pack_compensated(rows.copy(), made))
    np.testing.assert_array_equal(widened, integers * scales.astype(np.float32).repeat(32, axis=1))


def test_factors_come_first(inputs: np.ndarray, rows: np.ndarray) -> None:
    made = Moment(inputs, do).compensation(32)
    factors = np.exp2(np.arange(COLUMNS) % 5 - 2).astype(np.float32)
    found = INT4_BLOCK32.pack_compensated(rows.copy(), made, factors=factors)
    expected = INT4_BLOCK32.pack_compensated(rows * factors, made)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_rows_make_up_for_what_inputs_have_lost(inputs: np.ndarray, rows: np.ndarray) -> None:
    """By what ridge regression says, in float64, and is true of the half that it has not seen."""
    rng = np.random.default_rng(2)
    exact = inputs + inputs @ (0.02 * rng.standard_normal((COLUMNS, COLUMNS)))
    exact += 2 * rng.standard_normal(exact.shape)  # which nothing can foretell
    exact = exact.astype(np.float32)
    known, unseen = slice(0, None, 2), slice(1, None, 2)
    made = Moment(inputs[known], do, exact[known]).compensation(32)
    x, lacks = inputs[known].astype(np.float64), (exact - inputs)[known].astype(np.float64)

    def said(x: np.ndarray, lacks: np.ndarray) -> np.ndarray:
        hessian = square(x)
        hessian.flat[:: COLUMNS + 1] += compensation._DAMPING * hessian.diagonal().mean()
        found: np.ndarray = lacks.T @ x @ np.linalg.inv(hessian)
        return found

    foretold = x[150:] @ said(x[:150], lacks[:150]).T
    trust = (foretold * lacks[150:]).sum() / (foretold**2).sum()
    assert 0.1 < trust < 1
    expected = rows + trust * rows @ said(x, lacks)
    moved = made.moved(rows)
    np.testing.assert_allclose(moved, expected, atol=1e-4)

    def off(found: np.ndarray) -> float:
        return float(((inputs[unseen] @ found.T - exact[unseen] @ rows.T) ** 2).sum())

    assert off(moved) < 0.6 * off(rows)
    packed = INT4_BLOCK32.widened(*INT4_BLOCK32.pack_compensated(rows.copy(), made))
    alone = Moment(inputs[known], do).compensation(32)
    np.testing.assert_array_equal(
        packed, INT4_BLOCK32.widened(*INT4_BLOCK32.pack_compensated(moved.copy(), alone))
    )


def test_rows_stay_where_it_is_not_true_of_other_tokens(
    inputs: np.ndarray, rows: np.ndarray
) -> None:
    lacks = 0.1 * inputs
    lacks[300:] *= -1
    np.testing.assert_array_equal(
        Moment(inputs, do, inputs + lacks).compensation(32).moved(rows), rows
    )
    nothing = Moment(inputs, do, inputs).compensation(32)
    np.testing.assert_array_equal(nothing.moved(rows), rows)


def test_rows_stay_where_little_is_known(inputs: np.ndarray, rows: np.ndarray) -> None:
    """Not what was lost, or of fewer tokens than columns."""
    few = Moment(inputs[:200], do, 1.1 * inputs[:200])
    for moment in (Moment(inputs, do), few):
        assert moment.compensation(32).moved(rows) is rows


def test_rows_and_inputs_of_zeros(inputs: np.ndarray) -> None:
    """A column that nothing reaches, and one that nothing leaves."""
    silent = inputs.copy()
    silent[:, ::3] = 0
    made = Moment(silent, do).compensation(32)
    integers, scales = rounded(made, np.concatenate([np.zeros((3, COLUMNS), np.float32), silent]))
    assert not integers[:3].any()
    assert (scales > 0).all()


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (1e7, "float16")]
)
def test_values_that_no_scale_is_for(
    value: float, why: str, inputs: np.ndarray, rows: np.ndarray
) -> None:
    made = Moment(inputs, do).compensation(32)
    damaged = rows.copy()
    damaged[7, 100] = value
    with pytest.raises(ValueRangeError, match=why):
        INT4_BLOCK32.pack_compensated(damaged, made)


def test_each_size_of_blocks_is_made_once(inputs: np.ndarray) -> None:
    calls = []

    def counted(tasks: Iterable[Task]) -> None:
        calls.append(tasks)
        do(tasks)

    moment = Moment(inputs, counted)
    first, made = moment.compensation(32), len(calls)
    assert moment.compensation(32) is first
    assert len(calls) == made
    assert moment.compensation(128).block == 128
