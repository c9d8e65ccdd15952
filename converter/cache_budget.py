"""The longest KV cache that a budget of memory has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Caches are multiples of it: the engine rounds to such sizes, and attention reads such tiles.
STEP = 256


@dataclass(frozen=True)
class CacheFit:
    """A KV cache, and what the whole takes with it.

    Attributes:
        memory_bytes: the budget.
        kv_cache_length: of the cache.
        needed_bytes: about what network, engine and tokenizer hold together.
    """

    memory_bytes: int
    kv_cache_length: int
    needed_bytes: int

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.memory_bytes


def longest_cache(
    lengths: Sequence[int], memory_bytes: int, needed: Callable[[int], int]
) -> CacheFit:
    """The longest of `lengths` that fits; the shortest where none does.

    Args:
        lengths: ascending.
        needed: the bytes that a length takes: more for a longer one. It builds a graph, and is
            asked seldom: between two lengths, memory grows nearly in a straight line.
    """
    low, high = 0, len(lengths) - 1
    at_low = needed(lengths[low])
    if at_low > memory_bytes or low == high:
        return CacheFit(memory_bytes, lengths[low], at_low)
    at_high = needed(lengths[high])
    if at_high <= memory_bytes:
        return CacheFit(memory_bytes, lengths[high], at_high)
    while high - low > 1:
        share = (memory_bytes - at_low) / (at_high - at_low)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        at_middle = needed(lengths[middle])
        if at_middle <= memory_bytes:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return CacheFit(memory_bytes, lengths[low], at_low)


def gigabytes(nbytes: int) -> str:
    """An amount that has room for `nbytes`, as `--memory` takes it."""
    return f"{math.ceil(nbytes / 1e7) / 100:g}GB"
