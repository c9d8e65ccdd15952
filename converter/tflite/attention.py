"""Attention: softmax(q @ keys^T + mask) @ values, over no more columns than are in use.

N tokens in this call, heads in groups that share a key-value head: kv * group heads, d = head_dim.
The queries of a group stand in the rows of one matrix, (1, kv, group * N, d), so that keys and
values are not repeated. Rows and columns are told by their positions in the text, as floats, which
the runtime's delegate computes with: exact up to 2^24.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from converter.tflite.graph import DType, Graph, Model, Tensor

# Added to the scores of columns out of sight, times how far they are.
_HIDDEN = 1e9
# The position of a column that holds nothing: in the future of every row.
NOWHERE = 1 << 23
# How many columns may be read instead of all. More steps would read less, but the runtime prepares
# the bodies that are not taken anew at every call, for every layer.
LEVELS = (256, 512, 1024, 2048, 4096, 8192, 16384)
# A call of so many tokens has a level for itself: the first one of a prompt.
_LONG_CALL = 64
# Cutting columns off copies them; to read more than this share of all, read all.
_WORTH_CUTTING = 0.7
# A prefill's rows are taken so many at once: early ones need not look at the columns of late ones.
ROWS_AT_ONCE = 256
# The keys of a decode are taken so many bytes at once, and no more columns: cut off, packed and
# multiplied in the processor's cache. And not in more pieces than this. Where all are read nothing
# need be cut off, which is quicker as long as they are no larger than such a cache.
_TILE_BYTES = 1 << 20
_TILE_COLUMNS = 512
_TILES = 8
_LARGE_BYTES = 8 << 20
_JOINED_AT_ONCE = 4  # the delegate takes no more
# If they are many, a prefill's columns are taken so many at once, lest its memory grow with them.
_MANY_COLUMNS = 2048
_MERGED_COLUMNS = 1024

# A mask from the first column and their number: (1, 1, N, columns), or (1, 1, group * N, columns)
# where it is repeated for the heads of a group.
MaskOf = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Scores:
    """What happens to scores beside the mask; see `converter.decoder.Attention`.

    Attributes:
        softcap: queries are divided by it already.
        sinks: (heads,).
    """

    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Held:
    """Keys or values as a cache holds them.

    int8 ones are whole steps, and each column has a scale of its own.

    Attributes:
        data: float32, float16 or int8, (1, kv, columns, d), or (1, kv, d, columns).
        axis: along which columns lie, 2 or 3.
        scales: of int8, (1, kv, 1, columns), float32.
    """

    data: Tensor
    axis: int = 2
    scales: Tensor | None = None

    @property
    def columns(self) -> int:
        return self.data.shape[self.axis]

    @property
    def is_large(self) -> bool:
        """Whether a packed or widened copy of all would not stay in the processor's cache."""
        return self.data.dtype.nbytes(math.prod(self.data.shape)) >= _LARGE_BYTES

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.data,) if self.scales is None else (self.data, self.scales)

    def of(self, tensors: Sequence[Tensor]) -> Held:
        """The same in other tensors, such as a body's inputs."""
        return Held(tensors[0], self.axis, *tensors[1:])

    def steps(self, g: Graph, name: str, start: int, size: int) -> Tensor:
        """Some columns as float32, but for their scales."""
        return make_float(g, f"{name}/float32", cut(g, name, self.data, self.axis, start, size))

    def floats(self, g: Graph, name: str, start: int, size: int) -> Tensor:
        """Some columns, float32."""
        steps = self.steps(g, name, start, size)
        if self.scales is None:
            return steps
        scales = cut(g, f"{name}/scales", self.scales, 3, start, size)
        if self.axis == 2:
            scales = g.make_reshape(f"{name}/scales/rows", scales, (1, scales.shape[1], size, 1))
        return g.make_mul(f"{name}/scaled", steps, scales)

    def scaled(self, g: Graph, name: str, x: Tensor, start: int) -> Tensor:
        """Scores or weights of some columns, (1, kv, rows, columns), times their scales."""
        if self.scales is None:
            return x
        scales = cut(g, f"{name}/scales", self.scales, 3, start, x.shape[3])
        return g.make_mul(f"{name}/scaled", x, scales)


