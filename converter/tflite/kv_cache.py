"""The KV cache: the part of the graph in which targets differ.

    this call's k, v -> extend: caches with these in their places -> attend (`attention`)

N tokens in this call, C slots asked for, S slots in this kind of cache, kv key-value heads and
d = head_dim. What all layers of a kind share is computed once per call.

* `PlainCache`, for GPU delegates, is the layout that they are known to take: static, one mask
  input, every slot read at every call. k is (1, kv, S, d), v is (1, kv, d, S).
* On a CPU cost should follow what is used. k and v are (1, kv, S, d): a call's tokens lie together.
  There is no mask input, which the runtime would fill for all C slots: who sees whom follows from
  positions. `FullCache` (layers that see everything) reads as many slots as are in use; a ring
  (layers with a window) holds little more than the window: `RingCache`, `LongRingCache`.
  They may be compact (`CacheType`): float16, or int8 with a scale for each token and head, whose
  keys are (1, kv, d, S), as the runtime's kernels like them, and scales (1, kv, 1, S).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from converter.tflite.attention import (
    NOWHERE,
    ROWS_AT_ONCE,
    AttentionByRows,
    Columns,
    Held,
    Rows,
    Scores,
    cut,
    first_columns,
    make_attention,
    make_float,
    make_heads_first,
)
from converter.tflite.graph import DType, Graph, Model, Tensor
from converter.tflite.state import StateBuffer, StateKind

# Added to the scores of positions that left the window. Large against any score, small enough that
# two such numbers added up (the runtime's mask and ours) stay finite.
_MASKED = -1e9
# The largest of int8's steps, and the least scale of one: that of a row of zeros.
_STEPS = 127
_LEAST_SCALE = 1e-20
# So many neighbours of a key are mixed before it is rounded to int8, or all where they are fewer.
_MIXED = 64
# How many tokens the engine may take back between two turns.
REWIND = 120
# A call may leave so much padding in a ring, or so many drafts that were wrong: what the shortest
# signature of the ladder has.
_PADDING = 8
# Slots of a ring beyond the window. A call of so many tokens overwrites nothing that it looks at.
RING_SLACK = REWIND + _PADDING


class Target(StrEnum):
    """What the graph is made for: `--target`."""

    CPU = "cpu"
    GPU = "gpu"


class CacheType(StrEnum):
    """What keys and values are held as: `--kv-cache`."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def dtype(self) -> DType:
        return _DTYPES[self]


_DTYPES = {
    CacheType.FP32: DType.FLOAT32,
    CacheType.FP16: DType.FLOAT16,
    CacheType.INT8: DType.INT8,
}


@dataclass(frozen=True)
class CacheShape:
    """The caches of one kind of layer.

    Attributes:
        slots: positions that a cache has room for.
        window: how many positions a token sees; None for all. Shorter than the context that was
            asked for, or it does not matter.
        is_ring: whether later positions take the places of those that left the window.
        type: what keys and values are held as.
        k_axis, v_axis: the axes along which slots lie.
    """

    slots: int
    window: int | None = None
    is_ring: bool = False
    type: CacheType = CacheType.FP32
    k_axis: int = 2
    v_axis: int = 2


def cache_shape(
    sliding_window: int | None,
    cache_length: int,
    target: Target,
    rings: bool,
    type_: CacheType = CacheType.FP32,
) -> CacheShape:
    """The caches of a layer with this window, where `cache_length` tokens are asked for.

    Args:
        rings: whether a ring may be taken. It has forgotten what left its window, so not where the
            engine takes back more than `REWIND` tokens, as it does with a model's thoughts.
    """
    window = sliding_window if sliding_window and sliding_window < cache_length else None
    if target is Target.GPU:
        return CacheShape(cache_length, window, v_axis=3)
    slots, is_ring = cache_length, False
    if window and rings and window + RING_SLACK < cache_length:
        slots, is_ring = window + RING_SLACK, True
    # Products pack their right factor, and the delegate packs int8 quickly as it is multiplied by.
    k_axis = 3 if type_ is CacheType.INT8 else 2
    return CacheShape(slots, window, is_ring, type_, k_axis)


