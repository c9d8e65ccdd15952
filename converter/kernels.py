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


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    # What ./setup compiled, or what a wheel brought (as kernels.so, it would be this very module).
    for path in (Path(sys.prefix) / "kernels.so", Path(__file__).with_name("libkernels.so")):
        with contextlib.suppress(OSError):  # there was no C compiler
            return load(path)
    return None


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
    return library


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
