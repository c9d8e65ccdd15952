"""The loops that every weight passes through: compiled where there was a compiler, else numpy.

Both give the same bits. `kernels.c` is faster because a row stays in the cache through all steps;
ctypes releases Python's lock, so the threads run side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

INT8_MAX = 127  # symmetric: -128 is not used, as the TFLite quantisation specification asks
SMALLEST_NORMAL = np.finfo(np.float32).tiny
SMALLEST_HALF = np.finfo(np.float16).smallest_subnormal
INT4_MIN, INT4_MAX = -8, 7
# Columns whose products float32 adds up exactly: 127 * 127 * 1024 < 2^24.
_EXACT_COLUMNS = 1024
_LANES = 8  # in which kernels.c adds up

PALETTE_BITS = (1, 2, 3, 4, 6, 8)
KEYS = 1 << 16  # of float16 values
_ZERO_KEY = 1 << 15
_LARGEST_COST = 1 << 24
# As in kernels.c.
_START_ROUNDS = 4
_PLACES = 16
_PASSES = 3
_LEVELS = range(1, 17)
_IMPOSSIBLE = -1e300


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    # What ./setup compiled, or what a wheel brought (as kernels.so, it would be this very module).
    for path in (Path(sys.prefix) / "kernels.so", Path(__file__).with_name("libkernels.so")):
        with contextlib.suppress(OSError):  # there was no C compiler
            return load(path)
    return None


def is_compiled() -> bool:
    """Whether there is more than numpy."""
    return _compiled() is not None


def load(path: Path) -> ctypes.CDLL:
    """What kernels.c was compiled to.

    Raises:
        OSError: it is not there, or for another system.
    """
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.widen_bf16.argtypes = [pointer, pointer, size]
    library.widen_bf16.restype = None
    library.pack_int8.argtypes = [pointer, ctypes.c_int, pointer, size, size, pointer, pointer]
    library.pack_int8.restype = ctypes.c_int
    library.multiply_int8.argtypes = [
        *[pointer] * 2,
        size,
        *[pointer] * 2,
        *[size] * 2,
        pointer,
        size,
    ]
    library.multiply_int8.restype = None
    library.pack_int4.argtypes = [*[pointer] * 2, *[size] * 3, pointer, size, *[pointer] * 3]
    library.pack_int4.restype = ctypes.c_int
    library.round_compensated.argtypes = [
        *[pointer] * 2, *[size] * 2, *[pointer] * 3, size, *[pointer] * 2
    ]  # fmt: skip
    library.round_compensated.restype = ctypes.c_int
    library.round_rows.argtypes = [
        *[pointer] * 2, *[size] * 2, *[pointer] * 2, *[ctypes.c_float] * 2, pointer
    ]  # fmt: skip
    library.round_rows.restype = None
    flag, bits = ctypes.c_int, ctypes.c_uint
    library.count_halves.argtypes = [pointer, flag, size, size, pointer, pointer]
    library.count_halves.restype = flag
    library.find_palette.argtypes = [pointer, bits, pointer, pointer]
    library.find_palette.restype = None
    library.assign_palette.argtypes = [pointer, flag, size, bits, *[pointer] * 3]
    library.assign_palette.restype = flag
    library.palettize.argtypes = [pointer, flag, *[size] * 3, bits, *[pointer] * 4]
    library.palettize.restype = flag
    library.give_back_zeros.argtypes = [pointer, size, size]
    library.give_back_zeros.restype = size
    return library


def give_back_zeros(begin: int, pages: int, page_size: int) -> int:
    """Give pages of this process that hold zeros alone back to the system; how many bytes.

    Read again, they are zeros as before, and written to, they are memory again. Python's lock is
    held meanwhile, so no thread of ours can write between the look at a page and its end; that no
    other thread does is the caller's to know.

    Args:
        begin: the first page's address, in private memory that is no file's.
    """
    library = _compiled()
    assert library is not None, "ask is_compiled()"
    with_lock = ctypes.PyDLL(library._name, handle=library._handle)
    with_lock.give_back_zeros.argtypes = library.give_back_zeros.argtypes
    with_lock.give_back_zeros.restype = library.give_back_zeros.restype
    return int(with_lock.give_back_zeros(begin, pages, page_size))


def widen_bf16(stored: np.ndarray, values: np.ndarray) -> None:
    """BF16 as uint16 `(n,)` to float32 `(n,)`: the upper half of the bits; exact, NaN included."""
    assert stored.dtype == np.uint16
    assert values.dtype == np.float32
    assert stored.size == values.size
    if (library := _compiled()) is not None:
        library.widen_bf16(stored.ctypes.data, values.ctypes.data, stored.size)
    else:
        np.left_shift(stored, 16, out=values.view(np.uint32), dtype=np.uint32)


def pack_int8(
    rows: np.ndarray, packed: np.ndarray, scales: np.ndarray, factors: np.ndarray | None = None
) -> bool:
    """Symmetric per-row int8: `scale = max|w| / 127`, `q = round(w * (1 / scale))`, ties to even.

    Source: TFLite 8-bit quantisation specification, per-axis weights. A scale is at least the
    smallest normal number: a row of zeros has none of its own, and XNNPACK refuses 0.

    Args:
        rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
        packed: int8 `(n, columns)`, written.
        scales: float32 `(n,)`, written.
        factors: what columns are multiplied with first, float32 `(columns,)`, contiguous.

    Returns:
        False, with the results undefined, where a value is NaN or infinite.
    """
    assert rows.dtype in (np.float32, np.uint16)
    assert packed.dtype == np.int8
    assert scales.dtype == np.float32
    assert rows.flags.c_contiguous
    assert packed.flags.c_contiguous
    assert rows.shape == packed.shape == (scales.size, rows.shape[1])
    if (library := _compiled()) is not None:
        return bool(
            library.pack_int8(
                rows.ctypes.data,
                rows.dtype == np.uint16,
                _address(factors, rows.shape[1]),
                *rows.shape,
                packed.ctypes.data,
                scales.ctypes.data,
            )
        )
    if rows.dtype == np.uint16:
        stored, rows = rows, np.empty(rows.shape, np.float32)
        widen_bf16(stored.reshape(-1), rows.reshape(-1))
    if factors is not None:
        rows = rows * factors
    peak = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # NaN spreads through both
    if not np.isfinite(peak).all():
        return False
    np.maximum(peak / np.float32(INT8_MAX), SMALLEST_NORMAL, out=scales)
    integers = rows * (np.float32(1) / scales)[:, None]
    np.rint(integers, out=integers)
    np.copyto(packed, integers, casting="unsafe")
    return True


def pack_int4(
    rows: np.ndarray,
    block: int,
    reaches: Sequence[float],
    importance: np.ndarray,
    packed: np.ndarray,
    scales: np.ndarray,
    factors: np.ndarray | None = None,
) -> bool:
    """Symmetric int4 with a float16 scale for each block: `q = round(w / scale)` in -8 to 7.

    The scale of least squared error, weighted with the columns' importance `m`, is searched: each
    of `reaches` is where the block's largest magnitude is taken to; the q that follow have one best
    scale, `sum(m w q) / sum(m q q)`. The best of these is rounded to float16, and the q are found
    anew for it. A block that lies on such a grid
    already, as those of a GGUF may, is met exactly. Without `reaches`, the scale is
    `max|w| / 7`.

    Args:
        rows: float32 `(n, columns)`, contiguous; may be overwritten.
        block: columns that share a scale; a divisor of `columns` and a multiple of 8.
        importance: float32 `(columns,)`, contiguous, positive.
        packed: uint8 `(n, columns / 2)`, written: two values a byte, the first in its lower half.
        scales: float16 `(n, columns / block)`, written; at least 2^-24, as XNNPACK refuses 0.
        factors: what columns are multiplied with first, float32 `(columns,)`, contiguous.

    Returns:
        False, with the results undefined, where a value is NaN or infinite, or a scale too large
        for float16.
    """
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.shape[1] % block == block % _LANES == 0
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    assert packed.size * 2 == rows.size
    assert scales.dtype == np.float16
    assert scales.flags.c_contiguous
    assert scales.size * block == rows.size
    assert importance.dtype == np.float32
    assert importance.flags.c_contiguous
    assert importance.shape == (rows.shape[1],)
    candidates = np.array(reaches, np.float32)
    if (library := _compiled()) is not None:
        return bool(
            library.pack_int4(
                rows.ctypes.data,
                _address(factors, rows.shape[1]),
                *rows.shape,
                block,
                candidates.ctypes.data,
                candidates.size,
                importance.ctypes.data,
                packed.ctypes.data,
                scales.ctypes.data,
            )
        )
    if factors is not None:
        rows *= factors
    blocks = rows.reshape(-1, block)
    peak = np.abs(blocks).max(axis=1)  # NaN spreads
    if not np.isfinite(peak).all():
        return False
    empty = peak < SMALLEST_NORMAL
    unit = np.float32(1) / np.where(empty, np.float32(1), peak)
    values = blocks * unit[:, None]
    costs = np.tile(importance.reshape(-1, block), (len(rows), 1))
    weighted = values * costs
    best = np.full(len(blocks), -1, np.float32)
    factor = np.full(len(blocks), np.float32(1) / np.float32(7))
    for reach in candidates:
        q = _int4(values * reach)
        product, square = _lane_sum(weighted * q), _lane_sum(costs * q * q)
        square[empty] = 1
        gain = product * product / square
        better = gain > best
        best[better], factor[better] = gain[better], (product / square)[better]
    with np.errstate(over="ignore"):
        found = (peak * factor).astype(np.float16)
    if np.isinf(found).any():
        return False
    np.maximum(found, SMALLEST_HALF, out=scales.reshape(-1))
    q = _int4(blocks * (np.float32(1) / scales.reshape(-1).astype(np.float32))[:, None])
    q[empty] = 0
    halves = q.astype(np.int8).reshape((*packed.shape, 2)) & 15
    np.copyto(packed, halves[..., 0] | halves[..., 1] << 4, casting="unsafe")
    return True


def palettize(
    rows: np.ndarray,
    bits: int,
    group: int,
    packed: np.ndarray,
    tables: np.ndarray,
    importance: np.ndarray | None = None,
) -> bool:
    """Values as indices into tables of `2^bits` float16 numbers, one for each group of rows.

    A table is that of least squared error, or nearly: k-means in one dimension. Values count as
    float16, so that a group is some thousand distinct numbers x with weights w. The error of a cell
    of neighbours is `sum(w x x) - sum(w x)^2 / sum(w)`. Dynamic programming finds the cells of
    least error among `_PLACES` places for each cut between two of them; from a start by Panter and
    Dite's density, this is repeated with places that are ever closer. The centres are rounded to
    float16, then the nearest is found for each value, the lower of two. At most `2^bits` distinct
    values are the table as they are, and the last of them fills it. Excess over the optimum:
    benchmarks/README.md.

    Args:
        rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
        bits: one of `PALETTE_BITS`.
        group: rows that share a table; a divisor of n.
        packed: uint8 `(ceil(n * columns * bits / 8),)`, written: a stream of bits, the first index
            in the lowest.
        tables: float16 `(n / group, 2^bits)`, written, in ascending order.
        importance: what a squared error in each column costs, float32 `(columns,)`, positive;
            rounded to whole parts of the largest / 2^24, but not to 0. None where all are alike.

    Returns:
        False, with the results undefined, where a value is NaN, infinite or too large for float16.
    """
    _check_packed(rows, bits, packed)
    assert len(rows) % group == 0
    assert tables.dtype == np.float16
    assert tables.flags.c_contiguous
    assert tables.shape == (len(rows) // group, 1 << bits)
    costs = _costs(importance, rows.shape[1])
    if (library := _compiled()) is not None:
        scratch = _scratch(library)  # lives as long as it is used
        return bool(
            library.palettize(
                rows.ctypes.data,
                rows.dtype == np.uint16,
                len(tables),
                group,
                rows.shape[1],
                bits,
                None if costs is None else costs.ctypes.data,
                packed.ctypes.data,
                tables.ctypes.data,
                scratch.ctypes.data,
            )
        )
    keys = _keys(rows)
    if keys is None:
        return False
    keys = keys.reshape(len(tables), group * rows.shape[1])
    weights = None if costs is None else np.tile(costs, group)
    _find_tables([_distinct(group_keys, weights) for group_keys in keys], tables)
    indices = [_nearest(*each) for each in zip(keys, tables, strict=True)]
    packed[:] = _stream(np.array(indices, np.uint8).reshape(-1), bits)
    return True


def count_halves(
    rows: np.ndarray, histogram: np.ndarray, importance: np.ndarray | None = None
) -> bool:
    """Adds rows to the histogram of a tensor, for `find_palette`; in any order.

    Args:
        rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
        histogram: uint64 `(KEYS,)`; zeros before the first rows.
        importance: see `palettize`.

    Returns:
        False where a value is NaN, infinite or too large for float16.
    """
    assert rows.dtype in (np.float32, np.uint16)
    assert rows.flags.c_contiguous
    assert histogram.dtype == np.uint64
    assert histogram.shape == (KEYS,)
    costs = _costs(importance, rows.shape[1])
    if (library := _compiled()) is not None:
        return bool(
            library.count_halves(
                rows.ctypes.data,
                rows.dtype == np.uint16,
                *rows.shape,
                None if costs is None else costs.ctypes.data,
                histogram.ctypes.data,
            )
        )
    keys = _keys(rows)
    if keys is None:
        return False
    weights = None if costs is None else np.tile(costs, len(rows))
    distinct, counts = _distinct(keys.reshape(-1), weights)
    histogram[distinct] += counts
    return True


def find_palette(histogram: np.ndarray, table: np.ndarray) -> None:
    """The table for a whole tensor, as `palettize` finds it for a group.

    Args:
        histogram: uint64 `(KEYS,)`, of `count_halves`.
        table: float16 `(2^bits,)`, written, in ascending order.
    """
    assert histogram.dtype == np.uint64
    assert histogram.shape == (KEYS,)
    assert table.dtype == np.float16
    assert table.flags.c_contiguous
    if (library := _compiled()) is not None:
        scratch = _scratch(library)
        library.find_palette(
            histogram.ctypes.data, _bits(table), table.ctypes.data, scratch.ctypes.data
        )
        return
    distinct = np.flatnonzero(histogram)
    _find_tables([(distinct, histogram[distinct])], table[None])


def assign_palette(rows: np.ndarray, table: np.ndarray, packed: np.ndarray) -> bool:
    """Values as indices into a table, as `palettize` has them.

    Args:
        rows: float32, or uint16 for BF16, `(n, columns)`, contiguous.
        table: float16 `(2^bits,)`, in ascending order.
        packed: uint8 `(ceil(n * columns * bits / 8),)`, written.

    Returns:
        False, with the result undefined, where a value is NaN, infinite or too large for float16.
    """
    bits = _bits(table)
    _check_packed(rows, bits, packed)
    assert table.dtype == np.float16
    assert table.flags.c_contiguous
    if (library := _compiled()) is not None:
        scratch = _scratch(library)
        return bool(
            library.assign_palette(
                rows.ctypes.data,
                rows.dtype == np.uint16,
                rows.size,
                bits,
                table.ctypes.data,
                packed.ctypes.data,
                scratch.ctypes.data,
            )
        )
    keys = _keys(rows)
    if keys is None:
        return False
    packed[:] = _stream(_nearest(keys.reshape(-1), table), bits)
    return True


def round_compensated(
    values: np.ndarray,
    wanted: np.ndarray,
    feedback: np.ndarray,
    costs: np.ndarray,
    reaches: Sequence[float],
    integers: np.ndarray,
    scales: np.ndarray,
) -> bool:
    """Blocks of int4, one a row, in which each column makes up for the errors of those before.

    For each of a row's `reaches` the scale is `half(max|wanted| / reach)`, and column c becomes
    `q = clamp(round(w * (1 / scale)), -8, 7)`, ties to even, of `w = wanted + sum over earlier
    columns of (value - q * scale) * feedback`. The reach of the least `sum of (w - q * scale)^2 *
    cost` counts, the first of several; each operation is rounded to float32.

    Args:
        values: what errors are counted from, float32 `(n, columns)`, contiguous; as `wanted`.
        wanted: the same, and what other blocks' errors ask of it.
        feedback: float32 `(columns, columns)`, contiguous; what stands above the diagonal counts.
        costs: float32 `(columns,)`.
        integers: int8 `(n, columns)`, written.
        scales: float16 `(n,)`, written; at least the smallest positive one.

    Returns:
        False, with the results undefined, where a scale is infinite in float16.
    """
    assert values.shape == wanted.shape == integers.shape == (scales.size, costs.size)
    assert feedback.shape == (costs.size, costs.size)
    assert costs.size <= 256
    tried = np.array(reaches, np.float32)
    for each in (values, wanted, feedback, costs, tried):
        assert each.dtype == np.float32
        assert each.flags.c_contiguous
    assert (integers.dtype, scales.dtype) == (np.int8, np.float16)
    if (library := _compiled()) is not None:
        arrays = [each.ctypes.data for each in (feedback, costs, tried)]
        of_values = [each.ctypes.data for each in (values, wanted)]
        results = [each.ctypes.data for each in (integers, scales)]
        found = library.round_compensated(*of_values, *values.shape, *arrays, tried.size, *results)
        return bool(found)
    peak = np.abs(wanted).max(axis=1)
    least = np.full(len(values), np.finfo(np.float32).max)
    integers[:] = 0
    for reach in tried:
        with np.errstate(over="ignore"):
            halves = np.maximum((peak / reach).astype(np.float16), SMALLEST_HALF)
        if np.isinf(halves).any():
            return False
        scale = halves.astype(np.float32)
        inverse = np.float32(1) / scale
        loss, now, steps = np.zeros(len(values), np.float32), wanted.copy(), np.empty_like(wanted)
        for c in range(costs.size):
            steps[:, c] = _int4(now[:, c] * inverse)
            rounded = steps[:, c] * scale
            short_of = now[:, c] - rounded
            loss += short_of * short_of * costs[c]
            error = values[:, c] - rounded
            now[:, c + 1 :] += error[:, None] * feedback[c, c + 1 :]
        better = loss < least
        least[better], scales[better] = loss[better], halves[better]
        integers[better] = steps[better]
    return True


def round_rows(
    values: np.ndarray,
    wanted: np.ndarray,
    feedback: np.ndarray,
    scales: np.ndarray,
    limits: tuple[int, int],
    integers: np.ndarray,
) -> None:
    """As `round_compensated`, with a scale for each row that is known, and integers of any range.

    Args:
        values, wanted, feedback: see there.
        scales: float32 `(n,)`.
        limits: the least and the largest integer.
        integers: int8 `(n, columns)`, written.
    """
    columns = values.shape[1]
    assert values.shape == wanted.shape == integers.shape == (scales.size, columns)
    assert feedback.shape == (columns, columns)
    assert columns <= 256
    for each in (values, wanted, feedback, scales):
        assert each.dtype == np.float32
        assert each.flags.c_contiguous
    assert integers.dtype == np.int8
    if (library := _compiled()) is not None:
        arrays = [each.ctypes.data for each in (feedback, scales)]
        of_values = [each.ctypes.data for each in (values, wanted)]
        library.round_rows(*of_values, *values.shape, *arrays, *limits, integers.ctypes.data)
        return
    now, inverse = wanted.copy(), np.float32(1) / scales
    for c in range(columns):
        steps = np.rint(np.clip(now[:, c] * inverse, *np.array(limits, np.float32)))
        integers[:, c] = steps
        error = values[:, c] - steps * scales
        now[:, c + 1 :] += error[:, None] * feedback[c, c + 1 :]


def multiply_int8(
    x: np.ndarray, x_scales: np.ndarray, rows: np.ndarray, scales: np.ndarray, product: np.ndarray
) -> None:
    """`(x @ rows.T) * scales * x_scales[:, None]`: exact sums of integers, scaled in float64.

    Args:
        x: int8 `(n, columns)` from -127 to 127, contiguous; n is a multiple of 4, and there are at
            most 2^17 columns.
        x_scales: float32 `(n,)`.
        rows: int8 `(m, columns)` from -127 to 127, contiguous.
        scales: float32 `(m,)`.
        product: float32 `(n, m)`, written; its rows are contiguous.
    """
    assert x.dtype == rows.dtype == np.int8
    assert x_scales.dtype == scales.dtype == product.dtype == np.float32
    assert x.flags.c_contiguous
    assert rows.flags.c_contiguous
    assert x.shape[1] == rows.shape[1] <= 1 << 17
    assert x.shape[0] % 4 == 0
    assert product.shape == (len(x), len(rows)) == (x_scales.size, scales.size)
    if (library := _compiled()) is not None:
        stride, width = product.strides
        assert width == product.itemsize
        library.multiply_int8(
            x.ctypes.data,
            x_scales.ctypes.data,
            len(x),
            rows.ctypes.data,
            scales.ctypes.data,
            *rows.shape,
            product.ctypes.data,
            stride // width,
        )
        return
    sums = np.zeros((len(rows), len(x)), np.int32)
    for start in range(0, x.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        found = rows[:, part].astype(np.float32) @ x[:, part].astype(np.float32).T
        sums += found.astype(np.int32)
    product[:] = (sums * scales[:, None] * x_scales).T  # of int32 and float32, numpy makes float64


def _address(factors: np.ndarray | None, columns: int) -> int | None:
    """Where factors stand in memory; None where there are none."""
    if factors is None:
        return None
    assert factors.dtype == np.float32
    assert factors.flags.c_contiguous
    assert factors.shape == (columns,)
    return factors.ctypes.data


def _int4(values: np.ndarray) -> np.ndarray:
    """The nearest integers from -8 to 7, float32, ties to even."""
    return np.rint(np.clip(values, np.float32(INT4_MIN), np.float32(INT4_MAX)))


def _lane_sum(values: np.ndarray) -> np.ndarray:
    """Sums over the last axis in the order of kernels.c, `(n,)`."""
    lanes = np.zeros((len(values), _LANES), np.float32)
    for start in range(0, values.shape[1], _LANES):
        lanes += values[:, start : start + _LANES]
    lanes = lanes[:, :4] + lanes[:, 4:]
    lanes = lanes[:, :2] + lanes[:, 2:]
    return lanes[:, 0] + lanes[:, 1]


def _check_packed(rows: np.ndarray, bits: int, packed: np.ndarray) -> None:
    assert bits in PALETTE_BITS
    assert rows.dtype in (np.float32, np.uint16)
    assert rows.flags.c_contiguous
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    assert packed.shape == (-(-rows.size * bits // 8),)


def _bits(table: np.ndarray) -> int:
    """Those of an index into it."""
    return table.size.bit_length() - 1


def _scratch(library: ctypes.CDLL) -> np.ndarray:
    """Room for what kernels.c keeps of one group, all zeros."""
    return np.zeros(ctypes.c_size_t.in_dll(library, "palettes_bytes").value, np.uint8)


def _costs(importance: np.ndarray | None, columns: int) -> np.ndarray | None:
    """Importance as integers, whose sums are exact in any order: uint32 `(columns,)`."""
    if importance is None:
        return None
    assert importance.dtype == np.float32
    assert importance.shape == (columns,)
    parts = np.rint(importance * (_LARGEST_COST / np.float64(importance.max())))
    return np.maximum(parts, 1).astype(np.uint32)


def _keys(rows: np.ndarray) -> np.ndarray | None:
    """Integers that are ordered as the values are in float16; None where there is no such value."""
    if rows.dtype == np.uint16:
        stored, rows = rows, np.empty(rows.shape, np.float32)
        widen_bf16(stored.reshape(-1), rows.reshape(-1))
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    if not np.isfinite(halves).all():
        return None
    found = halves.view(np.int16).astype(np.int32)
    return np.where(found < 0, -(found & 0x7FFF), found) + _ZERO_KEY


def _values(keys: np.ndarray) -> np.ndarray:
    """The float32 values of keys."""
    signed = keys.astype(np.int32) - _ZERO_KEY
    magnitudes = np.abs(signed).astype(np.uint16).view(np.float16).astype(np.float32)
    return np.where(signed < 0, -magnitudes, magnitudes)


def _distinct(keys: np.ndarray, costs: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys `(n,)`, in order, and what each weighs, uint64 `(n,)`."""
    if costs is None:
        distinct, counts = np.unique(keys, return_counts=True)
        return distinct, counts.astype(np.uint64)
    distinct, places = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(places.reshape(-1), costs).astype(np.uint64)


