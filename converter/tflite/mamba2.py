"""Layers of the second Mamba: a memory of one matrix per head, whatever the context's length.

    x -> xbc -> convolution along the tokens -> memory -> gate, norm -> o

What it keeps between calls, and how that stays right: `recurrence`. Rows of padding have a step of
0: they neither decay a memory nor add to it.

Heads H are groups G of those that share B and C; (1, H, P, S) and (1, G, H/G * P, S) are one memory
in two shapes, in the second of which all heads of a group are one product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from converter.decoder import Activation, Mamba2
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import Graph, Tensor
from converter.tflite.recurrence import (
    CHUNK,
    RecurrentLayers,
    columns_state,
    make_joined,
    make_lower,
    make_softplus,
    make_sums,
    memory_state,
)
from converter.tflite.state import StateBuffer


class Tokens(NamedTuple):
    """What tokens bring to the memory: C of each of c chunks.

    Attributes:
        x: their values times their steps, (c, H, C, P).
        b, c: (c, G, C, S).
        g: the logarithm of the decay, 0 for padding, (c, H, 1, C).
    """

    x: Tensor
    b: Tensor
    c: Tensor
    g: Tensor


class Mamba2Layers(RecurrentLayers[Mamba2]):
    """The Mamba2 layers of one signature."""

    def __init__(self, blocks: Blocks, mixers: Mapping[int, Mamba2]) -> None:
        super().__init__(blocks, "mamba", mixers)

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare a layer's columns, (1, kernel - 1, channels), and its memory, (1, H, P, S)."""
        mixer = self.mixers[index]
        return self.declare(
            index,
            columns_state(index, mixer.kernel, sum(mixer.widths)),
            memory_state(f"kv_cache_s_{index}", mixer.num_heads, mixer.head_dim, mixer.state_dim),
        )

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Bring a layer's states up to date with what it is fed with, (N, hidden)."""
        name, mixer, g, n = at(block), self.mixers[index], self.graph, self.length
        columns, memory = self.inputs[index]
        new = self.blocks.make_part(block, "xbc", mixer.biases, x)
        mixed, last = self.recurrence.make_convolution(
            block, mixer.activation, "conv" in mixer.biases, new, columns
        )
        g.add_output(f"kv_cache_c_{index}", last)
        parts = self.split(name, mixed, "xbc", mixer.widths)
        values, b, c = parts
        step = self.make_steps(block, mixer, x)
        decay = g.make_mul(f"{name}/g", step, self.blocks.weight(f"{block}.decay"))
        values = g.make_reshape(f"{name}/x/heads", values, (n, mixer.num_heads, mixer.head_dim))
        by_head = g.make_reshape(f"{name}/step/heads", step, (n, mixer.num_heads, 1))
        fed = g.make_mul(f"{name}/x/fed", values, by_head), b, c, decay
        if n == 1:
            tokens = self.make_tokens(name, mixer, fed, 0, 1, 1)
            decayed = g.make_exp(f"{name}/exp", tokens.g)
            decayed = g.make_mul(f"{name}/decayed", decayed, self.recurrence.keep)
            out, memory = make_step(g, name, tokens, decayed, memory)
        else:
            memory = g.make_mul(f"{name}/memory", memory, self.recurrence.keep)
            outs, whole = [], n // CHUNK
            for start, count, size in ((0, whole, CHUNK), (whole * CHUNK, 1, n % CHUNK)):
                if count and size:
                    of = f"{name}/from_{start}"
                    tokens = self.make_tokens(of, mixer, fed, start, count, size)
                    if size == 1:
                        decayed = g.make_exp(f"{of}/exp", tokens.g)
                        out, memory = make_step(g, of, tokens, decayed, memory)
                    else:
                        out, memory = make_chunks(g, of, tokens, memory)
                    outs.append(out)
            out = outs[0] if len(outs) == 1 else g.make_concatenation(f"{name}/out", outs, axis=0)
        g.add_output(f"kv_cache_s_{index}", memory)
        skip = self.blocks.weight(f"{block}.skip")
        skip = g.make_reshape(f"{name}/skip", skip, (1, mixer.num_heads, 1))
        skipped = g.make_mul(f"{name}/skipped", values, skip)
        self.outputs[index] = g.make_add(f"{name}/told", out, skipped)

    def mix(self, index: int, block: str, x: Tensor) -> Tensor:
        """What the memory says, gated and normalised, (N, hidden) -> the same."""
        g, name, mixer, blocks = self.graph, at(block), self.mixers[index], self.blocks
        out = g.make_reshape(f"{name}/flat", self.outputs[index], (self.length, mixer.width))
        gate = blocks.make_part(block, "gate", mixer.biases, x)
        gate = blocks.make_activation(f"{block}.gate", Activation.SILU, gate)
        if mixer.gates_last:
            out = self.make_norm(block, mixer, out)
        out = g.make_mul(f"{name}/gated", out, gate)
        if not mixer.gates_last:
            out = self.make_norm(block, mixer, out)
        return blocks.make_part(block, "o", mixer.biases, out)

    def make_norm(self, block: str, mixer: Mamba2, x: Tensor) -> Tensor:
        """Each of a row's groups normalised, (N, width) -> the same."""
        if mixer.norm is None:
            return x
        name, path, rows = f"{at(block)}/out_norm", f"{block}.out_norm", x.shape
        if mixer.norm_groups == 1:
            return self.blocks.make_norm(name, x, path, mixer.norm)
        g, count = self.graph, mixer.norm_groups
        x = g.make_reshape(f"{name}/groups", x, (self.length * count, mixer.width // count))
        x = self.blocks.make_norm(name, x, path, replace(mixer.norm, has_weight=False))
        x = g.make_reshape(f"{name}/rows", x, rows)
        return g.make_mul(f"{name}/weighted", x, self.blocks.weight(path))

    # Before the memory ----------------------------------------------------------------------------

    def make_steps(self, block: str, mixer: Mamba2, x: Tensor) -> Tensor:
        """How much of every token a head takes in, (N, H)."""
        g, name, blocks = self.graph, at(block), self.blocks
        dt = blocks.make_part(block, "dt", mixer.biases, x)
        dt = g.make_add(f"{name}/step", dt, blocks.weight(f"{block}.step"))
        step = make_softplus(g, name, dt)
        least, most = mixer.step_limits
        if least > 0:
            step = g.make_maximum(f"{name}/at_least", step, g.constant("mamba/least", least))
        if most < math.inf:
            step = g.make_minimum(f"{name}/at_most", step, g.constant("mamba/most", most))
        if self.length > 1:
            step = g.make_mul(f"{name}/step/real", step, self.recurrence.real)
        return step

    def make_tokens(
        self,
        name: str,
        mixer: Mamba2,
        parts: tuple[Tensor, ...],
        start: int,
        count: int,
        size: int,
    ) -> Tokens:
        """Rows of x, (N, H, P), B, C and g, (N, heads * width), as the memory takes them."""
        g, heads, groups = self.graph, mixer.num_heads, mixer.groups
        made = []
        for part, x, of in zip(Tokens._fields, parts, (heads, groups, groups, heads), strict=True):
            at_, width = f"{name}/{part}/chunks", math.prod(x.shape[1:]) // of
            if count * size < self.length:
                begin, rows = [start, *[0] * (len(x.shape) - 1)], (count * size, *x.shape[1:])
                x = g.make_slice(f"{at_}/rows", x, begin, rows)
            if size == 1:
                x = g.make_reshape(at_, x, (count, of, 1, width))
            else:
                x = g.make_reshape(f"{at_}/split", x, (count, size, of, width))
                x = g.make_transpose(at_, x, (0, 2, 3, 1) if part == "g" else (0, 2, 1, 3))
            made.append(x)
        return Tokens(*made)


def make_step(
    g: Graph, name: str, tokens: Tokens, decay: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: its output, (1, H, P), and the new memory; `decay` is (1, H, 1, 1)."""
    x, b, c, _ = tokens
    _, heads, width, state = memory.shape
    groups = b.shape[1]
    together = 1, groups, heads // groups * width
    column = g.make_reshape(f"{name}/x/column", x, (*together, 1))
    added = g.make_mul(f"{name}/memory/added", column, b)
    added = g.make_reshape(f"{name}/memory/added/heads", added, memory.shape)
    kept = g.make_mul(f"{name}/memory/kept", memory, decay)
    memory = g.make_add(f"{name}/memory/new", kept, added)
    by_group = g.make_reshape(f"{name}/memory/groups", memory, (*together, state))
    out = g.make_batch_matmul(f"{name}/out", c, by_group)
    return g.make_reshape(f"{name}/out/heads", out, (1, heads, width)), memory


def make_chunks(g: Graph, name: str, tokens: Tokens, memory: Tensor) -> tuple[Tensor, Tensor]:
    """c chunks of C tokens: their outputs, (c * C, H, P), and the memory after them, (1, H, P, S).

    With G the sums of g in a chunk, D_ij = exp(G_i - G_j) for j <= i and else 0, x the values times
    their steps and M the memory before it: output = ((C B^T) D) x + exp(G) C M^T, and the new
    memory is exp(G_C) M + (exp(G_C - G) x)^T B. Source: Dao and Gu, 2024 (arXiv:2405.21060),
    section 6.
    """
    x, b, c, decay = tokens
    count, heads, size, width = x.shape
    groups, state = b.shape[1], b.shape[3]
    per_group = heads // groups
    row = make_sums(g, f"{name}/g", decay)
    total = g.make_transpose(f"{name}/total", row, (0, 1, 3, 2))
    # Above the diagonal differences are positive and large; they are not to become infinite.
    between = g.make_sub(f"{name}/between", total, row)
    between = g.make_minimum(f"{name}/between/past", between, g.constant("mamba/nothing", 0.0))
    between = g.make_exp(f"{name}/between/exp", between)
    alike = g.make_batch_matmul(f"{name}/alike", c, b)
    alike = g.make_mul(f"{name}/alike/past", alike, make_lower(g, size))
    alike = g.make_reshape(f"{name}/alike/one", alike, (count * groups, 1, size, size))
    seen = g.make_reshape(
        f"{name}/between/groups", between, (count * groups, per_group, size, size)
    )
    seen = g.make_mul(f"{name}/seen/groups", seen, alike)
    seen = g.make_reshape(f"{name}/seen", seen, between.shape)
    own = g.make_batch_matmul(f"{name}/own", seen, x, transposed=False)
    own = make_rows(g, f"{name}/own/rows", own, heads)

    end = g.make_slice(f"{name}/end", total, (0, 0, size - 1, 0), (count, heads, 1, 1))
    left = g.make_exp(f"{name}/left/exp", g.make_sub(f"{name}/left", end, total))
    written = g.make_mul(f"{name}/x/left", x, left)
    written = g.make_transpose(f"{name}/x/columns", written, (0, 1, 3, 2))
    written = g.make_reshape(f"{name}/x/groups", written, (count, groups, per_group * width, size))
    added = g.make_batch_matmul(f"{name}/added", written, b, transposed=False)
    added = g.make_reshape(f"{name}/added/heads", added, (count, heads, width, state))
    end = g.make_exp(f"{name}/end/exp", end)

    outs = []
    for i in range(count):
        of = f"{name}/{i}"

        def one(part: str, x: Tensor, i: int = i, of: str = of) -> Tensor:
            if count == 1:
                return x
            return g.make_slice(f"{of}/{part}", x, (i, 0, 0, 0), (1, *x.shape[1:]))

        by_group = (1, groups, per_group * width, state)
        before = g.make_reshape(f"{of}/memory/groups", memory, by_group)
        told = g.make_batch_matmul(f"{of}/told", one("c", c), before)
        outs.append(make_rows(g, f"{of}/told/rows", told, heads))
        kept = g.make_mul(f"{of}/kept", memory, one("end", end))
        memory = g.make_add(f"{of}/memory", kept, one("added", added))
    told = make_joined(g, f"{name}/told", outs)
    grown = make_rows(g, f"{name}/grown/rows", g.make_exp(f"{name}/grown", total), heads)
    told = g.make_mul(f"{name}/told/decayed", told, grown)
    return g.make_add(f"{name}/out", own, told), memory


def make_rows(g: Graph, name: str, x: Tensor, heads: int) -> Tensor:
    """(c, H, C, d) or (c, G, C, H/G * d) -> (c * C, H, d)."""
    count, outer, size, width = x.shape
    if outer > 1:
        x = g.make_transpose(f"{name}/first", x, (0, 2, 1, 3))
    return g.make_reshape(name, x, (count * size, heads, outer * width // heads))