class HeadShape(NamedTuple):
    """The heads of a layer's queries, of its keys and values, and their width."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Call:
    """One signature and the inputs that its layers share.

    Attributes:
        positions: (N,), position 0 for the padding at a prefill's end.
        first, last: the first of them, and the last that is not padding, (1,).
        mask: the runtime's causal mask, (1, 1, N, C); None on a CPU.
        always_fits: whether every cache has room for all its tokens; padding may reach beyond.
        used: how many tokens the text may have with this call's; None where that is not known.
    """

    model: Model
    graph: Graph
    length: int
    positions: Tensor
    first: Tensor
    last: Tensor
    mask: Tensor | None
    always_fits: bool = False
    used: range | None = None


@dataclass(frozen=True)
class Extended:
    """A layer's caches after this call, and the keys and values that its queries look at.

    Attributes:
        caches: in the order of `KVCache.buffers`.
    """

    caches: tuple[Tensor, ...]
    keys: Held
    values: Held


class Write(NamedTuple):
    """Writing a call's keys, values or their scales into a cache.

    Attributes:
        new: (1, kv, N, width).
        cache: (1, kv, S, width), or (1, kv, width, S).
        start: where `new` goes, (4,).
        tokens, written: see `make_blend`.
    """

    new: Tensor
    cache: Tensor
    start: Tensor
    tokens: Tensor
    written: Tensor


def make_cache(call: Call, shape: CacheShape, heads: HeadShape, target: Target) -> KVCache:
    """The graph of one kind of cache, with what its layers share."""
    if target is Target.GPU:
        return PlainCache(call, shape, heads)
    if not shape.is_ring:
        return FullCache(call, shape, heads)
    ring = RingCache if call.length <= RING_SLACK else LongRingCache
    return ring(call, shape, heads)


class KVCache:
    """One kind of cache in one signature."""

    def __init__(self, call: Call, shape: CacheShape, heads: HeadShape) -> None:
        self.call = call
        self.shape = shape
        self.heads = heads
        self.graph = call.graph
        self.length = call.length
        window = f"_{shape.window}" if shape.window else ""
        self.name = f"cache{window}/{'x'.join(map(str, heads))}"
        self.prepare()

    def prepare(self) -> None:
        """Emit what all layers share."""
        raise NotImplementedError

    def extend(self, name: str, k: Tensor, v: Tensor, caches: Sequence[Tensor]) -> Extended:
        """Write this call's keys and values, both (1, N, kv, d), into those of `buffers`."""
        raise NotImplementedError

    def attend(self, name: str, q: Tensor, seen: Extended, scores: Scores) -> Tensor:
        """(1, N, heads, d) -> the same shape."""
        raise NotImplementedError

    def buffers(self, layer: int) -> tuple[StateBuffer, ...]:
        """A layer's k and v cache, and their scales where they have some.

        The engine makes no mask for a ring, which is called local.
        """
        shape, kinds = self.shape, (StateKind.GLOBAL_KEY, StateKind.GLOBAL_VALUE)
        if shape.is_ring:
            kinds = (StateKind.LOCAL_KEY, StateKind.LOCAL_VALUE)
        size = shape.slots, shape.window if shape.is_ring else None

        def buffer(part: str, kind: StateKind, width: int, axis: int, dtype: DType) -> StateBuffer:
            sides = (shape.slots, width) if axis == 2 else (width, shape.slots)
            sizes = 1, self.heads.num_kv_heads, *sides
            return StateBuffer(f"kv_cache_{part}_{layer}", sizes, kind, axis, *size, dtype)

        d, dtype = self.heads.head_dim, shape.type.dtype
        buffers = (
            buffer("k", kinds[0], d, shape.k_axis, dtype),
            buffer("v", kinds[1], d, shape.v_axis, dtype),
        )
        if shape.type is not CacheType.INT8:
            return buffers
        scales = (
            buffer(f"{part}_scale", kind, 1, 3, DType.FLOAT32)
            for part, kind in zip("kv", kinds, strict=True)
        )
        return *buffers, *scales

    def borrowed(self, layer: int) -> Extended:
        """The caches of a layer in another network, as a call has left them: inputs."""
        raise NotImplementedError

    def make_start(self, name: str, slot: Tensor, axis: int) -> Tensor:
        """Where a call writes in a cache with its slots along `axis`, (4,)."""
        parts = [self.graph.constant("cache/zero", [0])] * 4
        parts[axis] = slot
        return self.graph.make_concatenation(f"{self.name}/{name}", parts, axis=0)


