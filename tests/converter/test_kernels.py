"""The compiled loops and numpy's, which must give the same bits."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from converter import kernels
from converter.compile_kernels import compile_kernels

Pack = Callable[[np.ndarray], tuple[bool, np.ndarray, np.ndarray]]


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compiled for processors of which nothing is known."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "cc -DPORTABLE")
        assert compile_kernels(library)
    return kernels.load(library)


@pytest.fixture(params=["compiled", "portable", "numpy"], autouse=True)
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file runs with every body."""
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    elif shutil.which("cc") is None:
        pytest.skip("there is no C compiler here, so numpy's body is what runs")
    elif request.param == "portable":
        library = request.getfixturevalue("portable")
        monkeypatch.setattr(kernels, "_compiled", lambda: library)
    else:
        assert isinstance(kernels._compiled(), ctypes.CDLL), "run ./setup --dev"
    return str(request.param)


def pack(rows: np.ndarray) -> tuple[bool, np.ndarray, np.ndarray]:
    packed = np.full(rows.shape, 99, np.int8)
    scales = np.full(len(rows), -1, np.float32)
    return kernels.pack_int8(rows.copy(), packed, scales), packed, scales


def expected(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The formula, one step at a time, each rounded to float32."""
    peak = np.abs(rows).max(axis=1)
    scales = np.maximum(peak / np.float32(127), np.finfo(np.float32).tiny)
    return np.rint(rows * (np.float32(1) / scales)[:, None]).astype(np.int8), scales


@pytest.mark.parametrize("columns", [1, 3, 7, 8, 31, 64, 1000])
@pytest.mark.parametrize("size", [1e-36, 0.02, 3e4])
def test_pack_int8(columns: int, size: float) -> None:
    """Row lengths with and without a remainder for the vector loops."""
    rows = np.random.default_rng(columns).standard_normal((50, columns)).astype(np.float32)
    rows *= np.float32(size)
    done, packed, scales = pack(rows)
    assert done
    expected_packed, expected_scales = expected(rows)
    np.testing.assert_array_equal(packed, expected_packed)
    np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("columns", [1, 7, 64, 1000])
def test_bf16_is_packed_as_its_float32(columns: int) -> None:
    values = np.random.default_rng(columns).standard_normal((50, columns)).astype(np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    widened = (stored.astype(np.uint32) << 16).view(np.float32)
    for ours, theirs in zip(pack(stored), pack(widened), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ties_go_to_even() -> None:
    """And nothing is contracted: product and sum are rounded one after the other."""
    rows = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 63.5]], np.float32)
    _, packed, scales = pack(rows)
    assert scales == 1
    assert packed.tolist() == [[127, 0, 2, 2, 0, -2, -126, 64]]


def test_the_whole_range_and_no_more() -> None:
    rows = np.random.default_rng(0).standard_normal((20000, 5)).astype(np.float32)
    _, packed, _ = pack(rows)
    assert (np.abs(packed.astype(int)).max(axis=1) == 127).all()


def test_rows_without_a_scale_of_their_own() -> None:
    rows = np.zeros((3, 9), np.float32)
    rows[1, 4] = np.finfo(np.float32).smallest_subnormal
    rows[2, 4] = -1e-40
    done, packed, scales = pack(rows)
    assert done
    assert (packed == 0).all()
    assert (scales == np.finfo(np.float32).tiny).all()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 36), (2, 20)])
def test_values_that_are_no_numbers(bad: float, place: tuple[int, int]) -> None:
    rows = np.ones((3, 37), np.float32)
    rows[place] = bad
    assert not pack(rows)[0]
    assert not pack((rows.view(np.uint32) >> 16).astype(np.uint16))[0]


def test_no_rows() -> None:
    assert pack(np.empty((0, 5), np.float32))[0]


def test_widen_bf16() -> None:
    stored = np.arange(1 << 16, dtype=np.uint16)  # every value there is, NaN payloads included
    values = np.empty(stored.size, np.float32)
    kernels.widen_bf16(stored, values)
    np.testing.assert_array_equal(values.view(np.uint32), stored.astype(np.uint32) << 16)
    kernels.widen_bf16(stored[3:10], values[:7])
    np.testing.assert_array_equal(values[:7].view(np.uint32), stored[3:10].astype(np.uint32) << 16)


@pytest.mark.parametrize("block", [8, 32, 128])
@pytest.mark.parametrize("reaches", [(9.0, 8.5, 8.0, 7.5, 7.0, 6.5, 6.0, 5.0), ()])
def test_pack_int4_is_the_same_in_both(
    body: str, monkeypatch: pytest.MonkeyPatch, block: int, reaches: tuple[float, ...]
) -> None:
    rows = np.random.default_rng(block).standard_normal((300, 256)).astype(np.float32)
    rows *= np.geomspace(1e-9, 1e4, 300, dtype=np.float32)[:, None]
    rows[:5] = 0
    rows[5] = 1e-40
    importance = np.random.default_rng(1).exponential(size=256).astype(np.float32) + np.float32(0.1)
    found = []
    for _ in range(2):
        packed = np.full((300, 128), 99, np.uint8)
        scales = np.full((300, 256 // block), -1, np.float16)
        assert kernels.pack_int4(rows.copy(), block, reaches, importance, packed, scales)
        assert (scales > 0).all()
        found.append((packed, scales))
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    for ours, numpy in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, numpy)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_pack_int4_refuses_what_it_cannot_hold(bad: float) -> None:
    rows = np.ones((2, 64), np.float32)
    rows[1, 40] = bad
    packed, scales = np.zeros((2, 32), np.uint8), np.zeros((2, 2), np.float16)
    alike = np.ones(64, np.float32)
    assert not kernels.pack_int4(rows, 32, (8.0, 7.0), alike, packed, scales)


@pytest.mark.parametrize("columns", [1, 31, 64, 511, 512, 513, 5000])
@pytest.mark.parametrize(("tokens", "count"), [(4, 1), (32, 6), (36, 131)])
def test_products_of_integers_are_exact(columns: int, tokens: int, count: int) -> None:
    """With and without a remainder for each loop; written into a part of a wider product."""
    rng = np.random.default_rng(columns)
    x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
    rows = rng.integers(-127, 128, (count, columns)).astype(np.int8)
    x[0], rows[0], x[1] = 127, 127, -127  # the largest sums
    x_scales, scales = (rng.random(size).astype(np.float32) for size in (tokens, count))
    sums = x.astype(np.int64) @ rows.astype(np.int64).T
    expected = (sums * scales.astype(np.float64) * x_scales[:, None]).astype(np.float32)
    product = np.full((tokens, count + 2), 99, np.float32)
    kernels.multiply_int8(x, x_scales, rows, scales, product[:, 1:-1])
    np.testing.assert_array_equal(product[:, 1:-1], expected)
    assert (product[:, [0, -1]] == 99).all()


def test_the_widest_products_do_not_overflow() -> None:
    x, rows = np.full((4, 1 << 17), -127, np.int8), np.full((2, 1 << 17), 127, np.int8)
    ones, product = np.ones(4, np.float32), np.empty((4, 2), np.float32)
    kernels.multiply_int8(x, ones, rows, ones[:2], product)
    assert (product == -127 * 127 * (1 << 17)).all()


@pytest.mark.parametrize("columns", [32, 96, 1024])
def test_factors_are_as_if_columns_were_so(columns: int) -> None:
    rng = np.random.default_rng(columns)
    stored = rng.standard_normal((20, columns)).astype(np.float32).view(np.uint32) >> 16
    bf16 = stored.astype(np.uint16)
    rows = (stored << 16).view(np.float32)
    factors = np.exp2(rng.integers(-3, 4, columns)).astype(np.float32)
    done, packed, scales = pack(rows * factors)
    for values in (bf16, rows):
        found, found_scales = np.empty_like(packed), np.empty_like(scales)
        assert done == kernels.pack_int8(values.copy(), found, found_scales, factors)
        np.testing.assert_array_equal(found, packed)
        np.testing.assert_array_equal(found_scales, scales)
    alike = np.ones(columns, np.float32)
    results = []
    for values, scaling in ((rows * factors, None), (rows.copy(), factors)):
        int4 = np.empty((len(rows), columns // 2), np.uint8)
        halves = np.empty((len(rows), columns // 32), np.float16)
        assert kernels.pack_int4(values, 32, (8.0, 7.0), alike, int4, halves, scaling)
        results.append((int4, halves))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 32), (13, 32), (5, 128)])
@pytest.mark.parametrize("size", [1e-9, 0.02, 3e4])
def test_round_compensated(rows: int, columns: int, size: float) -> None:
    """The formula, a row and a column at a time, each step rounded to float32."""
    random = np.random.default_rng(rows)
    values, asked = random.standard_normal((2, rows, columns)).astype(np.float32) * np.float32(size)
    wanted = values + asked / 8
    wanted[-1] = values[-1] = 0
    feedback = random.standard_normal((columns, columns)).astype(np.float32) / 8
    costs = random.lognormal(size=columns).astype(np.float32)
    reaches = (9.0, 7.5, 6.0)
    integers = np.full(values.shape, 99, np.int8)
    scales = np.full(rows, -1, np.float16)
    arguments = (values, wanted, feedback, costs, reaches)
    assert kernels.round_compensated(*arguments, integers, scales)

    for row in range(rows):
        tried = []
        for reach in reaches:
            scale = max(np.float16(np.abs(wanted[row]).max() / np.float32(reach)), TINIEST)
            now, loss, steps = wanted[row].copy(), np.float32(0), np.empty(columns, np.int8)
            for c in range(columns):
                step = np.rint(np.clip(now[c] * (np.float32(1) / np.float32(scale)), -8, 7))
                rounded = np.float32(step) * np.float32(scale)
                loss += (now[c] - rounded) * (now[c] - rounded) * costs[c]
                now[c + 1 :] += (values[row, c] - rounded) * feedback[c, c + 1 :]
                steps[c] = step
            tried.append((loss, scale, steps))
        _, scale, steps = min(tried, key=lambda one: one[0])
        assert scales[row] == scale
        np.testing.assert_array_equal(integers[row], steps)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 32), (13, 64), (5, 129)])
def test_round_rows(rows: int, columns: int) -> None:
    """The formula, a row and a column at a time, each step rounded to float32."""
    random = np.random.default_rng(rows)
    values, asked = random.standard_normal((2, rows, columns)).astype(np.float32)
    wanted = values + asked / 8
    feedback = random.standard_normal((columns, columns)).astype(np.float32) / 8
    scales = random.uniform(0.03, 0.2, rows).astype(np.float32)
    integers = np.full(values.shape, 99, np.int8)
    kernels.round_rows(values, wanted, feedback, scales, (-34, 29), integers)
    for row, scale in enumerate(scales):
        now = wanted[row].copy()
        for c in range(columns):
            step = np.rint(np.clip(now[c] * (np.float32(1) / scale), -34, 29))
            assert integers[row, c] == step
            error = values[row, c] - np.float32(step) * scale
            now[c + 1 :] += error * feedback[c, c + 1 :]


def test_round_compensated_says_where_a_scale_is_too_large() -> None:
    values = np.full((3, 4), 1e7, np.float32)
    integers, scales = np.empty((3, 4), np.int8), np.empty(3, np.float16)
    feedback, costs = np.zeros((4, 4), np.float32), np.ones(4, np.float32)
    assert not kernels.round_compensated(values, values, feedback, costs, (8.0,), integers, scales)


TINIEST = np.finfo(np.float16).smallest_subnormal
