"""What layers with a memory of their own have in common, whatever their rule of remembering.

Such a layer keeps two things between calls, and both are right only if no token is left out or
comes twice: the last columns that a convolution along the tokens sees, and the memory. The engine
sees to neither:

* It zeroes them once, when it is created. So they count as zero where a call begins at position 0.
* It pads a prefill's end. Rows of padding leave a memory as it is, and the convolution's last
  columns are those of real tokens.
* Where it takes tokens back it takes nothing out of them: that is the runner's part.

On a CPU a state's output lies over its input. Whatever reads the old one must come before, so all
that does feeds the one op that writes the new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from converter.decoder import Activation
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import DType, Graph, Tensor
from converter.tflite.state import StateBuffer, StateKind

# Tokens that are taken at once: within them all is products of matrices.
CHUNK = 64


class Recurrence:
    """What a signature's layers of one kind share.

    Attributes:
        keep: 0.0 where a conversation begins, else 1.0, (1,).
        real: 1.0 for tokens and 0.0 for padding, (N, 1); only in a prefill.
    """

    def __init__(self, blocks: Blocks, name: str, kernels: Iterable[int]) -> None:
        """
        Args:
            name: of the kind.
            kernels: how many tokens the layers' convolutions see.
        """
        self.blocks = blocks
        self.graph = g = blocks.graph
        self.length = n = blocks.length
        first, last = blocks.call.first, blocks.call.last
        goes_on = g.make_minimum(f"{name}/goes_on", first, g.constant(f"{name}/one", [1]))
        self.keep = g.make_cast(f"{name}/keep", goes_on, DType.FLOAT32)
        if n == 1:
            return
        tokens = g.make_sub(f"{name}/tokens", last, first)  # one less than there are
        rows = g.constant(f"{name}/rows", np.arange(n, dtype=np.int32))
        is_token = g.make_greater_equal(f"{name}/is_token", tokens, rows)
        real = g.make_cast(f"{name}/real", is_token, DType.FLOAT32)
        self.real = g.make_reshape(f"{name}/real/column", real, (n, 1))
        self.newest = {
            kernel: g.make_add(
                f"{name}/newest_{kernel}",
                tokens,
                g.constant(f"{name}/next_{kernel}", np.arange(1, kernel, dtype=np.int32)),
            )
            for kernel in sorted(set(kernels))
        }

    def make_convolution(
        self, block: str, activation: Activation, has_bias: bool, new: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """activation(conv(new)), channel by channel, and the columns that the next call sees.

        Args:
            has_bias: whether the convolution has one.
            new: (N, channels).
            columns: what the last call left, (1, kernel - 1, channels).
        """
        g, name, n, channels = self.graph, at(block), self.length, new.shape[1]
        kernel = columns.shape[1] + 1
        old = g.make_reshape(f"{name}/columns", columns, (kernel - 1, channels))
        old = g.make_mul(f"{name}/columns/kept", old, self.keep)
        seen = g.make_concatenation(f"{name}/seen", (old, new), axis=0)
        if n == 1:
            last = g.make_slice(f"{name}/last", seen, (1, 0), (kernel - 1, channels))
        else:
            last = g.make_gather(f"{name}/last", seen, self.newest[kernel], axis=0)
        last = g.make_reshape(f"{name}/last/columns", last, columns.shape)
        taps = g.make_transpose(f"{name}/taps", self.blocks.weight(f"{block}.conv"), (2, 1, 0))
        taps = g.make_reshape(f"{name}/taps/rows", taps, (kernel, channels))
        total = None
        for i in range(kernel):
            tap = g.make_slice(f"{name}/tap_{i}", taps, (i, 0), (1, channels))
            row = g.make_slice(f"{name}/seen_{i}", seen, (i, 0), (n, channels))
            part = g.make_mul(f"{name}/conv_{i}", row, tap)
            total = part if total is None else g.make_add(f"{name}/sum_{i}", total, part)
        assert total is not None
        if has_bias:
            bias = self.blocks.weight(f"{block}.conv.bias")
            total = g.make_add(f"{name}/conv/biased", total, bias)
        return self.blocks.make_activation(f"{block}.conv", activation, total), last


class Remembering(Protocol):
    """What every mixer with a memory has: how many tokens its convolution sees."""

    @property
    def kernel(self) -> int: ...


M = TypeVar("M", bound=Remembering)


class RecurrentLayers(Generic[M]):
    """The layers of one kind in one signature; what several of them share is made once.

    Attributes:
        inputs: each layer's columns and memory as the last call left them, by its number.
        outputs: what each layer says, by its number.
    """

    def __init__(self, blocks: Blocks, name: str, mixers: Mapping[int, M]) -> None:
        """
        Args:
            name: of the kind.
            mixers: by the layer's number.
        """
        self.blocks = blocks
        self.graph = blocks.graph
        self.length = blocks.length
        self.mixers = mixers
        self.inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self.outputs: dict[int, Tensor] = {}
        if mixers:
            self.recurrence = Recurrence(blocks, name, (m.kernel for m in mixers.values()))

    def declare(self, index: int, *states: StateBuffer) -> tuple[StateBuffer, ...]:
        """A layer's columns and its memory become inputs of the signature."""
        columns, memory = states
        self.inputs[index] = columns.add_to(self.graph), memory.add_to(self.graph)
        return states

    def split(self, name: str, mixed: Tensor, parts: str, widths: Sequence[int]) -> list[Tensor]:
        """Columns of what a convolution gives, (N, channels), one tensor for each part."""
        begins = [sum(widths[:i]) for i in range(len(widths))]
        return [
            self.graph.make_slice(f"{name}/{part}", mixed, (0, begin), (self.length, width))
            for part, begin, width in zip(parts, begins, widths, strict=True)
        ]