class PlainCache(KVCache):
    """Position p lies in slot p; every call reads all slots."""

    def prepare(self) -> None:
        self.mask = self.make_window_mask()
        group = self.heads.num_heads // self.heads.num_kv_heads
        if group > 1:
            copies = [self.mask] * group
            self.mask = self.graph.make_concatenation(f"{self.name}/mask/grouped", copies, axis=2)
        self.k_start = self.make_start("k_start", self.call.first, axis=2)
        self.v_start = self.make_start("v_start", self.call.first, axis=3)

    def extend(self, name: str, k: Tensor, v: Tensor, caches: Sequence[Tensor]) -> Extended:
        g, (_, n, kv, d), (k_cache, v_cache) = self.graph, v.shape, caches
        k = make_heads_first(g, f"{name}/k/heads_first", k)
        if n == 1:
            v = g.make_reshape(f"{name}/v/columns", v, (1, kv, d, 1))
        else:
            v = g.make_transpose(f"{name}/v/columns", v, (0, 2, 3, 1))
        k = g.make_dynamic_update_slice(f"{name}/k/cache", k_cache, k, self.k_start)
        v = g.make_dynamic_update_slice(f"{name}/v/cache", v_cache, v, self.v_start)
        return Extended((k, v), Held(k), Held(v, axis=3))

    def attend(self, name: str, q: Tensor, seen: Extended, scores: Scores) -> Tensor:
        def mask_of(at: int, size: int) -> Tensor:
            return cut(self.graph, f"{name}/mask/{at}", self.mask, 3, at, size)

        return make_attention(self.graph, name, q, seen.keys, seen.values, mask_of, scores)

    def make_window_mask(self) -> Tensor:
        """(1, 1, N, C): the runtime's mask, narrowed to the window."""
        g, window, slots, mask = self.graph, self.shape.window, self.shape.slots, self.call.mask
        assert mask is not None  # it is an input of this target
        if window is None:
            return mask
        # Slot j holds position j; it is out of sight when position - j >= window.
        name = f"{self.name}/mask"
        until = np.arange(slots, dtype=np.int32).reshape(1, 1, 1, slots) + window
        position = g.make_reshape(f"{name}/position", self.call.positions, (1, 1, self.length, 1))
        passed = g.make_greater_equal(
            f"{name}/passed", position, g.constant(f"{name}/seen_until", until)
        )
        return g.make_select(name, passed, g.constant(f"{name}/masked", _MASKED), mask)


