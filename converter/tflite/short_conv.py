"""Short convolutions (`converter.decoder.ShortConv`), and what they keep between calls.

    b, c, v = projections of x;  u = b * v
    out(c * (kernel * u)),  with * over the last K tokens

K tokens are in a kernel, N in this call, width = hidden. A state is a ring of u, one row for each
position, written as the ring of a window's keys is (`kv_cache.RingCache`): padding destroys nothing
that is needed, and up to `REWIND` tokens may be taken back. Rows before position 0 are zero, so
that a new conversation needs no empty state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converter.decoder import ShortConv
from converter.tflite.attention import cut
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import DType, Tensor
from converter.tflite.kv_cache import (
    RING_SLACK,
    CacheShape,
    HeadShape,
    LongRingCache,
    RingCache,
    Target,
)
from converter.tflite.state import StateBuffer, StateKind


@dataclass(frozen=True)
class _Ring:
    """The rings of all layers with one kernel.

    Attributes:
        slots: which rows of a ring, or of a copy of it, come before this call, (K - 1,).
        is_text: 1.0 for those from position 0 on, 0.0 for the others, (K - 1, 1).
    """

    cache: RingCache
    slots: Tensor
    is_text: Tensor


class ShortConvLayers:
    """The short convolutions of one signature."""

    def __init__(
        self,
        blocks: Blocks,
        mixers: Mapping[int, ShortConv],
        width: int,
        cache_length: int,
        target: Target,
        rings: bool,
    ) -> None:
        """
        Args:
            mixers: by the layer's number.
            cache_length: tokens of context, C.
            rings: whether the engine takes back no more than `REWIND` tokens; else a state has a
                row for each of C.
        """
        self.blocks = blocks
        self.graph = blocks.graph
        self.length = blocks.length
        self.mixers = mixers
        self.width = width
        # On a GPU every call works on a copy: the other kind has branches.
        is_copied = target is Target.GPU or self.length > RING_SLACK
        self.kind = LongRingCache if is_copied else RingCache
        self.rows = 0 if rings else cache_length
        self.rings = {kernel: self.make_ring(kernel) for kernel in kernels_of(mixers)}
        self.inputs: dict[int, Tensor] = {}
        self.seen: dict[int, Tensor] = {}

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare a layer's ring, (1, 1, R, width)."""
        slots = self.rings[self.mixers[index].kernel].cache.shape.slots
        shape = 1, 1, slots, self.width
        state = StateBuffer(f"kv_cache_c_{index}", shape, StateKind.RECURRENT, 2, slots)
        self.inputs[index] = state.add_to(self.graph)
        return (state,)

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Write a layer's u, from what it is fed with, (N, width)."""
        g, name, mixer, n = self.graph, at(block), self.mixers[index], self.length
        b, v = (self.blocks.make_part(block, part, mixer.biases, x) for part in "bx")
        u = g.make_mul(f"{name}/u", b, v)
        new = g.make_reshape(f"{name}/u/row", u, (1, n, 1, self.width))
        ring, state = self.rings[mixer.kernel], self.inputs[index]
        if isinstance(ring.cache, LongRingCache):
            seen, state = ring.cache.write_after(f"{name}/state", new, state)
        else:
            seen = state = ring.cache.write(f"{name}/state", new, state)
        g.add_output(f"kv_cache_c_{index}", state)
        before = g.make_gather(f"{name}/before", seen, ring.slots, axis=2)
        before = g.make_reshape(f"{name}/before/rows", before, (mixer.kernel - 1, self.width))
        before = g.make_mul(f"{name}/before/text", before, ring.is_text)
        self.seen[index] = g.make_concatenation(f"{name}/seen", (before, u), axis=0)

    def mix(self, index: int, block: str, x: Tensor) -> Tensor:
        """The convolution of what was written, (N, width) -> the same."""
        g, name, mixer = self.graph, at(block), self.mixers[index]
        by_token = self.blocks.weight(f"{block}.kernel")
        by_token = g.make_transpose(f"{name}/kernel/by_token", by_token, (2, 1, 0))
        total: Tensor | None = None
        for i in range(mixer.kernel):
            weight = cut(g, f"{name}/kernel/{i}", by_token, 0, i, 1)
            weight = g.make_reshape(f"{name}/kernel/{i}/row", weight, (1, self.width))
            rows = cut(g, f"{name}/seen/{i}", self.seen[index], 0, i, self.length)
            product = g.make_mul(f"{name}/product/{i}", rows, weight)
            total = product if total is None else g.make_add(f"{name}/sum/{i}", total, product)
        assert total is not None  # a kernel has tokens
        if mixer.has_bias:
            bias = self.blocks.weight(f"{block}.kernel.bias")
            total = g.make_add(f"{name}/biased", total, bias)
        gate = self.blocks.make_part(block, "c", mixer.biases, x)
        gated = g.make_mul(f"{name}/gated", gate, total)
        return self.blocks.make_part(block, "out", mixer.biases, gated)

    # Once per call --------------------------------------------------------------------------------

    def make_ring(self, kernel: int) -> _Ring:
        """What the layers with this kernel share."""
        g, call, name = self.graph, self.blocks.call, f"conv_{kernel}"
        slots = max(kernel - 1 + RING_SLACK, self.rows)
        shape = CacheShape(slots, kernel, is_ring=True)
        cache = self.kind(call, shape, HeadShape(0, 1, self.width))
        back = np.arange(1 - kernel, 0, dtype=np.int32)
        position = g.make_add(f"{name}/position", call.first, g.constant(f"{name}/back", back))
        zero = g.constant("cache/zero", [0])
        is_text = g.make_greater_equal(f"{name}/from_zero", position, zero)
        is_text = g.make_cast(f"{name}/is_text/float32", is_text, DType.FLOAT32)
        return _Ring(
            cache,
            g.make_floor_mod(f"{name}/slots", position, cache.slots),
            g.make_reshape(f"{name}/is_text", is_text, (kernel - 1, 1)),
        )


def kernels_of(mixers: Mapping[int, ShortConv]) -> list[int]:
    """Each once."""
    return list(dict.fromkeys(mixer.kernel for mixer in mixers.values()))