@dataclass(frozen=True)
class Columns:
    """Columns that may be looked at.

    Attributes:
        holds: with how many columns in use these are enough.
    """

    holds: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def tiles(self, width: int) -> list[tuple[int, int]]:
        """(start, size) of the pieces that are `width` wide; the last may be narrower."""
        return [(at, min(width, self.stop - at)) for at in range(self.start, self.stop, width)]


def first_columns(rows: int, everything: int) -> tuple[Columns, ...]:
    """The choices where columns are used from the first one on."""
    most = _WORTH_CUTTING * everything
    levels = {rows} if rows >= _LONG_CALL else set()
    levels |= {level for level in LEVELS if level >= rows}
    return tuple(
        Columns(level, 0, level)
        for level in (*sorted(level for level in levels if level <= most), everything)
    )


@dataclass(frozen=True)
class Rows:
    """Rows of a call that look at the same columns.

    Attributes:
        start: the first of them.
        positions: (1, 1, rows, 1), float32.
        needed: how many columns are in use, (1,).
        choices: ascending by what they hold; the last is taken when none is enough.
    """

    start: int
    positions: Tensor
    needed: Tensor
    choices: tuple[Columns, ...]


class _Inputs(NamedTuple):
    """What a body is handed; see `AttentionByRows`.

    Attributes:
        q: (1, N, heads, d).
        rows, needed: `Rows.positions` and `Rows.needed`.
        columns: positions of the keys.
    """

    q: Tensor
    keys: Held
    values: Held
    rows: Tensor
    columns: Tensor
    needed: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """One after another."""
        parts = (part.tensors if isinstance(part, Held) else (part,) for part in self)
        return tuple(tensor for part in parts for tensor in part)

    def add_to(self, body: Graph) -> _Inputs:
        """The same as inputs of a body, in the order of `tensors`."""

        def add(name: str, x: Tensor) -> Tensor:
            return body.add_input(name, x.shape, x.dtype)

        def hold(name: str, part: Held) -> Held:
            return part.of([add(f"{name}/{i}", x) for i, x in enumerate(part.tensors)])

        return _Inputs(
            add("q", self.q),
            hold("keys", self.keys),
            hold("values", self.values),
            *(add(name, x) for name, x in zip(self._fields[3:], self[3:], strict=True)),
        )


