"""Rows of a weight, out of a tensor that holds it among others or in another order.

A checkpoint's tensors and those of an adapter of the same format lie alike: what a family says of
the one (`WeightSource`) puts the other in order, too.
"""

from __future__ import annotations

import math

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
        first = source.first_row
        both = _rows(checkpoint, tensor, source, first + 2 * start, first + 2 * stop)
        in_turn = (-1, 2, source.turns)
        columns = 1 if both.shape[0] == 1 else both.shape[1]  # a vector: its values are the rows
        chosen = both.reshape(*in_turn, columns)[:, int(source.is_second)]
        room = room_for(chosen.size, buffer)
        room.reshape(chosen.shape)[:] = chosen
        return room.reshape(1, -1) if both.shape[0] == 1 else room.reshape(-1, columns)
    first, last = source.first_row + start, source.first_row + stop
    rows = _rows(checkpoint, tensor, source, first, last, buffer, keep_bf16)
    rows = halves_from_pairs(rows, *source.interleaved) if source.interleaved else rows
    if source.factors:
        counts, factors = zip(*source.factors, strict=True)
        by_row = np.repeat(np.asarray(factors, np.float32), counts)[start:stop]
        rows = rows * (by_row if rows.shape[0] == 1 else by_row[:, None])
    return rows


def _rows(
    checkpoint: Checkpoint,
    tensor: str,
    source: WeightSource,
    first: int,
    last: int,
    buffer: np.ndarray | None = None,
    keep_bf16: bool = False,
) -> np.ndarray:
    """Rows of the whole tensor, `(last - first, columns)`; of a vector its values, in one row."""
    shape = checkpoint.tensors[tensor].shape
    if len(shape) == 1:
        return checkpoint.read_rows(tensor, 0, 1, buffer=buffer)[:, first:last]
    if source.is_flattened:
        rows = checkpoint.read_rows(tensor, 0, math.prod(shape[:-1]))
        return rows.reshape(1, -1)[:, first:last]
    if source.is_transposed:
        # Of a stack, the part that the rows belong to: they never belong to two.
        _, columns, rows_of_part = shape
        part, first = divmod(first, rows_of_part)
        last -= part * rows_of_part
        room = room_for((last - first) * columns, buffer).reshape(-1, columns)
        room[:] = checkpoint.read_columns(tensor, part * columns, (part + 1) * columns, first, last)
        return room
    return checkpoint.read_rows(tensor, first, last, buffer=buffer, keep_bf16=keep_bf16)


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
