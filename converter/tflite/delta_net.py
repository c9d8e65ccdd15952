"""Layers of the gated delta rule: a memory of one matrix per head, whatever the context's length.

    x -> qkv -> convolution along the tokens -> memory -> norm, gate -> o

What it keeps between calls, and how that stays right: `recurrence`. Rows of padding neither decay a
memory nor add to it: g = beta = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from converter.decoder import Activation, GatedDeltaNet
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

_EPSILON = 1e-6  # of the lengths of q and k


class Heads(NamedTuple):
    """What tokens bring to the memory, in float32, heads H before rows C of c chunks.

    Attributes:
        q, k: (c, H, C, key_dim), of length 1, q also divided by sqrt(key_dim).
        v: (c, H, C, value_dim).
        g: the logarithm of the decay, 0 for padding, (c, H, C, 1).
        beta: the strength, 0 for padding, (c, H, C, 1).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor


class DeltaNetLayers(RecurrentLayers[GatedDeltaNet]):
    """The delta-net layers of one signature."""

    def __init__(self, blocks: Blocks, mixers: Mapping[int, GatedDeltaNet]) -> None:
        super().__init__(blocks, "delta", mixers)

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare a layer's columns, (1, kernel - 1, channels), and its memory, (1, H, k, v)."""
        mixer = self.mixers[index]
        return self.declare(
            index,
            columns_state(index, mixer.kernel, sum(mixer.widths)),
            memory_state(
                f"kv_cache_r_{index}", mixer.num_value_heads, mixer.key_dim, mixer.value_dim
            ),
        )

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Bring a layer's states up to date with what it is fed with, (N, hidden)."""
        name, mixer, g, n = at(block), self.mixers[index], self.graph, self.length
        columns, memory = self.inputs[index]
        new = self.blocks.make_part(block, "qkv", (), x)
        mixed, last = self.recurrence.make_convolution(block, Activation.SILU, False, new, columns)
        g.add_output(f"kv_cache_c_{index}", last)
        decay, beta = self.make_gates(block, mixer, x)
        parts = self.split(name, mixed, "qkv", mixer.widths)
        if n == 1:
            heads = self.make_heads(name, mixer, (*parts, decay, beta), 0, 1, 1)
            decayed = g.make_mul(
                f"{name}/decayed", g.make_exp(f"{name}/exp", heads.g), self.recurrence.keep
            )
            out, memory = make_step(g, name, heads, decayed, memory)
        else:
            memory = g.make_mul(f"{name}/memory", memory, self.recurrence.keep)
            outs, whole = [], n // CHUNK
            for start, count, size in ((0, whole, CHUNK), (whole * CHUNK, 1, n % CHUNK)):
                if count and size:
                    of = f"{name}/from_{start}"
                    heads = self.make_heads(of, mixer, (*parts, decay, beta), start, count, size)
                    if size == 1:
                        decayed = g.make_exp(f"{of}/exp", heads.g)
                        out, memory = make_step(g, of, heads, decayed, memory)
                    else:
                        out, memory = make_chunks(g, of, heads, memory)
                    outs.append(self.make_rows(f"{of}/rows", out))
            out = outs[0] if len(outs) == 1 else g.make_concatenation(f"{name}/out", outs, axis=0)
        self.outputs[index] = out
        g.add_output(f"kv_cache_r_{index}", memory)

    def mix(self, index: int, block: str, x: Tensor) -> Tensor:
        """What the memory says, normalised and gated, (N, hidden) -> the same."""
        g, name, mixer, blocks = self.graph, at(block), self.mixers[index], self.blocks
        shape = self.length, mixer.num_value_heads, mixer.value_dim
        out = g.make_reshape(f"{name}/heads", self.outputs[index], shape)
        out = blocks.make_norm(f"{name}/out_norm", out, f"{block}.out_norm", mixer.norm)
        gate = blocks.make_activation(
            f"{block}.z", Activation.SILU, blocks.make_part(block, "z", (), x)
        )
        out = g.make_reshape(f"{name}/flat", out, (self.length, mixer.widths[2]))
        return blocks.make_part(block, "o", (), g.make_mul(f"{name}/gated", out, gate))

    # Before the memory ----------------------------------------------------------------------------

    def make_gates(self, block: str, mixer: GatedDeltaNet, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the decay and the strength of every token, both (N, H)."""
        g, name, blocks = self.graph, at(block), self.blocks
        beta = g.make_logistic(f"{name}/strength", blocks.make_part(block, "beta", (), x))
        step = blocks.weight(f"{block}.step")
        step = g.make_add(f"{name}/step", blocks.make_part(block, "alpha", (), x), step)
        soft = make_softplus(g, name, step)
        decay = g.make_mul(f"{name}/g", soft, blocks.weight(f"{block}.decay"))
        if self.length == 1:
            return decay, beta
        return (
            g.make_mul(f"{name}/g/real", decay, self.recurrence.real),
            g.make_mul(f"{name}/strength/real", beta, self.recurrence.real),
        )

    def make_heads(
        self,
        name: str,
        mixer: GatedDeltaNet,
        parts: tuple[Tensor, ...],
        start: int,
        count: int,
        size: int,
    ) -> Heads:
        """Rows of q, k, v, g and beta, each (N, heads * width), as the memory takes them."""
        g, keys, values = self.graph, mixer.num_key_heads, mixer.num_value_heads
        made = []
        for part, x, heads in zip(Heads._fields, parts, (keys, keys, *[values] * 3), strict=True):
            at_, width = f"{name}/{part}/heads", x.shape[1] // heads
            if count * size < self.length:
                x = g.make_slice(f"{at_}/rows", x, (start, 0), (count * size, x.shape[1]))
            if size == 1:
                x = g.make_reshape(at_, x, (count, heads, 1, width))
            else:
                x = g.make_reshape(f"{at_}/split", x, (count, size, heads, width))
                x = g.make_transpose(at_, x, (0, 2, 1, 3))
            if part in ("q", "k"):
                x = self.make_unit(f"{name}/{part}/unit", x, mixer.key_dim, part == "q")
                x = self.make_repeated(f"{name}/{part}/repeated", x, mixer)
            made.append(x)
        return Heads(*made)

    def make_unit(self, name: str, x: Tensor, width: int, is_scaled: bool) -> Tensor:
        """x / sqrt(sum of squares + 1e-6) over the last axis; of q also / sqrt(width)."""
        g = self.graph
        total = g.make_sum(f"{name}/sum", g.make_mul(f"{name}/square", x, x))
        total = g.make_add(f"{name}/sum/plus", total, g.constant("delta/epsilon", _EPSILON))
        if is_scaled:
            total = g.make_mul(f"{name}/scaled", total, g.constant("delta/width", float(width)))
        return g.make_mul(name, x, g.make_rsqrt(f"{name}/rsqrt", total))

    def make_repeated(self, name: str, x: Tensor, mixer: GatedDeltaNet) -> Tensor:
        """Key heads, (c, heads, C, d), as many times as there are value heads for each."""
        g, (count, heads, size, d) = self.graph, x.shape
        times = mixer.num_value_heads // heads
        if times == 1:
            return x
        if mixer.is_tiled:
            return g.make_concatenation(name, [x] * times, axis=1)
        flat = g.make_reshape(f"{name}/flat", x, (count, heads, 1, size * d))
        copies = g.make_concatenation(f"{name}/copies", [flat] * times, axis=2)
        return g.make_reshape(name, copies, (count, heads * times, size, d))

    def make_rows(self, name: str, out: Tensor) -> Tensor:
        """(c, H, C, d) -> (c * C, H, d)."""
        count, heads, size, d = out.shape
        out = self.graph.make_transpose(f"{name}/first", out, (0, 2, 1, 3))
        return self.graph.make_reshape(name, out, (count * size, heads, d))


def make_step(
    g: Graph, name: str, heads: Heads, decay: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: its output, (1, H, 1, v), and the new memory, (1, H, k, v).

    With M the old memory: d = beta (v - decay M^T k), output = decay M^T q + (q . k) d, so that M
    is read once for both; the new one is decay M + k d^T. `decay` is (1, H, 1, 1).
    """
    q, k, v, _, beta = heads
    _, count, _, width = v.shape
    both = g.make_concatenation(f"{name}/kq", (k, q), axis=2)
    told = g.make_batch_matmul(f"{name}/told", both, memory, transposed=False)
    told = g.make_mul(f"{name}/told/decayed", told, decay)
    of_k = g.make_slice(f"{name}/told_k", told, (0, 0, 0, 0), (1, count, 1, width))
    of_q = g.make_slice(f"{name}/told_q", told, (0, 0, 1, 0), (1, count, 1, width))
    d = g.make_mul(f"{name}/delta", g.make_sub(f"{name}/error", v, of_k), beta)
    qk = g.make_sum(f"{name}/qk", g.make_mul(f"{name}/qk/products", q, k))
    out = g.make_add(f"{name}/out", of_q, g.make_mul(f"{name}/new", d, qk))
    column = g.make_reshape(f"{name}/k/column", k, (1, count, k.shape[3], 1))
    kept = g.make_mul(f"{name}/memory/kept", memory, decay)
    added = g.make_mul(f"{name}/memory/added", column, d)
    return out, g.make_add(f"{name}/memory/new", kept, added)


def make_chunks(g: Graph, name: str, heads: Heads, memory: Tensor) -> tuple[Tensor, Tensor]:
    """c chunks of C tokens: their outputs, (c, H, C, v), and the memory after them, (1, H, k, v).

    With G the sums of g in a chunk, D_ij = exp(G_i - G_j) for j <= i and else 0, and M the memory
    before it: A = beta (k k^T) D below the diagonal, T = (I + A)^-1, V = T(beta v) -
    T(beta k exp(G)) M, output = (q exp(G)) M + ((q k^T) D) V, and the new memory is exp(G_C) M +
    (k exp(G_C - G))^T V. Source: Yang et al., 2024 (arXiv:2412.06464), section 3.3.
    """
    q, k, v, decay, beta = heads
    count, num, size, width = v.shape
    keys = k.shape[3]
    total = make_sums(g, f"{name}/g", g.make_reshape(f"{name}/g/row", decay, (count, num, size)))
    row = g.make_reshape(f"{name}/total/row", total, (count, num, 1, size))
    total = g.make_reshape(f"{name}/total/column", total, (count, num, size, 1))
    # Above the diagonal differences are positive and large; they are not to become infinite.
    between = g.make_sub(f"{name}/between", total, row)
    between = g.make_minimum(f"{name}/between/past", between, g.constant("delta/nothing", 0.0))
    between = g.make_exp(f"{name}/between/exp", between)
    grown = g.make_exp(f"{name}/total/exp", total)

    strong = g.make_mul(f"{name}/k/strong", k, beta)
    a = g.make_batch_matmul(f"{name}/kk", strong, k)
    inverse = make_inverse(g, f"{name}/inverse", g.make_mul(f"{name}/a", a, between))
    both = g.make_concatenation(
        f"{name}/fed",
        (
            g.make_mul(f"{name}/k/grown", strong, grown),
            g.make_mul(f"{name}/v/strong", v, beta),
        ),
        axis=3,
    )
    both = g.make_batch_matmul(f"{name}/solved", inverse, both, transposed=False)
    shape = count, num, size, keys
    of_k = g.make_slice(f"{name}/solved/k", both, (0, 0, 0, 0), shape)
    of_v = g.make_slice(f"{name}/solved/v", both, (0, 0, 0, keys), (count, num, size, width))
    looks = g.make_concatenation(
        f"{name}/looks", (of_k, g.make_mul(f"{name}/q/grown", q, grown)), axis=2
    )
    seen = g.make_mul(f"{name}/qk/past", g.make_batch_matmul(f"{name}/qk", q, k), between)
    seen = g.make_mul(f"{name}/seen", seen, make_lower(g, size))
    end = g.make_slice(f"{name}/end", total, (0, 0, size - 1, 0), (count, num, 1, 1))
    left = g.make_exp(f"{name}/left/exp", g.make_sub(f"{name}/left", end, total))
    written = g.make_mul(f"{name}/k/left", k, left)
    written = g.make_transpose(f"{name}/k/columns", written, (0, 1, 3, 2))
    end = g.make_exp(f"{name}/end/exp", end)

    outs = []
    for i in range(count):
        of = f"{name}/{i}"

        def one(part: str, x: Tensor, i: int = i, of: str = of) -> Tensor:
            if count == 1:
                return x
            return g.make_slice(f"{of}/{part}", x, (i, 0, 0, 0), (1, *x.shape[1:]))

        told = g.make_batch_matmul(f"{of}/told", one("looks", looks), memory, transposed=False)
        of_look = g.make_slice(f"{of}/told/k", told, (0, 0, 0, 0), (1, num, size, width))
        of_q = g.make_slice(f"{of}/told/q", told, (0, 0, size, 0), (1, num, size, width))
        new = g.make_sub(f"{of}/new", one("values", of_v), of_look)
        own = g.make_batch_matmul(f"{of}/own", one("seen", seen), new, transposed=False)
        outs.append(g.make_add(f"{of}/out", of_q, own))
        kept = g.make_mul(f"{of}/kept", memory, one("end", end))
        added = g.make_batch_matmul(f"{of}/added", one("written", written), new, transposed=False)
        memory = g.make_add(f"{of}/memory", kept, added)
    return make_joined(g, f"{name}/outs", outs), memory


def make_inverse(g: Graph, name: str, a: Tensor) -> Tensor:
    """(I + A)^-1 of the part of A below the diagonal, (c, H, C, C).

    Of blocks on the diagonal: [[X, 0], [B, Y]]^-1 = [[X^-1, 0], [-Y^-1 B X^-1, Y^-1]], from blocks
    of one row on. The product of I + (-A)^(2^n) would be as cheap, but its powers grow without
    bound where keys are alike: 64 equal tokens leave nothing of float32.
    """
    size = a.shape[3]
    rows = np.arange(size)
    inverse = None
    level = 1
    while level < size:
        pair, half = rows // (2 * level), rows // level % 2
        is_below = (pair[:, None] == pair) & (half[:, None] == 1) & (half == 0)
        mask = g.constant(f"delta/below_{size}_{level}", is_below.astype(np.float32))
        below = g.make_mul(f"{name}/below_{level}", a, mask)
        if inverse is None:
            one = g.constant(f"delta/unit_{size}", np.eye(size, dtype=np.float32))
            inverse = g.make_sub(f"{name}/{level}", one, below)
        else:
            solved = g.make_batch_matmul(f"{name}/b_x_{level}", below, inverse, transposed=False)
            solved = g.make_batch_matmul(f"{name}/y_b_x_{level}", inverse, solved, transposed=False)
            inverse = g.make_sub(f"{name}/{level}", inverse, solved)
        level *= 2
    assert inverse is not None  # a chunk has two tokens at least
    return inverse