def _find_tables(groups: list[tuple[np.ndarray, np.ndarray]], tables: np.ndarray) -> None:
    """Tables for groups of distinct keys and weights, step by step as `find_table` in kernels.c."""
    cells = tables.shape[1]
    many, masses, moments, cuts, start = [], [], [], [], 0
    for i, (keys, weights) in enumerate(groups):
        values = _values(keys)
        if len(keys) <= cells:
            tables[i] = 0
            tables[i, : len(keys)] = values
            tables[i, len(keys) :] = values[-1:] if len(keys) else 0
            continue
        sums = np.zeros((2, len(keys) + 1))
        mass = weights.astype(np.float64)
        np.cumsum(mass, out=sums[0, 1:])
        np.cumsum(mass * values, out=sums[1, 1:])
        many.append(i)
        cuts.append(start + _start_cells(values, np.diff(sums[0]), cells))
        masses.append(sums[0])
        moments.append(sums[1])
        start += len(keys) + 1
    if many:
        mass, moment, cut = np.concatenate(masses), np.concatenate(moments), np.array(cuts)
        _move_all_cuts(mass, moment, cut)
        centres = np.diff(moment[cut], axis=1) / np.diff(mass[cut], axis=1)
        tables[many] = centres.astype(np.float32).astype(np.float16) + np.float16(0)  # no -0


