"""The KV cache: the part of the graph in which targets differ.

    this call's k, v -> extend: caches with these in their places -> attend (`attention`)

N tokens in this call, C slots asked for, S slots in this kind of cache, kv key-value heads and
d = head_dim. What all layers of a kind share is computed once per call.

* `PlainCache`, for GPU delegates, is the layout that they are known to take: static, one mask
  input, every slot read at every call. k is (1, kv, S, d), v is (1, kv, d, S).
* On a CPU cost should follow what is used. k and v are (1, kv, S, d): a call's tokens lie together.
  `FullCache` (layers that see everything) reads as many slots as are in use, `RingCache` (layers
  with a window) holds the window and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from converter.decoder import DecoderSpec
from converter.graph.attention import (
    ROWS_AT_ONCE,
    AttentionByRows,
    Columns,
    Rows,
    cut,
    first_columns,
    make_attention,
    make_heads_first,
)
from converter.graph.tflite import DType, Graph, Model, Tensor

# Added to the scores of positions out of sight. Large against any score, small enough that two such
# numbers added up (the runtime's mask and ours) stay finite.
_MASKED = -1e9
# Slots of a ring beyond the window: as many tokens the engine may take back between two turns.
RING_SLACK = 128


class Target(str, Enum):
    """What the graph is made for: `--target`."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True)
class CacheShape:
    """The caches of one kind of layer.

    Attributes:
        slots: positions that a cache has room for.
        window: how many positions a token sees; None for all. Shorter than the context that was
            asked for, or it does not matter.
        is_ring: whether later positions take the places of those that left the window.
        v_axis: the axis of a v cache along which slots lie; that of a k cache is 2.
    """

    slots: int
    window: int | None = None
    is_ring: bool = False
    v_axis: int = 2


def cache_shape(
    sliding_window: int | None, cache_length: int, target: Target, rings: bool
) -> CacheShape:
    """The caches of a layer with this window, where `cache_length` tokens are asked for.

    Args:
        rings: whether a ring may be taken. It has forgotten what left its window, so not where the
            engine takes back more than `RING_SLACK` tokens, as it does with a model's thoughts.
    """
    window = sliding_window if sliding_window and sliding_window < cache_length else None
    if target is Target.GPU:
        return CacheShape(cache_length, window, v_axis=3)
    if window and rings and window + RING_SLACK < cache_length:
        return CacheShape(window + RING_SLACK, window, is_ring=True)
    return CacheShape(cache_length, window)


def oldest_engine(caches: Sequence[CacheShape]) -> str:
    """The oldest LiteRT-LM that runs a network with these caches rightly (docs/runtime.md)."""
    return "0.17.0" if any(shape.is_ring for shape in caches) else "0.11.0"


@dataclass(frozen=True)
class Call:
    """One signature and the inputs that its layers share.

    Attributes:
        positions: (N,), position 0 for the padding at a prefill's end.
        first, last: the first of them, and the last that is not padding, (1,).
        mask: the runtime's causal mask, (1, 1, N, C).
    """

    model: Model
    graph: Graph
    spec: DecoderSpec
    length: int
    positions: Tensor
    first: Tensor
    last: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Extended:
    """A layer's caches after this call, and the keys and values that its queries look at."""

    k_cache: Tensor
    v_cache: Tensor
    keys: Tensor
    values: Tensor


def make_cache(call: Call, shape: CacheShape, target: Target) -> KVCache:
    """The graph of one kind of cache, with what its layers share."""
    if target is Target.GPU:
        return PlainCache(call, shape)
    return RingCache(call, shape) if shape.is_ring else FullCache(call, shape)


