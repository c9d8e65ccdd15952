"""Rows of a weight as the network has it: out of its tensor, in order, with adapters merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.families.tensors import WeightSource
from converter.weights.lora_update import Update
from converter.weights.placed_rows import read_placed


def row_units(source: WeightSource, updates: Sequence[Update]) -> Iterator[int]:
    """How many rows must be read together, in the checkpoint and in adapters."""
    for placed in (source, *(update.source for update in updates)):
        if placed.interleaved:
            yield placed.interleaved[0]
        if placed.turns:
            yield placed.turns


def read_weight(
    checkpoint: Checkpoint,
    source: WeightSource,
    shape: tuple[int, ...],
    updates: Sequence[Update],
    start: int,
    stop: int,
    buffer: ThreadBuffer,
    keep_bf16: bool = False,
    first_row: int = 0,
    factor: float = 1.0,
) -> np.ndarray:
    """Rows `start:stop` of a weight, `(stop - start, columns)`, valid until the thread's next call.

    Args:
        shape: the whole weight's; a vector is one row.
        start, stop: multiples of each of `row_units`, or the end.
        keep_bf16: see `Checkpoint.read_rows`; heeded where nothing is to be done to the values.
        first_row: of a piece of a weight, which row of the whole it begins with.
        factor: what all values are multiplied with in the end.

    Raises:
        SourceError: see `Checkpoint.read_rows`.
    """
    columns = shape[-1]
    is_changed = source.add or source.factors or updates or factor != 1
    if source.is_absent:
        rows = buffer.of_size((stop - start) * columns).reshape(-1, columns)
        rows.fill(0)
    else:
        rows = read_placed(
            checkpoint,
            source.tensor,
            source,
            *((0, columns) if len(shape) == 1 else (start, stop)),
            buffer=buffer.of_size((stop - start) * columns),
            keep_bf16=keep_bf16 and not is_changed,
        )
    if source.is_log_of_negative:
        np.negative(np.exp(rows, out=rows), out=rows)
    if source.add:
        rows += np.float32(source.add)
    for update in updates:
        update.apply(rows, first_row + start)
    if factor != 1:
        rows *= np.float32(factor)
    return rows
