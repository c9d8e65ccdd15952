"""The loops that every weight passes through: compiled where `setup` could, else numpy.

Both give the same bits. `kernels.c` is faster because a row stays in the cache through all steps;
ctypes releases Python's lock, so the threads run side by side.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import numpy as np

INT8_MAX = 127  # symmetric: -128 is not used, as the TFLite quantisation specification asks
_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(sys.prefix) / "kernels.so"))
    except OSError:  # no C compiler when setup ran
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.widen_bf16.argtypes = [pointer, pointer, size]
    library.widen_bf16.restype = None
    for pack in (library.pack_int8_float32, library.pack_int8_bf16):
        pack.argtypes = [pointer, size, size, pointer, pointer]
        pack.restype = ctypes.c_int
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


def pack_int8(rows: np.ndarray, packed: np.ndarray, scales: np.ndarray) -> bool:
    """Symmetric per-row int8: `scale = max|w| / 127`, `q = round(w * (1 / scale))`, ties to even.

    Source: TFLite 8-bit quantisation specification, per-axis weights. A scale is at least the
    smallest normal number: a row of zeros has none of its own, and XNNPACK refuses 0.

    Args:
        rows: float32, or uint16 for BF16, `(n, columns)`, contiguous; may be overwritten.
        packed: int8 `(n, columns)`, written.
        scales: float32 `(n,)`, written.

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
        of_float32 = rows.dtype == np.float32
        pack = library.pack_int8_float32 if of_float32 else library.pack_int8_bf16
        return bool(pack(rows.ctypes.data, *rows.shape, packed.ctypes.data, scales.ctypes.data))
    if rows.dtype == np.uint16:
        stored, rows = rows, np.empty(rows.shape, np.float32)
        widen_bf16(stored.reshape(-1), rows.reshape(-1))
    peak = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # NaN spreads through both
    if not np.isfinite(peak).all():
        return False
    np.maximum(peak / np.float32(INT8_MAX), _SMALLEST_NORMAL, out=scales)
    np.multiply(rows, (np.float32(1) / scales)[:, None], out=rows)
    np.rint(rows, out=rows)
    np.copyto(packed, rows, casting="unsafe")
    return True