def _start_cells(values: np.ndarray, mass: np.ndarray, cells: int) -> np.ndarray:
    """Where the cells begin at first, and the last ends: `(cells + 1,)`."""
    around = np.concatenate([values[:1], values, values[-1:]])
    width = around[2:] - around[:-2]
    cubes = mass.astype(np.float32) * width * width
    density = (cubes.view(np.uint32) // 3 + np.uint32(0x2A5137A0)).view(np.float32)
    share = np.cumsum(density, dtype=np.float64)
    for _ in range(1, _START_ROUNDS):
        share = np.cumsum(np.minimum(density, np.float32(share[-1] / cells)), dtype=np.float64)
    cell = np.arange(1, cells)
    found = np.searchsorted(share, share[-1] * cell / cells)
    first = np.maximum(np.maximum.accumulate(found - cell), 0) + cell
    return np.array([0, *np.minimum(first, len(values) - cells + cell), len(values)])


def _move_all_cuts(mass: np.ndarray, moment: np.ndarray, cuts: np.ndarray) -> None:
    """Moves the cuts `(groups, cells + 1)`, in place, to where the error is least."""
    for level in _LEVELS:
        moved = [
            _move_cuts(mass, moment, cuts, level, i % 2 - _PLACES // 2) for i in range(_PASSES)
        ]
        if not any(moved[1:]) and np.diff(cuts, axis=1).max() <= 1 << level:
            return


def _move_cuts(
    mass: np.ndarray, moment: np.ndarray, cuts: np.ndarray, level: int, first: int
) -> bool:
    groups, cells = len(cuts), cuts.shape[1] - 1
    steps = np.arange(first, first + _PLACES)
    places = np.empty((cells + 1, groups, _PLACES), np.int64)
    origins = np.empty((cells + 1, groups, _PLACES), np.int64)
    masses = np.repeat(mass[cuts[:, :1]], _PLACES, axis=1)
    moments = np.repeat(moment[cuts[:, :1]], _PLACES, axis=1)
    best = np.zeros((groups, _PLACES))
    for c in range(1, cells + 1):
        cut, start, end = cuts[:, c, None], cuts[:, :1], cuts[:, -1:]
        if c < cells:
            left, right = cut - cuts[:, c - 1, None], cuts[:, c + 1, None] - cut
            moves = steps * np.where(steps < 0, left, right) >> level
            moves = np.where(steps < 0, np.minimum(moves, steps), np.maximum(moves, steps))
            places[c] = np.clip(cut + moves, start + c, end - cells + c)
        else:
            places[c] = end
        masses, old_masses = mass[places[c]], masses
        moments, old_moments = moment[places[c]], moments
        m = masses[:, None] - old_masses[..., None]  # (groups, places before, places)
        s = moments[:, None] - old_moments[..., None]
        whole = m > 0
        scores = np.where(whole, s * s / np.where(whole, m, 1) + best[..., None], _IMPOSSIBLE)
        origins[c] = scores.argmax(axis=1)
        best = np.take_along_axis(scores, origins[c][:, None], axis=1)[:, 0]
    group, place, before = np.arange(groups), origins[cells][:, 0], cuts.copy()
    for c in range(cells - 1, 0, -1):
        cuts[:, c] = places[c][group, place]
        place = origins[c][group, place]
    return not np.array_equal(before, cuts)


def _nearest(keys: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The indices of the nearest in a table, the lower of two: uint8, as keys."""
    centres = table.astype(np.float64)
    ends = centres[:-1] + centres[1:]  # twice
    return np.searchsorted(ends, 2 * _values(keys).astype(np.float64)).astype(np.uint8)


def _stream(indices: np.ndarray, bits: int) -> np.ndarray:
    """So many bits of each, one after another, the first in the lowest."""
    planes = np.unpackbits(indices[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(planes, bitorder="little")
