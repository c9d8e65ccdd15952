"""Rows of a weight, out of a tensor that holds it among others or in another order.

A checkpoint's tensors and those of an adapter of the same format lie alike: what a family says of
the one (`WeightSource`) puts the other in order, too.
"""

from __future__ import annotations

import numpy as np

from converter.checkpoint.base import Checkpoint, room_for
from converter.families.tensors import WeightSource


def read_placed(
    checkpoint: Checkpoint,
    tensor: str,
    source: WeightSource,
    start: int,
    stop: int,
    buffer: np.ndarray | None = None,
    keep_bf16: bool = False,
) -> np.ndarray:
    """Rows `start:stop` as the network has them, `(stop - start, columns)`.

    Of a tensor of one dimension they are its values: `(1, stop - start)`. They are multiplied with
    the source's factors; nothing is added.

    Args:
        tensor: one that is laid out as `source` says, whatever tensor that names.
        start, stop: whole heads, where rows of heads are in another order or in turn.
        buffer, keep_bf16: see `Checkpoint.read_rows`.
    """
    if source.turns is not None:
        return _in_turn(checkpoint, tensor, source.turns, source.first_row > 0, start, stop, buffer)
    if source.is_flattened:
        shape = checkpoint.tensors[tensor].shape
        rows = checkpoint.read_rows(tensor, 0, 1 if len(shape) == 1 else shape[0])
        return rows.reshape(1, -1)[:, start:stop]
    first, last = source.first_row + start, source.first_row + stop
    is_vector = len(checkpoint.tensors[tensor].shape) == 1
    if is_vector:
        rows = checkpoint.read_rows(tensor, 0, 1, buffer=buffer)[:, first:last]
    else:
        rows = checkpoint.read_rows(tensor, first, last, buffer=buffer, keep_bf16=keep_bf16)
    rows = halves_from_pairs(rows, *source.interleaved) if source.interleaved else rows
    if source.factors:
        counts, factors = zip(*source.factors, strict=True)
        by_row = np.repeat(np.asarray(factors, np.float32), counts)[start:stop]
        rows = rows * (by_row if is_vector else by_row[:, None])
    return rows


def _in_turn(
    checkpoint: Checkpoint,
    tensor: str,
    size: int,
    is_second: bool,
    start: int,
    stop: int,
    buffer: np.ndarray | None,
) -> np.ndarray:
    """Every other block of `size` rows; see `WeightSource.turns`."""
    shape = checkpoint.tensors[tensor].shape
    if len(shape) == 1:
        blocks = checkpoint.read_rows(tensor, 0, 1).reshape(-1, 2, size)
        return blocks[:, int(is_second)].reshape(1, -1)[:, start:stop]
    columns = shape[1]
    room = room_for((stop - start) * columns, buffer).reshape(-1, columns)
    for row in range(start, stop, size):
        first = 2 * row + is_second * size
        part = room[row - start : row - start + size]
        part[:] = checkpoint.read_rows(tensor, first, first + size, buffer=part.reshape(-1))
    return room


def halves_from_pairs(rows: np.ndarray, head_dim: int, width: int) -> np.ndarray:
    """Per head, rows (0, w/2), (1, w/2 + 1), ... back to 0..w/2, w/2..w; (heads * d, columns).

    The rows of a head from w to d stay where they are.
    """
    if rows.shape[0] == 1:  # a vector: its values are the rows
        return halves_from_pairs(rows.reshape(-1, 1), head_dim, width).reshape(1, -1)
    order = np.arange(head_dim)
    order[:width] = order[:width].reshape(-1, 2).T.reshape(-1)
    heads = rows.reshape(-1, head_dim, rows.shape[1])
    return np.ascontiguousarray(heads[:, order]).reshape(rows.shape)
