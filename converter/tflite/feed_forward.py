"""Feed-forward blocks: what a layer makes of each token alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from converter.decoder import Experts, FeedForward, Norm, Router
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import DType, Graph, Tensor

# Calls of more tokens give every expert its own ones, so many at once: fewer would be multiplied
# badly, of more most are none of its own (benchmarks.experts).
ALL_ROWS = 8
ROWS_AT_ONCE = 32


def make_feed_forward(
    blocks: Blocks, block: str, feed_forward: FeedForward | Experts, x: Tensor, residual: Tensor
) -> Tensor:
    """A layer's second block, (N, hidden) -> the same; `residual` is the stream it is added to."""
    if isinstance(feed_forward, Experts):
        return ExpertLayer(blocks, block, feed_forward).make(x, residual)
    return make_dense(blocks, block, feed_forward, x)


def make_dense(blocks: Blocks, block: str, feed_forward: FeedForward, x: Tensor) -> Tensor:
    """down(activation(gate(x)) * up(x)), or without a gate."""
    name, biases = at(block), feed_forward.biases
    up = None
    if feed_forward.is_gated:
        gate = blocks.make_part(block, "gate", biases, x)
        up = blocks.make_part(block, "up", biases, x)
        if feed_forward.cutoff is not None:
            gate = _make_cutoff(blocks.graph, f"{name}/cutoff", gate, feed_forward.cutoff)
        gate, up = _make_limited(blocks.graph, name, gate, up, feed_forward)
    else:
        gate = blocks.make_part(block, "up", biases, x)
    product = blocks.make_activation(block, feed_forward.activation, gate)
    if up is not None:
        product = blocks.graph.make_mul(f"{name}/gated", product, up)
    return blocks.make_part(block, "down", biases, product)


def _make_limited(
    g: Graph, name: str, gate: Tensor, up: Tensor, feed_forward: FeedForward
) -> tuple[Tensor, Tensor]:
    """See `FeedForward.limit` and `up_offset`."""
    if feed_forward.limit is not None:
        most = g.constant("limit/most", feed_forward.limit)
        least = g.constant("limit/least", -feed_forward.limit)
        gate = g.make_minimum(f"{name}/gate/limited", gate, most)
        up = g.make_minimum(f"{name}/up/below", up, most)
        up = g.make_maximum(f"{name}/up/limited", up, least)
    if feed_forward.up_offset:
        offset = g.constant("up/offset", feed_forward.up_offset)
        up = g.make_add(f"{name}/up/shifted", up, offset)
    return gate, up


def _make_cutoff(g: Graph, name: str, x: Tensor, cutoff: float) -> Tensor:
    """What rises above most of its row; see `FeedForward.cutoff`."""
    centred = g.make_sub(f"{name}/centred", x, g.make_mean(f"{name}/mean", x))
    square = g.make_mul(f"{name}/square", centred, centred)
    deviation = g.make_sqrt(f"{name}/deviation", g.make_mean(f"{name}/variance", square))
    level = g.make_mul(f"{name}/level", deviation, g.constant(f"{name}/factor", cutoff))
    above = g.make_sub(f"{name}/above", centred, level)
    return g.make_maximum(name, above, g.constant("cutoff/zero", 0.0))


