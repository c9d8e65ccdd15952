"""Reads weights back from a bundle, as the runtime understands them."""

from __future__ import annotations

import numpy as np

from converter.base import Plan
from converter.tflite.graph import DType
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import Format

_FLOATS = {DType.FLOAT16: np.float16, DType.FLOAT32: np.float32}


def int4_values(packed: np.ndarray) -> np.ndarray:
    """`(..., n)` bytes -> `(..., 2 n)` from -8 to 7; the lower half of a byte is first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).reshape(*packed.shape[:-1], -1)


def stored_matrix(content: bytes, plan: Plan, weight: PlannedWeight) -> np.ndarray:
    """A matrix as the file holds it, in float32."""
    rows, columns = weight.shape
    form, count = weight.format, rows * columns
    assert isinstance(form, Format)
    dtype, block = form.dtype, form.block
    if block is not None:
        assert weight.scales_offset is not None
        packed = np.frombuffer(content, np.uint8, count // 2, weight.offset)
        scales = np.frombuffer(content, np.float16, count // block, weight.scales_offset)
        values = int4_values(packed).reshape(-1, block) * scales.astype(np.float32)[:, None]
        return values.reshape(rows, columns)
    if form.has_rest:
        assert weight.rest is not None
        most = int4_values(np.frombuffer(content, np.uint8, count // 2, weight.offset))
        rest = np.frombuffer(content, np.uint8, count // 4, weight.rest.offset)
        twos = (rest[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.int8)
        twos = np.where(twos > 1, twos - 4, twos).reshape(rows, columns)
        found = most.reshape(rows, columns) * plan.model.scales(weight.path)[:, None]
        return found + twos * plan.model.scales(f"{weight.path}.rest")[:, None]
    if dtype is DType.INT8:
        values = np.frombuffer(content, np.int8, count, weight.offset).reshape(rows, columns)
        return values * plan.model.scales(weight.path)[:, None]
    found = np.frombuffer(content, _FLOATS[dtype], count, weight.offset)
    return found.reshape(rows, columns).astype(np.float32)