class KVCache:
    """One kind of cache in one signature."""

    def __init__(self, call: Call, shape: CacheShape) -> None:
        self.call = call
        self.shape = shape
        self.graph = call.graph
        self.length = call.length
        self.name = f"cache_{shape.window}" if shape.window else "cache"
        self.prepare()

    def prepare(self) -> None:
        """Emit what all layers share."""
        raise NotImplementedError

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        """Write this call's keys and values, both (1, N, kv, d)."""
        raise NotImplementedError

    def attend(self, name: str, q: Tensor, seen: Extended) -> Tensor:
        """(1, N, heads, d) -> the same shape."""
        raise NotImplementedError

    def add_inputs(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's k and v cache."""
        spec = self.call.spec
        shape = 1, spec.num_key_value_heads, self.shape.slots, spec.head_dim
        columns = (*shape[:2], shape[3], shape[2])
        v_shape = shape if self.shape.v_axis == 2 else columns
        return (
            self.graph.add_input(f"kv_cache_k_{layer}", shape, DType.FLOAT32),
            self.graph.add_input(f"kv_cache_v_{layer}", v_shape, DType.FLOAT32),
        )

    def make_window_mask(self) -> Tensor:
        """(1, 1, N, C): the runtime's mask, narrowed to the window."""
        g, window, slots = self.graph, self.shape.window, self.shape.slots
        if window is None:
            return self.call.mask
        # Slot j holds position j; it is out of sight when position - j >= window.
        name = f"{self.name}/mask"
        until = np.arange(slots, dtype=np.int32).reshape(1, 1, 1, slots) + window
        position = g.make_reshape(f"{name}/position", self.call.positions, (1, 1, self.length, 1))
        passed = g.make_greater_equal(
            f"{name}/passed", position, g.constant(f"{name}/seen_until", until)
        )
        return g.make_select(name, passed, g.constant(f"{name}/masked", _MASKED), self.call.mask)

    def make_start(self, name: str, slot: Tensor, axis: int) -> Tensor:
        """Where a call writes in a cache with its slots along `axis`, (4,)."""
        parts = [self.graph.constant("cache/zero", [0])] * 4
        parts[axis] = slot
        return self.graph.make_concatenation(f"{self.name}/{name}", parts, axis=0)


class PlainCache(KVCache):
    """Position p lies in slot p; every call reads all slots."""

    def prepare(self) -> None:
        self.mask = self.make_window_mask()
        group = self.call.spec.num_attention_heads // self.call.spec.num_key_value_heads
        if group > 1:
            copies = [self.mask] * group
            self.mask = self.graph.make_concatenation(f"{self.name}/mask/grouped", copies, axis=2)
        self.k_start = self.make_start("k_start", self.call.first, axis=2)
        self.v_start = self.make_start("v_start", self.call.first, axis=3)

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        g, (_, n, kv, d) = self.graph, v.shape
        k = make_heads_first(g, f"{name}/k/heads_first", k)
        if n == 1:
            v = g.make_reshape(f"{name}/v/columns", v, (1, kv, d, 1))
        else:
            v = g.make_transpose(f"{name}/v/columns", v, (0, 2, 3, 1))
        k = g.make_dynamic_update_slice(f"{name}/k/cache", k_cache, k, self.k_start)
        v = g.make_dynamic_update_slice(f"{name}/v/cache", v_cache, v, self.v_start)
        return Extended(k, v, k, v)

    def attend(self, name: str, q: Tensor, seen: Extended) -> Tensor:
        return make_attention(self.graph, name, q, seen.keys, seen.values, self.mask, values_axis=3)


class FullCache(KVCache):
    """Position p lies in slot p; a call reads as many slots as are in use."""

    def prepare(self) -> None:
        g, slots = self.graph, self.shape.slots
        self.start = self.make_start("start", self.call.first, axis=2)
        self.attention = self.make_attention(self.make_window_mask())
        if self.length == 1:
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
        return first_columns(stop - start, self.shape.slots)

    def make_attention(self, mask: Tensor) -> AttentionByRows:
        """Attention in which the first tokens of a call do not look where only later ones do."""
        g, call, all_rows = self.graph, self.call, []
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
            rows = cut(g, f"{name}/mask", mask, 2, start, stop - start)
            all_rows.append(Rows(start, rows, needed, self.columns_of(start, stop)))
        return AttentionByRows(call.model, g, self.name, all_rows)

    def make_places(self, name: str, token: Tensor) -> tuple[Tensor, Tensor]:
        """Which of this call's tokens goes to each place; none where it is negative, (places,)."""
        g, zero = self.graph, self.graph.constant("cache/zero", [0])
        is_written = g.make_greater_equal(f"{name}/is_written", token, zero)
        return (
            g.make_maximum(f"{name}/tokens", token, zero),
            g.make_cast(f"{name}/written", is_written, DType.FLOAT32),
        )

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        k_cache = self.write(f"{name}/k", k, k_cache)
        v_cache = self.write(f"{name}/v", v, v_cache)
        return Extended(k_cache, v_cache, k_cache, v_cache)

    def write(self, name: str, new: Tensor, cache: Tensor) -> Tensor:
        """A cache with this call's tokens, (1, N, kv, d)."""
        block = make_heads_first(self.graph, f"{name}/heads_first", new)
        if self.length > 1:
            block = self.make_block(f"{name}/block", block, cache)
        return self.graph.make_dynamic_update_slice(f"{name}/cache", cache, block, self.start)

    def make_block(self, name: str, new: Tensor, cache: Tensor) -> Tensor:
        """This call's tokens alone, or after the cache's last ones if they do not fit."""
        model, prefix = self.call.model, f"{self.name}/{self.length}_tokens"
        inputs = (new, cache, *self.places)
        if f"{prefix}/fit" not in model.bodies:  # for all layers
            fit, moved = model.add_body(f"{prefix}/fit"), model.add_body(f"{prefix}/moved")
            for part, tensor in zip(("new", "cache", "tokens", "written"), inputs, strict=True):
                fit.add_input(part, tensor.shape, tensor.dtype)
                moved.add_input(part, tensor.shape, tensor.dtype)
            fit.add_output("block", fit.inputs["new"])
            own, old, *places = moved.inputs.values()
            last = cut(moved, "last", old, 2, old.shape[2] - self.length, self.length)
            moved.add_output("block", make_blend(moved, "block", last, own, *places))
        fit, moved = model.bodies[f"{prefix}/fit"], model.bodies[f"{prefix}/moved"]
        return self.graph.make_if(name, self.fits, fit, moved, inputs)

    def attend(self, name: str, q: Tensor, seen: Extended) -> Tensor:
        return self.attention.attend(f"{name}/context", q, seen.keys, seen.values)


class RingCache(FullCache):
    """Position p lies in slot p mod R; R is the window and `RING_SLACK`.

    A prefill looks at the ring as it was before it, then at its own N keys. A prompt's first call
    has nothing before it, and later rows of a long call no longer see it: they look at its own.
    """

    def prepare(self) -> None:
        g, n, slots = self.graph, self.length, self.shape.slots
        if n == 1:
            length = g.constant(f"{self.name}/slots", [slots])
            slot = g.make_floor_mod(f"{self.name}/slot", self.call.first, length)
            self.start = self.make_start("start", slot, axis=2)
            self.attention = self.make_attention(self.make_decode_mask())
            return
        self.attention = self.make_attention(self.make_prefill_mask())
        # The token that ends up in each slot: the newest position that belongs there, counted from
        # this call's first. Padding has position 0 and is no token, so it is never the newest.
        age = self.make_age(f"{self.name}/age", self.call.last)
        newest = g.make_sub(f"{self.name}/newest", self.call.last, age)
        token = g.make_sub(f"{self.name}/token", newest, self.call.first)
        self.places = self.make_places(self.name, token)

    def columns_of(self, start: int, stop: int) -> tuple[Columns, ...]:
        """In a prefill its own columns follow the ring's; row i sees i - window + 1 to i."""
        if self.length == 1:
            return super().columns_of(start, stop)
        slots, first_seen = self.shape.slots, start - self.window + 1
        own = Columns(stop, slots + max(first_seen, 0), slots + stop)
        if first_seen >= 0:
            return (own,)
        # Its own are enough where it ends at its length: nothing lies in the ring.
        return own, Columns(slots + stop, 0, slots + stop)

    def make_age(self, name: str, newest: Tensor) -> Tensor:
        """How long before position `newest`, (1,), the one in each slot is, (R,)."""
        g, slots = self.graph, self.shape.slots
        slot = g.constant(f"{self.name}/slot_numbers", np.arange(slots, dtype=np.int32))
        back = g.make_sub(f"{name}/back", newest, slot)
        return g.make_floor_mod(name, back, g.constant(f"{self.name}/slots", [slots]))

    # The runtime's mask knows nothing of rings.

    def make_decode_mask(self) -> Tensor:
        """(1, 1, 1, R)."""
        g, name, first = self.graph, f"{self.name}/mask", self.call.first
        age = self.make_age(f"{name}/age", first)
        one = g.constant(f"{name}/one", [1])
        before = g.make_add(f"{name}/before", first, one)  # positions up to this one
        widest = g.constant(f"{name}/window", [self.window])
        until = g.make_minimum(f"{name}/until", before, widest)
        hidden = g.make_greater_equal(f"{name}/hidden", age, until)
        row = self.make_hiding(f"{name}/row", hidden)
        return g.make_reshape(name, row, (1, 1, 1, self.shape.slots))

    def make_prefill_mask(self) -> Tensor:
        """(1, 1, N, R + N) over the ring and this call's keys."""
        g, n, window, first = self.graph, self.length, self.window, self.call.first
        name, one = f"{self.name}/mask", g.constant(f"{self.name}/mask/one", [1])
        age = self.make_age(f"{name}/age", g.make_sub(f"{name}/newest", first, one))
        never = g.make_greater_equal(f"{name}/never_written", age, first)
        widest = g.constant(f"{name}/window", [window])
        age = g.make_select(f"{name}/age_or_never", never, widest, age)
        age = g.make_reshape(f"{name}/age_row", age, (1, 1, 1, self.shape.slots))
        # Row i is i + 1 positions after the newest in the ring.
        rows = np.arange(n, dtype=np.int32).reshape(1, 1, n, 1)
        limit = g.constant(f"{name}/limit", window - 1 - rows)
        ring = self.make_hiding(
            f"{name}/ring", g.make_greater_equal(f"{name}/ring_hidden", age, limit)
        )
        # Of its own keys, column j is seen by the rows j to j + window - 1. Computed: as a constant
        # it would be N * N numbers in the file.
        row = g.constant(f"{name}/row_numbers", rows)
        columns = rows.reshape(1, 1, 1, n)
        is_past = g.make_greater_equal(f"{name}/is_past", row, g.constant(f"{name}/from", columns))
        is_far = g.make_greater_equal(
            f"{name}/is_far", row, g.constant(f"{name}/to", columns + np.int32(window))
        )
        masked, seen = g.constant(f"{name}/masked", _MASKED), g.constant(f"{name}/seen", 0.0)
        own = g.make_select(f"{name}/causal", is_past, seen, masked)
        own = g.make_select(f"{name}/own", is_far, masked, own)
        return g.make_concatenation(name, (ring, own), axis=3)

    @property
    def window(self) -> int:
        assert self.shape.window is not None  # a ring has one
        return self.shape.window

    def make_hiding(self, name: str, hidden: Tensor) -> Tensor:
        """What is added to the scores, given whether each is hidden."""
        g = self.graph
        masked, seen = g.constant(f"{name}/masked", _MASKED), g.constant(f"{name}/seen", 0.0)
        return g.make_select(name, hidden, masked, seen)

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        if self.length == 1:
            return super().extend(name, k, v, k_cache, v_cache)
        keys, k_cache = self.write_ring(f"{name}/k", k, k_cache)
        values, v_cache = self.write_ring(f"{name}/v", v, v_cache)
        return Extended(k_cache, v_cache, keys, values)

    def write_ring(self, name: str, new: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The old ring's rows before this call's, and the new ring."""
        g = self.graph
        new = make_heads_first(g, f"{name}/heads_first", new)
        seen = g.make_concatenation(f"{name}/seen", (cache, new), axis=2)
        # The engine lays the new cache over the old one. The old one is taken from the copy, so
        # that nothing is written before the copy is made.
        old = cut(g, f"{name}/old", seen, 2, 0, cache.shape[2])
        return seen, make_blend(g, f"{name}/cache", old, new, *self.places)


def make_blend(
    g: Graph, name: str, old: Tensor, new: Tensor, tokens: Tensor, written: Tensor
) -> Tensor:
    """A stretch of a cache with some of its slots written.

    Args:
        old: what stands there, (1, kv, slots, d).
        new: (1, kv, N, d).
        tokens: which of the N goes to each slot, (slots,).
        written: 1.0 in the slots that are written, 0.0 in the others, (slots,).
    """
    factor = g.make_reshape(f"{name}/written", written, (1, 1, *written.shape, 1))
    kept = g.make_sub(f"{name}/kept", g.constant(f"{name}/one", 1.0), factor)
    new = g.make_gather(f"{name}/new", new, tokens, axis=2)
    return g.make_add(
        name,
        g.make_mul(f"{name}/old_part", old, kept),
        g.make_mul(f"{name}/new_part", new, factor),
    )