def columns_state(index: int, kernel: int, channels: int) -> StateBuffer:
    """What a layer's convolution sees of the tokens before a call, (1, kernel - 1, channels)."""
    shape = 1, kernel - 1, channels
    return StateBuffer(f"kv_cache_c_{index}", shape, StateKind.RECURRENT, 1, kernel - 1)


def memory_state(name: str, heads: int, rows: int, columns: int) -> StateBuffer:
    """A layer's memory, (1, heads, rows, columns)."""
    return StateBuffer(name, (1, heads, rows, columns), StateKind.RECURRENT, 2, rows)


def make_softplus(g: Graph, name: str, x: Tensor) -> Tensor:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which overflows nowhere."""
    zero, one = g.constant("softplus/nothing", 0.0), g.constant("softplus/whole", 1.0)
    size = g.make_minimum(f"{name}/size", x, g.make_neg(f"{name}/minus", x))
    size = g.make_add(f"{name}/above_one", g.make_exp(f"{name}/size/exp", size), one)
    return g.make_add(
        f"{name}/softplus",
        g.make_maximum(f"{name}/positive", x, zero),
        g.make_log(f"{name}/log", size),
    )


def make_sums(g: Graph, name: str, x: Tensor) -> Tensor:
    """Each of the last axis and all before it added up, (..., C) -> the same."""
    size = x.shape[-1]
    flat = g.make_reshape(f"{name}/flat", x, (math.prod(x.shape[:-1]), size))
    total = g.make_fully_connected(f"{name}/total/flat", flat, make_lower(g, size))
    return g.make_reshape(f"{name}/total", total, x.shape)


def make_lower(g: Graph, size: int) -> Tensor:
    """1.0 on and below the diagonal, and 0.0 above, (C, C)."""
    return g.constant(f"lower_{size}", np.tril(np.ones((size, size), np.float32)))


def make_joined(g: Graph, name: str, parts: Sequence[Tensor]) -> Tensor:
    """Parts one after another along the first axis; the delegate takes four at most."""
    while len(parts) > 1:
        parts = [
            g.make_concatenation(f"{name}_{len(parts)}_{i}", parts[i : i + 4], axis=0)
            for i in range(0, len(parts), 4)
        ]
    return parts[0]