class FullCache(KVCache):
    """Position p lies in slot p; a call reads as many slots as are in use."""

    def prepare(self) -> None:
        g, slots = self.graph, self.shape.slots
        self.starts = self.make_starts(self.call.first)
        columns = np.arange(slots, dtype=np.float32).reshape(1, 1, 1, slots)
        self.attention = self.make_attention(g.constant(f"{self.name}/columns", columns))
        if self.length == 1 or self.call.always_fits:
            return
        # The padding of a last prefill may reach beyond the cache. DYNAMIC_UPDATE_SLICE then moves
        # the block back, over keys that are in use: it is to begin with these.
        name, n = f"{self.name}/end", self.length
        latest = g.constant(f"{name}/latest_start", [slots - n])
        self.fits = g.make_greater_equal(f"{name}/fits", latest, self.call.first)
        moved = g.make_sub(f"{name}/moved", self.call.first, latest)
        places = g.constant(f"{name}/places", np.arange(n, dtype=np.int32))
        self.places = self.make_places(name, g.make_sub(f"{name}/token", places, moved))

    def columns_of(self, start: int, stop: int) -> tuple[Columns, ...]:
        """What these rows of a call may look at, by the position after the last of them."""
        choices = first_columns(stop - start, self.shape.slots)
        used = self.call.used
        if used is None:
            return choices
        too_few = sum(choice.holds < used.start for choice in choices[:-1])
        not_always = sum(choice.holds < used.stop - 1 for choice in choices[:-1])
        return choices[too_few : not_always + 1]

    def make_attention(self, columns: Tensor) -> AttentionByRows:
        """Attention in which the first tokens of a call do not look where only later ones do.

        Args:
            columns: positions of the keys, (1, 1, 1, columns), float32.
        """
        g, call, all_rows = self.graph, self.call, []
        positions = self.make_positions(f"{self.name}/rows", (1, 1, self.length, 1))
        for start in range(0, self.length, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, self.length)
            name = f"{self.name}/rows_{start}"
            length = g.constant(f"{name}/stop", [stop])
            needed = g.make_add(f"{name}/end", call.first, length)
            if start:  # rows that are all padding need nothing
                at = g.constant(f"{name}/start", [start])
                begin = g.make_add(f"{name}/begin", call.first, at)
                is_used = g.make_greater_equal(f"{name}/is_used", self.call.last, begin)
                used = g.make_cast(f"{name}/used", is_used, DType.INT32)
                needed = g.make_mul(f"{name}/needed", needed, used)
            rows = cut(g, f"{name}/positions", positions, 2, start, stop - start)
            all_rows.append(Rows(start, rows, needed, self.columns_of(start, stop)))
        return AttentionByRows(call.model, g, self.name, all_rows, columns, self.shape.window)

    def make_positions(self, name: str, shape: Sequence[int]) -> Tensor:
        """Where this call's tokens stand in the text, float32; padding goes on from them."""
        g = self.graph
        numbers = g.constant(f"{name}/numbers", np.arange(self.length, dtype=np.int32))
        position = g.make_add(f"{name}/int32", self.call.first, numbers)
        column = g.make_cast(f"{name}/float32", position, DType.FLOAT32)
        return g.make_reshape(f"{name}/positions", column, shape)

    def make_places(self, name: str, token: Tensor) -> tuple[Tensor, Tensor]:
        """Which of this call's tokens goes to each place; none where it is negative, (places,)."""
        g, zero = self.graph, self.graph.constant("cache/zero", [0])
        is_written = g.make_greater_equal(f"{name}/is_written", token, zero)
        return (
            g.make_maximum(f"{name}/tokens", token, zero),
            g.make_cast(f"{name}/written", is_written, DType.FLOAT32),
        )

    def make_starts(self, slot: Tensor) -> dict[int, Tensor]:
        """By the axis along which a cache's slots lie."""
        axes = {self.shape.k_axis, self.shape.v_axis}
        return {axis: self.make_start(f"start_{axis}", slot, axis) for axis in sorted(axes)}

    def extend(self, name: str, k: Tensor, v: Tensor, caches: Sequence[Tensor]) -> Extended:
        parts, axes = self.pack(name, k, v), self.axes
        written = tuple(
            self.write(f"{name}/{part}", new, cache, axis)
            for (part, new), cache, axis in zip(parts.items(), caches, axes, strict=True)
        )
        return Extended(written, *self.held(written))

    def borrowed(self, layer: int) -> Extended:
        caches = tuple(state.add_to(self.graph) for state in self.buffers(layer))
        return Extended(caches, *self.held(caches))

    @property
    def axes(self) -> tuple[int, ...]:
        """Along which slots lie in each of a layer's caches; scales lie as columns do."""
        both = self.shape.k_axis, self.shape.v_axis
        return (*both, 3, 3) if self.shape.type is CacheType.INT8 else both

    def held(self, tensors: Sequence[Tensor]) -> tuple[Held, Held]:
        """Keys and values in tensors that follow one another as `buffers` do."""
        scales = tensors[2:] or (None, None)
        keys, values = (Held(*part) for part in zip(tensors[:2], self.axes, scales, strict=False))
        return keys, values

    def pack(self, name: str, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Rows for each of the caches of `buffers`, (1, kv, N, width).

        A row of int8 has the scale that takes its largest magnitude to 127.
        """
        g, scales = self.graph, {}
        k = self.mixed(f"{name}/k/mixed", k)
        parts = {
            part: make_heads_first(g, f"{name}/{part}/heads_first", x)
            for part, x in (("k", k), ("v", v))
        }
        if self.shape.type is CacheType.INT8:
            for part, x in parts.items():
                stem = f"{name}/{part}_scale"
                largest = g.make_reduce_max(f"{stem}/largest", g.make_abs(f"{stem}/abs", x))
                step = g.make_mul(f"{stem}/step", largest, g.constant("cache/step", 1 / _STEPS))
                least = g.constant("cache/least_scale", _LEAST_SCALE)
                scales[f"{part}_scale"] = scale = g.make_maximum(stem, step, least)
                parts[part] = g.make_div(f"{name}/{part}/in_steps", x, scale)
        return {
            **{part: self.rounded(f"{name}/{part}/rounded", x) for part, x in parts.items()},
            **scales,
        }

    def mixed(self, name: str, x: Tensor) -> Tensor:
        """Queries or keys as int8 takes them, (1, N, heads, d).

        Some channels of keys are far larger than the others, which one scale for all leaves few
        steps. An orthogonal matrix spreads them over their neighbours and, where it is applied to
        queries as well, changes no product (QuaRot, Ashkboos et al., 2024).
        """
        if self.shape.type is not CacheType.INT8:
            return x
        g, size = self.graph, math.gcd(_MIXED, x.shape[3])
        rows = g.make_reshape(f"{name}/neighbours", x, (math.prod(x.shape) // size, size))
        matrix = g.constant(f"cache/hadamard_{size}", hadamard(size))
        rows = g.make_fully_connected(f"{name}/rows", rows, matrix)
        return g.make_reshape(name, rows, x.shape)

    def rounded(self, name: str, x: Tensor) -> Tensor:
        """float32 as the caches hold it."""
        dtype = self.shape.type.dtype
        return x if dtype is DType.FLOAT32 else self.graph.make_quantize(name, x, dtype)

    def write(self, name: str, new: Tensor, cache: Tensor, axis: int) -> Tensor:
        """A cache with this call's tokens, (1, kv, N, width)."""
        if self.length > 1 and not self.call.always_fits:
            block = self.make_either(f"{name}/block", new, cache, axis)
        else:
            block = turned(self.graph, f"{name}/block", new, axis)
        start = self.starts[axis]
        return self.graph.make_dynamic_update_slice(f"{name}/cache", cache, block, start)

    def make_either(self, name: str, new: Tensor, cache: Tensor, axis: int) -> Tensor:
        """`add_fit` where this call's tokens fit as they are, else `add_moved`."""
        model, inputs = self.call.model, Write(new, cache, self.starts[axis], *self.places)
        kind = f"{cache.dtype.name}_{'x'.join(map(str, cache.shape[2:]))}"
        prefix = f"{self.name}/{self.length}_tokens/{kind}"
        ways = {f"{prefix}/fit": self.add_fit, f"{prefix}/moved": self.add_moved}
        for body_name, add in ways.items():
            if body_name not in model.bodies:  # for all layers
                body = model.add_body(body_name)
                parts = inputs._asdict().items()
                write = Write(*(body.add_input(part, x.shape, x.dtype) for part, x in parts))
                body.add_output("block", add(body, write, axis))
        fit, moved = (model.bodies[body_name] for body_name in ways)
        return self.graph.make_if(name, self.fits, fit, moved, inputs)

    def add_fit(self, body: Graph, write: Write, axis: int) -> Tensor:
        """The block to be written is what is new."""
        return turned(body, "turned", write.new, axis)

    def add_moved(self, body: Graph, write: Write, axis: int) -> Tensor:
        """It ends where the cache does."""
        first = write.cache.shape[axis] - self.length
        last = cut(body, "last", write.cache, axis, first, self.length)
        return make_blend(body, "block", last, write.new, write.tokens, write.written, axis)

    def attend(self, name: str, q: Tensor, seen: Extended, scores: Scores) -> Tensor:
        q = self.mixed(f"{name}/q/mixed", q)
        return self.attention.attend(f"{name}/context", q, seen.keys, seen.values, scores)


class RingCache(FullCache):
    """Position p lies in slot p mod R; R is the window and `RING_SLACK`.

    A short call writes, then looks: what it overwrites has left the window of its first row.
    """

    def prepare(self) -> None:
        g, n, slots, call = self.graph, self.length, self.shape.slots, self.call
        self.slots = g.constant(f"{self.name}/slots", [slots])
        slot = g.make_floor_mod(f"{self.name}/slot", call.first, self.slots)
        self.starts = self.make_starts(slot)
        self.attention = self.make_attention(self.make_columns(f"{self.name}/columns", call.last))
        if self.fits_always:
            return
        name = f"{self.name}/fits"
        to_the_end = g.constant(f"{name}/latest_start", [slots - n])
        room = g.make_sub(f"{name}/room", to_the_end, slot)
        tokens = g.make_sub(f"{name}/tokens", call.last, call.first)
        least = g.constant(f"{name}/least", [n - 1 - _PADDING])
        unpadded = g.make_sub(f"{name}/unpadded", tokens, least)
        spare = g.make_minimum(f"{name}/spare", room, unpadded)
        self.fits = g.make_greater_equal(name, spare, g.constant("cache/zero", [0]))
        self.places = self.make_newest_places()

    def make_age(self, name: str, newest: Tensor) -> Tensor:
        """How long before position `newest`, (1,), the one in each slot is, (R,)."""
        g = self.graph
        slot = g.constant(f"{self.name}/numbers", np.arange(self.shape.slots, dtype=np.int32))
        back = g.make_sub(f"{name}/back", newest, slot)
        return g.make_floor_mod(name, back, self.slots)

    def make_columns(self, name: str, newest: Tensor) -> Tensor:
        """The position in each slot when `newest` was the last to be written, (1, 1, 1, R)."""
        g, zero = self.graph, self.graph.constant("cache/zero", [0])
        position = g.make_sub(f"{name}/all", newest, self.make_age(f"{name}/age", newest))
        is_used = g.make_greater_equal(f"{name}/is_used", position, zero)
        nowhere = g.constant(f"{name}/nowhere", [NOWHERE])
        position = g.make_select(f"{name}/used", is_used, position, nowhere)
        column = g.make_cast(f"{name}/float32", position, DType.FLOAT32)
        return g.make_reshape(name, column, (1, 1, 1, self.shape.slots))

    def make_newest_places(self) -> tuple[Tensor, Tensor]:
        """Which of this call's tokens goes to each slot: the newest position that belongs there.

        Padding has position 0 and is no token, so it is never the newest.
        """
        g, last = self.graph, self.call.last
        newest = g.make_sub(f"{self.name}/newest", last, self.make_age(f"{self.name}/age", last))
        token = g.make_sub(f"{self.name}/token", newest, self.call.first)
        return self.make_places(self.name, token)

    @property
    def fits_always(self) -> bool:
        """Whether a call's tokens never go around the ring's end."""
        used = self.call.used
        return self.length == 1 or (used is not None and used.stop - 1 <= self.shape.slots)

    def write(self, name: str, new: Tensor, cache: Tensor, axis: int) -> Tensor:
        if self.fits_always:
            return super().write(name, new, cache, axis)
        return self.make_either(f"{name}/cache", new, cache, axis)

    def add_fit(self, body: Graph, write: Write, axis: int) -> Tensor:
        """The ring with a block in it."""
        block = turned(body, "turned", write.new, axis)
        return body.make_dynamic_update_slice("ring", write.cache, block, write.start)

    def add_moved(self, body: Graph, write: Write, axis: int) -> Tensor:
        """The ring with tokens at its end and at its beginning, or without their padding."""
        return make_blend(body, "ring", write.cache, write.new, write.tokens, write.written, axis)


class LongRingCache(RingCache):
    """A ring in a call of more tokens, which looks at the ring as it was and at its own N keys.

    A prompt's first call has nothing before it, and later rows of a long call no longer see it:
    they look at its own.
    """

    def prepare(self) -> None:
        g, call = self.graph, self.call
        self.slots = g.constant(f"{self.name}/slots", [self.shape.slots])
        one = g.constant(f"{self.name}/one", [1])
        before = g.make_sub(f"{self.name}/before", call.first, one)
        ring = self.make_columns(f"{self.name}/ring", before)
        own = self.make_positions(f"{self.name}/own", (1, 1, 1, self.length))
        columns = g.make_concatenation(f"{self.name}/columns", (ring, own), axis=3)
        self.attention = self.make_attention(columns)
        self.places = self.make_newest_places()

    def columns_of(self, start: int, stop: int) -> tuple[Columns, ...]:
        """Its own columns follow the ring's; row i sees i - window + 1 to i."""
        assert self.shape.window is not None  # a ring has one
        slots, first_seen = self.shape.slots, start - self.shape.window + 1
        own = Columns(stop, slots + max(first_seen, 0), slots + stop)
        if first_seen >= 0:
            return (own,)
        # Its own are enough where it ends at its length: nothing lies in the ring.
        return own, Columns(slots + stop, 0, slots + stop)

    def extend(self, name: str, k: Tensor, v: Tensor, caches: Sequence[Tensor]) -> Extended:
        parts = self.pack(name, k, v)
        seen, rings = zip(
            *(
                self.write_after(f"{name}/{part}", new, cache, axis)
                for (part, new), cache, axis in zip(parts.items(), caches, self.axes, strict=True)
            ),
            strict=True,
        )
        return Extended(rings, *self.held(seen))

    def write_after(
        self, name: str, new: Tensor, cache: Tensor, axis: int
    ) -> tuple[Tensor, Tensor]:
        """The old ring's tokens before this call's, and the new ring."""
        g, block = self.graph, turned(self.graph, f"{name}/block", new, axis)
        seen = g.make_concatenation(f"{name}/seen", (cache, block), axis)
        # The engine lays the new cache over the old one. The old one is taken from the copy, so
        # that nothing is written before the copy is made.
        old = cut(g, f"{name}/old", seen, axis, 0, cache.shape[axis])
        return seen, make_blend(g, f"{name}/cache", old, new, *self.places, axis)


def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix of a power of two, symmetric and orthogonal, (size, size)."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def turned(g: Graph, name: str, rows: Tensor, axis: int) -> Tensor:
    """Rows, (1, kv, N, width), as they lie in a cache with its slots along `axis`."""
    if axis == 2:
        return rows
    _, kv, n, width = rows.shape
    if 1 in (n, width):
        return g.make_reshape(name, rows, (1, kv, width, n))
    return g.make_transpose(name, rows, (0, 1, 3, 2))


def make_blend(
    g: Graph, name: str, old: Tensor, new: Tensor, tokens: Tensor, written: Tensor, axis: int
) -> Tensor:
    """A stretch of a cache with some of its slots written.

    Args:
        old: what stands there, its slots along `axis`.
        new: (1, kv, N, width).
        tokens: which of the N goes to each slot, (slots,).
        written: 1.0 in the slots that are written, 0.0 in the others, (slots,).
    """
    sides = [1, 1, 1, 1]
    sides[axis] = written.shape[0]
    factor = g.make_reshape(f"{name}/written", written, sides)
    kept = g.make_sub(f"{name}/kept", g.constant(f"{name}/one", 1.0), factor)
    new = g.make_gather(f"{name}/new", new, tokens, axis=2)
    old_part = make_float(g, f"{name}/old", old)
    new_part = make_float(g, f"{name}/new/float32", turned(g, f"{name}/new/turned", new, axis))
    blend = g.make_add(
        f"{name}/float32",
        g.make_mul(f"{name}/old_part", old_part, kept),
        g.make_mul(f"{name}/new_part", new_part, factor),
    )
    return blend if old.dtype is DType.FLOAT32 else g.make_quantize(name, blend, old.dtype)
