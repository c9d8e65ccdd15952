"""Whether a tied head is what the config says.

Trainers save the head although the config ties it to the embedding, and after a LoRA on the head,
or `modules_to_save`, it is another matrix. transformers 5 compares the two and ties them only where
they are equal. So do we, before the plan fixes their places: it costs a reading of both tables, up
to the first block that differs, and only where a checkpoint holds both.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from converter.checkpoint.base import Checkpoint
from converter.families.base import Family

_BLOCK_VALUES = 1 << 20


def settle_head(family: Family, checkpoint: Checkpoint) -> Family:
    """The family, with a head of its own where the checkpoint's head is not its embedding."""
    tables = family.tied_tables(checkpoint.tensors, checkpoint.format)
    if tables is None or _are_equal(checkpoint, *tables):
        return family
    return untied(family)


def untied(family: Family) -> Family:
    """The family with a head beside its embedding."""
    return dataclasses.replace(family, tie_word_embeddings=False)


def _are_equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    shape = checkpoint.tensors[first].shape
    if checkpoint.tensors[second].shape != shape or len(shape) != 2:
        return False
    rows, columns = shape
    step = max(1, _BLOCK_VALUES // max(1, columns))
    room = np.empty(step * columns, np.float32)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        values = checkpoint.read_rows(first, start, stop, buffer=room)
        if not np.array_equal(values, checkpoint.read_rows(second, start, stop)):
            return False
    return True
