"""Short convolutions (`converter.decoder.ShortConv`), and what they keep between calls.

    b, c, v = projections of x;  u = b * v
    out(c * (kernel * u)),  with * over the last K tokens

K tokens are in a kernel, N in this call, width = hidden. A layer's state is two rings of u, each
with a row for the last R positions: in the first what prefills wrote, in the second what decodes
wrote. A number that all layers share says up to which position the text is the prefills'; what
follows is the decodes'. So an answer of any length may be taken back and fed again without its
thoughts, as the engine does: decodes did not overwrite the end of the prompt. Everything else may
be taken back by `REWIND` tokens. Rows before position 0 are zero, so that a new conversation needs
no empty state; padding is written nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converter.decoder import ShortConv
from converter.tflite.attention import cut
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import DType, Tensor
from converter.tflite.kv_cache import REWIND
from converter.tflite.state import CONVOLUTIONS_END, StateBuffer, StateKind


@dataclass(frozen=True)
class _Rows:
    """Where rows lie, for all layers with one kernel: numbers of rows in a state of 2 R, with this
    call's N behind them where it is a prefill.

    Attributes:
        slots: R.
        before: of those before this call, (K - 1,).
        is_text: 1.0 for those of them from position 0 on, 0.0 for the others, (K - 1, 1).
        kept: after a prefill, of what goes to each row of the state, (2 R,); else None.
        start: where a decode writes, (4,); else None.
    """

    slots: int
    before: Tensor
    is_text: Tensor
    kept: Tensor | None = None
    start: Tensor | None = None


class ShortConvLayers:
    """The short convolutions of one signature."""

    def __init__(self, blocks: Blocks, mixers: Mapping[int, ShortConv], width: int) -> None:
        """
        Args:
            mixers: by the layer's number.
        """
        self.blocks = blocks
        self.graph = blocks.graph
        self.length = blocks.length
        self.is_decode = blocks.graph.name == "decode"
        self.mixers = mixers
        self.width = width
        self.inputs: dict[int, Tensor] = {}
        self.rows: dict[int, _Rows] = {}  # by kernel
        self.seen: dict[int, Tensor] = {}

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare a layer's rings, (1, 1, 2 R, width), and with the first what all share, (1,)."""
        kernel, states = self.mixers[index].kernel, []
        if not self.inputs:
            states.append(StateBuffer(CONVOLUTIONS_END, (1,), StateKind.RECURRENT, 0, 1))
            self.make_prefilled(states[0].add_to(self.graph))
        if kernel not in self.rows:
            self.rows[kernel] = self.make_rows(kernel)
        slots = 2 * self.rows[kernel].slots
        shape = 1, 1, slots, self.width
        states.append(StateBuffer(f"kv_cache_c_{index}", shape, StateKind.RECURRENT, 2, slots))
        self.inputs[index] = states[-1].add_to(self.graph)
        return tuple(states)

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Write a layer's u, from what it is fed with, (N, width)."""
        g, name, mixer, n = self.graph, at(block), self.mixers[index], self.length
        b, v = (self.blocks.make_part(block, part, mixer.biases, x) for part in "bx")
        u = g.make_mul(f"{name}/u", b, v)
        new = g.make_reshape(f"{name}/u/rows", u, (1, 1, n, self.width))
        rows, state = self.rows[mixer.kernel], self.inputs[index]
        if rows.start is not None:
            seen = state = g.make_dynamic_update_slice(f"{name}/state", state, new, rows.start)
        else:
            # The engine lays the new state over the old one, which is thus read from a copy.
            assert rows.kept is not None
            seen = g.make_concatenation(f"{name}/state/seen", (state, new), axis=2)
            state = g.make_gather(f"{name}/state", seen, rows.kept, axis=2)
        g.add_output(f"kv_cache_c_{index}", state)
        before = g.make_gather(f"{name}/before", seen, rows.before, axis=2)
        before = g.make_reshape(f"{name}/before/rows", before, (mixer.kernel - 1, self.width))
        before = g.make_mul(f"{name}/before/text", before, rows.is_text)
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

    def make_prefilled(self, state: Tensor) -> None:
        """Up to where the text is the prefills', before this call and after it, int32 (1,)."""
        g, call, name = self.graph, self.blocks.call, "conv/prefilled"
        # All that reads the state reads this copy of it: the new one is written over it.
        self.prefilled = before = g.make_cast(f"{name}/before", state, DType.INT32)
        if self.is_decode:
            after = g.make_minimum(f"{name}/after", before, call.first)
        else:
            end = g.make_add(f"{name}/end", call.last, g.constant(f"{name}/one", [1]))
            nothing = g.make_minimum(f"{name}/read", before, g.constant("cache/zero", [0]))
            after = g.make_maximum(f"{name}/after", end, nothing)
        g.add_output(CONVOLUTIONS_END, g.make_cast(f"{name}/float32", after, DType.FLOAT32))

    def make_rows(self, kernel: int) -> _Rows:
        """Where this call's rows, and those before them, lie in the states of a kernel."""
        g, call, name = self.graph, self.blocks.call, f"conv_{kernel}"
        slots, zero = kernel - 1 + REWIND, g.constant("cache/zero", [0])
        size = g.constant(f"{name}/size", [slots])
        back = g.constant(f"{name}/back", np.arange(1 - kernel, 0, dtype=np.int32))
        position = g.make_add(f"{name}/position", call.first, back)
        is_text = g.make_greater_equal(f"{name}/is_text", position, zero)
        is_text = g.make_cast(f"{name}/is_text/float32", is_text, DType.FLOAT32)
        is_text = g.make_reshape(f"{name}/is_text/column", is_text, (kernel - 1, 1))
        before = self.make_places(f"{name}/before", position, size)
        if self.is_decode:
            slot = g.make_floor_mod(f"{name}/slot", call.first, size)
            slot = g.make_add(f"{name}/row", slot, size)
            start = g.make_concatenation(f"{name}/start", (zero, zero, slot, zero), axis=0)
            return _Rows(slots, before, is_text, start=start)
        # The newest position that belongs into each slot: of this call, else of what came before.
        numbers = np.arange(slots, dtype=np.int32)
        number = g.constant(f"{name}/numbers", numbers)
        age = g.make_sub(f"{name}/age/all", call.last, number)
        newest = g.make_sub(f"{name}/newest", call.last, g.make_floor_mod(f"{name}/age", age, size))
        token = g.make_sub(f"{name}/token", newest, call.first)
        is_new = g.make_greater_equal(f"{name}/is_new", token, zero)
        row = g.make_add(f"{name}/token/row", token, g.constant(f"{name}/rows", [2 * slots]))
        old = self.make_places(f"{name}/old", newest, size)
        first = g.make_select(f"{name}/first", is_new, row, old)
        second = g.constant(f"{name}/second", numbers + slots)
        kept = g.make_concatenation(f"{name}/kept", (first, second), axis=0)
        return _Rows(slots, before, is_text, kept=kept)

    def make_places(self, name: str, position: Tensor, size: Tensor) -> Tensor:
        """The rows of positions before this call, in the first ring or in the second."""
        g = self.graph
        is_decoded = g.make_greater_equal(f"{name}/is_decoded", position, self.prefilled)
        ring = g.make_cast(f"{name}/ring", is_decoded, DType.INT32)
        slot = g.make_floor_mod(f"{name}/slot", position, size)
        return g.make_add(name, slot, g.make_mul(f"{name}/begin", ring, size))