class AttentionByRows:
    """The attention of one kind of layer in one call: for each of `rows` the fitting columns.

    Each choice of columns has a body of its own, behind nested IFs: a binary search. All layers and
    signatures share the bodies. They are handed all keys and values, which the runtime does not
    copy, and cut off what they read.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        name: str,
        rows: Sequence[Rows],
        columns: Tensor,
        window: int | None,
    ) -> None:
        """
        Args:
            columns: positions of the keys, (1, 1, 1, columns), float32.
            window: how many positions a row sees, itself included; None for all before it.
        """
        self.model = model
        self.graph = graph
        self.name = name
        self.rows = rows
        self.columns = columns
        self.window = window

    def attend(self, name: str, q: Tensor, keys: Held, values: Held, scores: Scores) -> Tensor:
        """One layer's attention: (1, N, heads, d) -> the same shape."""
        parts = []
        for rows in self.rows:
            part = f"{name}/{rows.start}"
            own = cut(self.graph, f"{part}/q", q, 1, rows.start, rows.positions.shape[2])
            inputs = _Inputs(own, keys, values, rows.positions, self.columns, rows.needed)
            parts.append(self._choose(self.graph, part, rows.choices, inputs, scores))
        return _join(self.graph, f"{name}/rows", parts, axis=1)

    def _choose(
        self,
        g: Graph,
        name: str,
        choices: tuple[Columns, ...],
        inputs: _Inputs,
        scores: Scores,
    ) -> Tensor:
        """Attention over the first of `choices` that is enough."""
        q, keys, values, rows, columns, needed = inputs
        if len(choices) == 1:
            [chosen] = choices
            # Where all that is used is no longer than the window, nothing has left it.
            window = self.window if self.window and self.window < chosen.holds else None

            def mask_of(at: int, size: int) -> Tensor:
                part = cut(g, f"{name}/columns/{at}", columns, 3, at, size)
                return make_mask(g, f"{name}/mask/{at}", rows, part, window)

            return make_attention(g, name, q, keys, values, mask_of, scores, chosen)
        lower, upper = choices[: len(choices) // 2], choices[len(choices) // 2 :]
        holds = g.constant(f"{name}/holds_{lower[-1].holds}", [lower[-1].holds])
        is_enough = g.make_greater_equal(f"{name}/is_enough", holds, needed)
        then, otherwise = (self._body(half, inputs, scores) for half in (lower, upper))
        handed = inputs.tensors if scores.sinks is None else (*inputs.tensors, scores.sinks)
        return g.make_if(f"{name}/context", is_enough, then, otherwise, handed)

    def _body(self, choices: tuple[Columns, ...], inputs: _Inputs, scores: Scores) -> Graph:
        """The branch in which one of `choices` is taken."""
        keys, rows = inputs.keys, inputs.rows
        span = f"{choices[0].start}:{choices[0].stop}-{choices[-1].start}:{choices[-1].stop}"
        name = f"{self.name}/{rows.shape[2]}_rows/{keys.columns}_columns/{span}"
        name += f"/softcap_{scores.softcap}" if scores.softcap else ""
        name += "/sinks" if scores.sinks is not None else ""
        body = self.model.bodies.get(name)
        if body is None:
            body = self.model.add_body(name)
            copies = inputs.add_to(body)
            if scores.sinks is not None:
                sinks = body.add_input("sinks", scores.sinks.shape, scores.sinks.dtype)
                scores = dataclasses.replace(scores, sinks=sinks)
            body.add_output("context", self._choose(body, "attention", choices, copies, scores))
        return body


def make_mask(g: Graph, name: str, rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """0 where a row sees a column, else at most -1e9: (1, 1, rows, columns).

    A row at position p sees the positions p - window + 1 to p. Differences, not comparisons: the
    runtime's delegate computes these.

    Args:
        rows: (1, 1, rows, 1), float32.
        columns: (1, 1, 1, columns), float32.
        window: None for all before p.
    """
    ago = g.make_sub(f"{name}/ago", rows, columns)
    zero = g.constant(f"{name}/zero", 0.0)
    hidden = g.make_minimum(f"{name}/future", ago, zero)
    if window is not None:
        oldest = g.constant(f"{name}/oldest", float(window - 1))
        past = g.make_minimum(f"{name}/past", g.make_sub(f"{name}/left", oldest, ago), zero)
        hidden = g.make_add(f"{name}/hidden", hidden, past)
    return g.make_mul(name, hidden, g.constant(f"{name}/scale", _HIDDEN))


def make_attention(
    g: Graph,
    name: str,
    q: Tensor,
    keys: Held,
    values: Held,
    mask_of: MaskOf,
    scores: Scores = Scores(),
    columns: Columns | None = None,
) -> Tensor:
    """softmax(q @ keys^T + mask) @ values: (1, N, heads, d) -> the same shape.

    Args:
        keys, values: all columns.
        mask_of: makes the mask of some columns.
        scores: what happens to scores beside it.
        columns: look at these alone, by pieces where that is cheaper; None for all at once.
    """
    _, n, heads, d = q.shape
    kv, everything = keys.data.shape[1], keys.columns
    rows = heads // kv * n
    heads_first = make_heads_first(g, f"{name}/q/heads_first", q)
    q = g.make_reshape(f"{name}/q/grouped", heads_first, (1, kv, rows, d))
    if scores.sinks is not None:  # a row for every query
        each = g.make_reshape(f"{name}/sinks/heads", scores.sinks, (kv, heads // kv, 1, 1))
        zeros = g.constant(f"sinks/{n}_zeros", np.zeros((1, 1, n, 1), np.float32))
        each = g.make_add(f"{name}/sinks/queries", each, zeros)
        rows_of = g.make_reshape(f"{name}/sinks", each, (1, kv, rows, 1))
        scores = dataclasses.replace(scores, sinks=rows_of)
    pieces = _Pieces(g, name, q, keys, values, mask_of, scores, n)
    if columns is None:
        context = pieces.join([(0, everything)])
    elif n > 1 and columns.count > _MANY_COLUMNS:
        context = pieces.merge(columns.tiles(_MERGED_COLUMNS))
    # With more rows, scores outweigh keys.
    elif n == 1 and (columns.count < everything or keys.is_large):
        width = min(_TILE_BYTES // (4 * kv * d), _TILE_COLUMNS)
        width = max(width, -(-columns.count // _TILES))
        context = pieces.join(columns.tiles(width))
    else:
        context = pieces.join(columns.tiles(columns.count))
    context = g.make_reshape(f"{name}/heads", context, (1, heads, n, d))
    if n == 1:
        return g.make_reshape(f"{name}/tokens_first", context, (1, n, heads, d))
    return g.make_transpose(f"{name}/tokens_first", context, (0, 2, 1, 3))


@dataclass(frozen=True)
class _Pieces:
    """Attention over columns that are taken some at once; `tiles` are their (start, size).

    Attributes:
        q: (1, kv, group * N, d).
        keys, values, mask_of: see `make_attention`.
        kind: `Scores`, with sinks (1, kv, group * N, 1).
        n: tokens of this call, N.
    """

    g: Graph
    name: str
    q: Tensor
    keys: Held
    values: Held
    mask_of: MaskOf
    kind: Scores
    n: int

    @property
    def is_scaled_late(self) -> bool:
        """Whether scales are taken out of products: q @ (scale * steps) is scale * (q @ steps).

        The delegate then multiplies by int8 as it is, widened in registers. Where rows outnumber
        the steps of a column, it is less work to scale these before.
        """
        return self.q.shape[2] < self.q.shape[3]

    def join(self, tiles: Sequence[tuple[int, int]]) -> Tensor:
        """One softmax over all scores: (1, kv, group * N, d)."""
        g, name, start = self.g, self.name, tiles[0][0]
        count = sum(size for _, size in tiles)
        score = _join(g, f"{name}/scores", [self.scores(*tile) for tile in tiles], axis=3)
        score = self.masked(score, start, count)
        if self.kind.sinks is not None:  # the last column, which nobody reads afterwards
            score = self.in_rows(f"{name}/masked/rows", score)
            score = g.make_concatenation(f"{name}/with_sinks", (score, self.kind.sinks), axis=3)
        weights = g.make_softmax(f"{name}/softmax", score)
        weights = self.in_rows(f"{name}/weights", weights)
        if self.values.scales is not None and self.is_scaled_late:  # of all tiles at once
            weights = cut(g, f"{name}/weights/columns", weights, 3, 0, count)
            weights = self.values.scaled(g, f"{name}/weights", weights, start)
        context: Tensor | None = None
        for at, size in tiles:
            weight = cut(g, f"{name}/weights/{at}", weights, 3, at - start, size)
            part = self.weighted(weight, at, size)
            context = part if context is None else g.make_add(f"{name}/sum/{at}", context, part)
        assert context is not None  # there is at least one column
        return context

    def merge(self, tiles: Sequence[tuple[int, int]]) -> Tensor:
        """The same without holding all scores, (1, kv, group * N, d): they would be most of a long
        prompt's memory.

        As in online softmax (Milakov and Gimelshein, 2018): of each tile the highest score, the sum
        of exp(score - highest) and the values weighted so; they are merged by their highest scores.
        """
        g = self.g
        merged = None if self.kind.sinks is None else self._sink_piece(self.kind.sinks)
        for at, size in tiles:
            name = f"{self.name}/piece_{at}"
            score = self.masked(self.scores(at, size), at, size)
            highest = g.make_reduce_max(f"{name}/highest", score)
            weight = g.make_exp(f"{name}/exp", g.make_sub(f"{name}/below", score, highest))
            total = self.in_rows(f"{name}/total", g.make_sum(f"{name}/sum", weight))
            weight = self.in_rows(f"{name}/weights", weight)
            if self.is_scaled_late:
                weight = self.values.scaled(g, f"{name}/weights", weight, at)
            part = self.weighted(weight, at, size)
            piece = self.in_rows(f"{name}/highest/rows", highest), total, part
            merged = piece if merged is None else self._merge_two(f"{name}/merged", merged, piece)
        assert merged is not None  # there is at least one column
        _, total, context = merged
        return g.make_div(f"{self.name}/context", context, total)

    def _sink_piece(self, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sinks as one more tile, whose values are zero: they only take their share."""
        zero = self.g.make_sub(f"{self.name}/sinks/zero", sinks, sinks)
        return sinks, self.g.make_exp(f"{self.name}/sinks/one", zero), zero

    def _merge_two(
        self, name: str, a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of (highest, total, context), both over the same rows."""
        g = self.g
        highest = g.make_maximum(f"{name}/highest", a[0], b[0])
        parts = []
        for side, (own, total, context) in (("a", a), ("b", b)):
            factor = g.make_exp(
                f"{name}/{side}/factor", g.make_sub(f"{name}/{side}/below", own, highest)
            )
            parts.append(
                (
                    g.make_mul(f"{name}/{side}/total", total, factor),
                    g.make_mul(f"{name}/{side}/context", context, factor),
                )
            )
        (total_a, context_a), (total_b, context_b) = parts
        return (
            highest,
            g.make_add(f"{name}/total", total_a, total_b),
            g.make_add(f"{name}/context", context_a, context_b),
        )

    def scores(self, at: int, size: int) -> Tensor:
        """q @ keys^T, but for late scales, (1, kv, group * N, size)."""
        take = self.keys.steps if self.is_scaled_late else self.keys.floats
        part = take(self.g, f"{self.name}/keys/{at}", at, size)
        name, transposed = f"{self.name}/scores/{at}", self.keys.axis == 2
        return self.g.make_batch_matmul(name, self.q, part, transposed)

    def masked(self, score: Tensor, at: int, size: int) -> Tensor:
        """What softmax takes, (kv, group, N, size) where one mask serves all heads."""
        g, name, cap = self.g, f"{self.name}/scores/{at}", self.kind.softcap
        mask = self.mask_of(at, size)
        if self.is_scaled_late:
            score = self.keys.scaled(g, name, score, at)
        if cap is not None:
            score = make_capped_share(g, f"{name}/capped", score, cap)
        _, kv, rows, _ = score.shape
        if mask.shape[2] != rows:
            score = g.make_reshape(f"{name}/groups", score, (kv, rows // self.n, self.n, size))
        return g.make_add(f"{self.name}/masked/{at}", score, mask)

    def in_rows(self, name: str, x: Tensor) -> Tensor:
        """(kv, group, N, any) -> (1, kv, group * N, any)."""
        shape = *self.q.shape[:3], x.shape[-1]
        return x if x.shape == shape else self.g.make_reshape(name, x, shape)

    def weighted(self, weights: Tensor, at: int, size: int) -> Tensor:
        """weights @ values, (1, kv, group * N, d)."""
        take = self.values.steps if self.is_scaled_late else self.values.floats
        part = take(self.g, f"{self.name}/values/{at}", at, size)
        name, transposed = f"{self.name}/attended/{at}", self.values.axis == 3
        return self.g.make_batch_matmul(name, weights, part, transposed)


def make_softcap(g: Graph, name: str, x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap): never beyond the cap, and little changed far below it."""
    share = g.make_mul(f"{name}/share", x, g.constant(f"{name}/inverse", 1 / cap))
    return make_capped_share(g, name, share, cap)


def make_capped_share(g: Graph, name: str, share: Tensor, cap: float) -> Tensor:
    """cap tanh(share)."""
    tanh = g.make_tanh(f"{name}/tanh", share)
    return g.make_mul(name, tanh, g.constant(f"{name}/cap", cap))


def make_heads_first(g: Graph, name: str, x: Tensor) -> Tensor:
    """(1, N, heads, d) -> (1, heads, N, d); with one token or one head that moves nothing."""
    _, n, heads, d = x.shape
    if n == 1 or heads == 1:
        return g.make_reshape(name, x, (1, heads, n, d))
    return g.make_transpose(name, x, (0, 2, 1, 3))


def make_float(g: Graph, name: str, x: Tensor) -> Tensor:
    """x as float32; of int8, steps."""
    if x.dtype is DType.FLOAT16:  # the delegate takes DEQUANTIZE of float16 for constants alone
        return g.make_quantize(name, x, DType.FLOAT32)
    return x if x.dtype is DType.FLOAT32 else g.make_dequantize(name, x)


def cut(g: Graph, name: str, x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """`size` of x along an axis; x itself if that is all of it."""
    if size == x.shape[axis]:
        return x
    begin, sizes = [0] * len(x.shape), list(x.shape)
    begin[axis], sizes[axis] = start, size
    return g.make_slice(name, x, begin, sizes)


def _join(g: Graph, name: str, parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts one after another along an axis."""
    parts, at = list(parts), _JOINED_AT_ONCE
    while len(parts) > 1:
        parts = [
            g.make_concatenation(f"{name}/{len(parts)}_{i}", parts[i : i + at], axis)
            if len(parts[i : i + at]) > 1
            else parts[i]
            for i in range(0, len(parts), at)
        ]
    return parts[0]