class ExpertLayer:
    """The experts of one layer in one signature; see `converter.decoder.Experts`.

    Each expert stands in a body of its own behind an IF, which adds what it makes of its tokens to
    a sum that is handed from one to the next: an expert that no token takes is not computed. In a
    call of a few tokens it gets all of them, most with weight 0. In a longer one they are sorted by
    their weights for it, and taken some at a time as long as some have a weight.
    """

    def __init__(
        self,
        blocks: Blocks,
        block: str,
        experts: Experts,
        all_rows: int = ALL_ROWS,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        """
        Args:
            all_rows: a call of more tokens gives every expert its own ones,
            rows_at_once: so many at once.
        """
        self.all_rows = all_rows
        self.rows_at_once = rows_at_once
        self.blocks = blocks
        self.graph = blocks.graph
        self.block = block
        self.name = at(block)
        self.experts = experts

    def make(self, x: Tensor, residual: Tensor) -> Tensor:
        """(N, hidden) -> the same."""
        g, experts = self.graph, self.experts
        weights = self.make_weights(self.make_norm("router_norm", residual, experts.router_norm, x))
        shared = self.make_shared(x) if experts.shared is not None else None
        norm = experts.own_norms
        if norm is None:
            return self.make_sum(x, shared, weights)
        x = self.make_norm("experts.norm", residual, norm, x)
        total = self.make_sum(x, None, weights)
        total = self.make_norm("experts.post_norm", total, norm, total)
        if shared is None:
            return total
        shared = self.make_norm("shared.post_norm", shared, norm, shared)
        return g.make_add(f"{self.name}/both", shared, total)

    def make_norm(self, part: str, x: Tensor, norm: Norm | None, otherwise: Tensor) -> Tensor:
        """One of the norms that some have; `otherwise` where there is none."""
        if norm is None:
            return otherwise
        path = f"{self.block}.{part}"
        return self.blocks.make_norm(at(path), x, path, norm)

    def make_shared(self, x: Tensor) -> Tensor:
        """What every token is given, (N, hidden) -> the same."""
        g, block, experts = self.graph, f"{self.block}.shared", self.experts
        assert experts.shared is not None
        made = make_dense(self.blocks, block, experts.shared, x)
        if not experts.shared_is_gated:
            return made
        name = f"{self.name}/shared_gate"
        product = g.make_mul(f"{name}/product", x, self.blocks.weight(f"{self.block}.shared_gate"))
        share = g.make_logistic(name, g.make_sum(f"{name}/sum", product))
        return g.make_mul(f"{at(block)}/gated_by_token", made, share)

    def make_sum(self, x: Tensor, total: Tensor | None, weights: Tensor) -> Tensor:
        """`total` and what the experts make of x, times their weights, (N, count)."""
        if total is None:
            total = self.graph.constant("experts/none", np.zeros(x.shape, np.float32))
        by_expert = self.graph.make_transpose(f"{self.name}/by_expert", weights, (1, 0))
        if self.blocks.length <= self.all_rows:
            return self.add_to_all(x, total, weights, by_expert)
        return self.add_to_own(x, total, by_expert)

    def make_weights(self, x: Tensor) -> Tensor:
        """Of every expert for every token, 0 where it is not taken: (N, hidden) -> (N, count)."""
        g, name, experts, n = self.graph, self.name, self.experts, self.blocks.length
        biases = ("router",) if experts.router_bias else ()
        logits = self.blocks.make_part(self.block, "router", biases, x)
        if experts.router is Router.SIGMOID:
            scores = compared = g.make_logistic(f"{name}/scores", logits)
        else:
            scores, compared = g.make_softmax(f"{name}/scores", logits), logits
        if experts.choice_bias:
            bias = self.blocks.weight(f"{self.block}.choice")
            compared = g.make_add(f"{name}/compared", scores, bias)
        best, _ = g.make_top_k(f"{name}/best", compared, experts.active)
        least = g.make_slice(f"{name}/least", best, (0, experts.active - 1), (n, 1))
        taken = g.make_greater_equal(f"{name}/is_taken", compared, least)
        taken = g.make_cast(f"{name}/taken", taken, DType.FLOAT32)
        weights = g.make_mul(f"{name}/weights", scores, taken)
        if experts.renormalises:
            total = g.make_sum(f"{name}/weights/sum", weights)
            if experts.epsilon:
                epsilon = g.constant("experts/epsilon", experts.epsilon)
                total = g.make_add(f"{name}/weights/above_zero", total, epsilon)
            weights = g.make_div(f"{name}/weights/normed", weights, total)
        if experts.scale != 1:
            scale = g.constant("experts/scale", experts.scale)
            weights = g.make_mul(f"{name}/weights/scaled", weights, scale)
        return weights

    def add_to_all(self, x: Tensor, total: Tensor, weights: Tensor, by_expert: Tensor) -> Tensor:
        """The sum over experts, each given all rows."""
        g, name, count, n = self.graph, self.name, self.experts.count, self.blocks.length
        largest = g.make_reduce_max(f"{name}/largest", by_expert)
        is_used = self.flat_is_used(largest)
        weights = self.make_scaled(weights, (1, count))
        for e in range(count):
            column = g.make_slice(f"{name}/weights/{e}", weights, (0, e), (n, 1))
            total = self.add(e, e, is_used, (x, total, column))
        return total

    def add_to_own(self, x: Tensor, total: Tensor, by_expert: Tensor) -> Tensor:
        """The sum over experts, each given the rows that take it."""
        g, name, count, n = self.graph, self.name, self.experts.count, self.blocks.length
        weights, rows = g.make_top_k(f"{name}/sorted", by_expert, n)
        is_used = self.flat_is_used(weights)
        weights = self.make_scaled(weights, (count, 1))
        # Below each other, so that a piece is one slice: many ops are much to load.
        weights = g.make_reshape(f"{name}/sorted/column", weights, (count * n, 1))
        rows = g.make_reshape(f"{name}/sorted/rows", rows, (count * n,))
        for start in range(0, n, self.rows_at_once):
            size = min(self.rows_at_once, n - start)
            for e in range(count):
                first = e * n + start
                own = g.make_slice(f"{name}/rows/{first}", rows, (first,), (size,))
                column = g.make_slice(f"{name}/weights/{first}", weights, (first, 0), (size, 1))
                total = self.add(e, first, is_used, (x, total, column, own))
        return total

    def make_scaled(self, weights: Tensor, shape: tuple[int, int]) -> Tensor:
        """Times each expert's own number, which may be below zero; `shape` says how they lie."""
        if not self.experts.has_scales:
            return weights
        g, name = self.graph, f"{self.name}/scales"
        scales = g.make_reshape(name, self.blocks.weight(f"{self.block}.scales"), shape)
        return g.make_mul(f"{name}/weights", weights, scales)

    def flat_is_used(self, weights: Tensor) -> Tensor:
        """Which of the weights are above zero, one after the other."""
        g, name = self.graph, f"{self.name}/is_used"
        least = g.constant("experts/least", _LEAST)
        is_used = g.make_greater_equal(name, weights, least)
        return g.make_reshape(f"{name}/flat", is_used, (math.prod(weights.shape),))

    def add(self, e: int, place: int, is_used: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """`total`, the second input, and the expert's part where `is_used[place]` says so."""
        g, name = self.graph, f"{self.name}/add/{place}"
        condition = g.make_slice(f"{name}/is_used", is_used, (place,), (1,))
        then, otherwise = self.expert_body(e, inputs), self.empty_body(inputs)
        return g.make_if(f"{name}/total", condition, then, otherwise, inputs)

    def expert_body(self, e: int, inputs: tuple[Tensor, ...]) -> Graph:
        """The branch in which an expert is computed."""
        block = f"{self.block}.experts.{e}"
        body, copies = self.body(block, inputs)
        if body.outputs:
            return body
        x, total, weights, *rows = copies
        call = dataclasses.replace(self.blocks.call, graph=body, length=weights.shape[0])
        if rows:
            x = body.make_gather("own", x, rows[0], 0)
        made = make_dense(Blocks(call, self.blocks.weight_of), block, self.experts.expert, x)
        made = body.make_mul("weighted", made, weights)
        if rows:
            places = body.make_reshape("places", rows[0], (*rows[0].shape, 1))
            made = body.make_scatter("spread", places, made, total.shape)
        body.add_output("total", body.make_add("sum", total, made))
        return body

    def empty_body(self, inputs: tuple[Tensor, ...]) -> Graph:
        """The branch in which nothing is added."""
        body, copies = self.body("experts/none", inputs)
        if not body.outputs:
            body.add_output("total", copies[1])
        return body

    def body(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Graph, tuple[Tensor, ...]]:
        """A branch that is given `inputs`; signatures of as many rows share it."""
        model = self.blocks.model
        name = f"{name}/{inputs[0].shape[0]}_rows/{inputs[2].shape[0]}"
        body = model.bodies.get(name)
        if body is None:
            body = model.add_body(name)
            for part, tensor in zip(_INPUTS, inputs, strict=False):
                body.add_input(part, tensor.shape, tensor.dtype)
        return body, tuple(body.inputs.values())


_INPUTS = ("x", "total", "weights", "rows")
# Below all weights of experts that are taken, but for some that change nothing.
_LEAST = 1e-12
