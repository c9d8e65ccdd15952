"""Palettes against exact dynamic programming, and the compiled loops against numpy's."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from converter import kernels
from converter.checkpoint.gguf import open_gguf
from converter.compile_kernels import compile_kernels
from converter.errors import OptionError, UnsupportedError
from converter.weights.palettes import Palette, TablePalette
from converter.weights.row_format import ValueRangeError

BITS = (1, 2, 3, 4, 6, 8)
RNG = np.random.default_rng


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    values = RNG(seed).standard_normal((rows, columns)).astype(np.float32)
    return values * np.float32(0.02)


def truncated(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As BF16, stored as uint16, and the same in float32."""
    stored = (rows.view(np.uint32) >> 16).astype(np.uint16)
    return stored, (stored.astype(np.uint32) << 16).view(np.float32)


def indices_of(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    stream = "".join(f"{byte:08b}"[::-1] for byte in packed)
    assert set(stream[count * bits :]) <= {"0"}
    return np.array([int(stream[i : i + bits][::-1], 2) for i in range(0, count * bits, bits)])


def unpacked(
    palette: Palette, packed: np.ndarray, tables: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """The matrix that is read, float64."""
    indices = indices_of(packed, palette.bits, shape[0] * shape[1]).reshape(len(tables), -1)
    return np.take_along_axis(tables.astype(np.float64), indices, axis=1).reshape(shape)


def least_error(values: np.ndarray, costs: np.ndarray, cells: int) -> float:
    """The error of the best `cells` centres, exactly: dynamic programming over distinct values.

    The best first value of the last cell does not decrease with its last value, so that all rows
    of the table are found by halving.
    """
    distinct, places = np.unique(values.astype(np.float64), return_inverse=True)
    if len(distinct) <= cells:
        return 0.0
    weights = np.bincount(places.reshape(-1), costs)
    distinct = distinct - distinct.mean()
    mass = np.concatenate([[0], np.cumsum(weights)])
    moment = np.concatenate([[0], np.cumsum(weights * distinct)])
    gain = np.concatenate([[0], moment[1:] ** 2 / mass[1:]])
    for cell in range(2, cells + 1):
        best = np.full(len(gain), -np.inf)
        pieces = [(cell, len(distinct), cell - 1, len(distinct) - 1)]
        while pieces:
            low, high, first, last = pieces.pop()
            if low > high:
                continue
            end = (low + high) // 2
            starts = np.arange(first, min(last, end - 1) + 1)
            found = gain[starts] + (moment[end] - moment[starts]) ** 2 / (mass[end] - mass[starts])
            start = int(starts[found.argmax()])
            best[end] = found.max()
            pieces += [(low, end - 1, first, start), (end + 1, high, start, last)]
        gain = best
    return float((weights * distinct**2).sum() - gain[-1])


def excess(palette: Palette, rows: np.ndarray, importance: np.ndarray | None = None) -> float:
    """How much larger the squared error is than the least there is."""
    read = unpacked(palette, *palette.pack(rows, importance=importance), rows.shape)
    costs = np.broadcast_to(
        1.0 if importance is None else importance.astype(np.float64), rows.shape
    )
    least = sum(
        least_error(part.reshape(-1), cost.reshape(-1), 1 << palette.bits)
        for part, cost in zip(
            np.split(rows, len(rows) // palette.group),
            np.split(costs, len(rows) // palette.group),
            strict=True,
        )
    )
    return float((costs * (read - rows) ** 2).sum() / least) - 1


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compiled for processors of which nothing is known."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", "cc -DPORTABLE")
        assert compile_kernels(library)
    return kernels.load(library)


@pytest.fixture(scope="module")
def gemma(gemma3_gguf: Path) -> np.ndarray:
    """Rows of a real matrix."""
    with open_gguf(gemma3_gguf) as checkpoint:
        return checkpoint.read_rows("blk.10.attn_q.weight", 0, 8).copy()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_the_error_is_nearly_the_least(bits: int, gemma: np.ndarray) -> None:
    rough = RNG(bits).standard_t(3, (8, 256)).astype(np.float32)  # with long tails
    for rows in (truncated(normal(8, 512))[1], rough, gemma):
        assert -1e-9 < excess(Palette(bits, 8), rows) < 0.005


def test_the_error_of_many_centres_is_nearly_the_least(gemma: np.ndarray) -> None:
    for rows in (truncated(normal(8, 256))[1], gemma[:2]):
        assert excess(Palette(8, len(rows)), rows) < 0.01


def test_columns_that_matter_are_nearer() -> None:
    rows = normal(8, 256)
    importance = RNG(1).exponential(size=256).astype(np.float32) ** 3 + np.float32(1e-3)
    assert -1e-6 < excess(Palette(4), rows, importance) < 0.005
    plain = Palette(4).pack(rows)
    alike = Palette(4).pack(rows, importance=np.full(256, 7, np.float32))
    for ours, theirs in zip(plain, alike, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bits", BITS)
def test_few_values_are_met_exactly(bits: int) -> None:
    """As they are in order, the last once more in what is left; -0 is 0."""
    few = RNG(bits).permutation(np.arange(1 << bits) - (1 << bits) // 2)[: max(2, (1 << bits) - 1)]
    rows = RNG(0).choice(few, (4, 1024)).astype(np.float32) * np.float32(2**-24)  # subnormal
    rows[rows == 0] *= -1
    packed, tables = Palette(bits, 4).pack(rows)
    read = unpacked(Palette(bits, 4), packed, tables, rows.shape)
    np.testing.assert_array_equal(read, rows)
    assert (np.diff(tables) >= 0).all()
    assert not np.signbit(tables[tables == 0]).any()
    constant = np.full((2, 3), 0.5, np.float32)
    packed, tables = Palette(bits, 1).pack(constant)
    assert not packed.any()
    assert (tables == 0.5).all()


def test_every_value_has_the_nearest_and_of_two_the_lower() -> None:
    rows = np.array([[0.0, 1.0, 2.0, 1.5, 0.5, -9.0, 9.0, 3.0]], np.float32)
    table = np.array([0, 1, 2, 4], np.float16)
    packed, _ = TablePalette(Palette(2), table).pack(rows)
    assert indices_of(packed, 2, 8).tolist() == [0, 1, 2, 1, 0, 0, 3, 2]
    rows = normal(8, 300)
    packed, tables = Palette(3).pack(rows)
    halves = rows.astype(np.float16).astype(np.float64).reshape(-1)
    distance = np.abs(halves[:, None] - tables[0].astype(np.float64))
    np.testing.assert_array_equal(indices_of(packed, 3, rows.size), distance.argmin(axis=1))


@pytest.mark.parametrize("bits", BITS)
def test_a_block_does_not_change_with_what_is_beside_it(bits: int) -> None:
    """Whole groups in blocks of any size, in any number of threads; columns fill no whole bytes."""
    palette, rows = Palette(bits, 2), normal(64, 53)
    importance = RNG(2).random(53).astype(np.float32) + np.float32(0.1)
    packed, tables = palette.pack(rows, importance=importance)
    step = palette.row_step(53)
    assert step == {1: 8, 2: 4, 3: 8, 4: 2, 6: 4, 8: 2}[bits]
    blocks = [np.ascontiguousarray(rows[i : i + step]) for i in range(0, 64, step)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda block: palette.pack(block, importance=importance), blocks))
    np.testing.assert_array_equal(np.concatenate([block for block, _ in found]), packed)
    np.testing.assert_array_equal(np.concatenate([table for _, table in found]), tables)


def test_a_table_for_a_tensor_is_that_of_its_rows_in_one_group() -> None:
    palette, rows = Palette(4, 0), normal(24, 100)
    importance = RNG(3).random(100).astype(np.float32) + np.float32(0.1)
    for costs in (None, importance):
        packed, (table,) = palette.pack(rows, importance=costs)
        settled, found = palette.settled((rows[16:], rows[:7], rows[7:16]), costs)
        np.testing.assert_array_equal(found, table)
        blocks = [settled.pack(rows[i : i + 8])[0] for i in (0, 8, 16)]
        np.testing.assert_array_equal(np.concatenate(blocks), packed)


def all_results(rows: np.ndarray, group: int, importance: np.ndarray | None) -> list[np.ndarray]:
    found = []
    for bits in BITS:
        found += Palette(bits, group).pack(rows, importance=importance)
        settled, table = Palette(bits, 0).settled([rows], importance)
        found += [table, settled.pack(rows)[0]]
    return found


@pytest.mark.parametrize(
    ("rows", "group"),
    [
        pytest.param(normal(8, 300), 4, id="normal"),
        pytest.param(RNG(0).standard_t(2, (4, 301)).astype(np.float32), 2, id="long tails"),
        pytest.param(RNG(1).integers(-9, 9, (4, 99)).astype(np.float32), 2, id="ties"),
        pytest.param(normal(4, 99) * np.float32(1e-5), 4, id="subnormal"),
        pytest.param(
            np.append(normal(3, 300), np.zeros((3, 300)), 0).astype(np.float32), 3, id="0"
        ),
        pytest.param(truncated(normal(4, 300) * np.float32(1e5))[0], 2, id="BF16"),
        pytest.param(np.empty((0, 8), np.float32), 2, id="nothing"),
    ],
)
def test_all_bodies_give_the_same_bytes(
    rows: np.ndarray, group: int, portable: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    importance = RNG(4).random(rows.shape[1]).astype(np.float32) + np.float32(0.1)
    for costs in (None, importance):
        with monkeypatch.context() as patch:
            compiled = all_results(rows, group, costs)
            patch.setattr(kernels, "_compiled", lambda: portable)
            others = all_results(rows, group, costs)
            patch.setattr(kernels, "_compiled", lambda: None)
            numpy = all_results(rows, group, costs)
        for each in zip(compiled, others, numpy, strict=True):
            np.testing.assert_array_equal(each[0], each[1])
            np.testing.assert_array_equal(each[0], each[2])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520.0])
def test_what_float16_cannot_hold_is_refused(
    bad: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    rows = np.ones((2, 9), np.float32)
    rows[1, 4] = np.nextafter(np.float32(65520), np.float32(0))
    table = Palette(1, 2).pack(rows)[1][0]
    assert table.tolist() == [1, 65504]
    rows[1, 4] = bad
    for refused in (
        lambda: Palette(4, 2).pack(rows),
        lambda: TablePalette(Palette(1, 0), table).pack(rows),
        lambda: Palette(1, 0).settled([rows], None),
    ):
        with pytest.raises(ValueRangeError, match="NaN, infinite values, or some beyond float16"):
            refused()


def test_groups_that_do_not_divide_are_refused_with_those_that_do() -> None:
    assert Palette(4).tables_shape("head", 16) == (2, 16)
    assert Palette(6, 0).tables_shape("head", 17) == (1, 64)
    assert Palette(6).index_bytes(3, 5) == 12
    with pytest.raises(UnsupportedError) as error:
        Palette(4).tables_shape("head.3", 16388)
    assert str(error.value) == (
        "head.3, has 16388 rows, which groups of 8 do not divide, "
        "choose groups of 1, 2, 4, 17, 34 rows, or 0 for one table"
    )


@pytest.mark.parametrize(("bits", "group"), [(5, 8), (0, 8), (16, 0), (4, -1)])
def test_what_core_ml_does_not_have_is_refused(bits: int, group: int) -> None:
    with pytest.raises(OptionError, match="choose"):
        Palette(bits, group)
