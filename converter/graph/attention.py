"""Attention and its KV cache: the part of the graph in which targets differ.

    tokens' q, k, v -> extend: caches with this call's keys and values -> attend: softmax(q k^T) v

N tokens in this call, C slots asked for, S slots in this kind of cache, kv key-value heads,
group = attention heads / kv, d = head_dim. A k cache is (1, kv, S, d), a v cache (1, kv, d, S),
queries (1, kv, group * N, d): the heads of a group stand in the rows of one matrix, so that keys
and values are not repeated.

`PlainCache` is the layout that GPU delegates are known to take: static, one mask input, every slot
read at every call. On a CPU, cost should follow what is used:

* `FullCache` (global layers) lets a prefill read keys only as far as they are written, in steps of
  `LEVELS`; a decode reads them all.
* `RingCache` (local layers) holds the window and no more: position p lies in slot p mod R.

Everything that all layers of a kind share is computed once per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from converter.decoder import DecoderSpec
from converter.graph.tflite import DType, Graph, Model, Tensor

# Added to the scores of positions out of sight. Large against any score, small enough that two such
# numbers added up (the runtime's mask and ours) stay finite.
_MASKED = -1e9
# Slots of a ring beyond the window: as many tokens the engine may take back between two turns.
RING_SLACK = 128
# Prefills attend to the first of these numbers of slots that holds all they see.
LEVELS = (512, 1024, 2048, 4096, 8192, 16384)


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
    """

    slots: int
    window: int | None = None
    is_ring: bool = False


def cache_shape(sliding_window: int | None, cache_length: int, rings: bool) -> CacheShape:
    """The caches of a layer with this window, where `cache_length` tokens are asked for.

    Args:
        rings: whether a ring may be taken. It has forgotten what left its window, so not where the
            engine takes back more than `RING_SLACK` tokens, as it does with a model's thoughts.
    """
    if sliding_window is None or sliding_window >= cache_length:
        return CacheShape(cache_length)
    ring = sliding_window + RING_SLACK
    if not rings or ring >= cache_length:
        return CacheShape(cache_length, sliding_window)
    return CacheShape(ring, sliding_window, is_ring=True)


@dataclass(frozen=True)
class Extended:
    """A layer's caches after this call, and the keys and values that its queries look at."""

    k_cache: Tensor
    v_cache: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Call:
    """One signature and the inputs that its layers share.

    Attributes:
        positions: (N,), position 0 for the padding at a prefill's end.
        first: the first of them, (1,).
        mask: the runtime's causal mask, (1, 1, N, C).
    """

    model: Model
    graph: Graph
    spec: DecoderSpec
    length: int
    positions: Tensor
    first: Tensor
    mask: Tensor


def make_cache(call: Call, shape: CacheShape, target: Target) -> PlainCache:
    """The graph of one kind of cache, with what its layers share."""
    if target is Target.GPU:
        return PlainCache(call, shape)
    return RingCache(call, shape) if shape.is_ring else FullCache(call, shape)


class PlainCache:
    """Position p lies in slot p; every call reads all slots."""

    def __init__(self, call: Call, shape: CacheShape) -> None:
        self.call = call
        self.shape = shape
        self.graph = call.graph
        self.length = call.length
        self.name = f"cache_{shape.window}" if shape.window else "cache"
        self.prepare()

    def prepare(self) -> None:
        """Emit what all layers share."""
        self.mask = self.make_groups(self.make_mask())
        self.k_start, self.v_start = self.make_starts(self.call.first)

    def add_inputs(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's k and v cache."""
        kv, d, slots = self.call.spec.num_key_value_heads, self.call.spec.head_dim, self.shape.slots
        return (
            self.graph.add_input(f"kv_cache_k_{layer}", (1, kv, slots, d), DType.FLOAT32),
            self.graph.add_input(f"kv_cache_v_{layer}", (1, kv, d, slots), DType.FLOAT32),
        )

    def make_mask(self) -> Tensor:
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

    def make_groups(self, mask: Tensor) -> Tensor:
        """One copy of the mask per head in a group, (1, 1, group * N, C)."""
        group = self.call.spec.num_attention_heads // self.call.spec.num_key_value_heads
        if group == 1:
            return mask
        return self.graph.make_concatenation(f"{self.name}/mask/grouped", [mask] * group, axis=2)

    def make_starts(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Where this call writes: (0, 0, slot, 0) in a k cache, (0, 0, 0, slot) in a v cache."""
        g = self.graph
        zero = g.constant("cache/zero", [0])
        return (
            g.make_concatenation(f"{self.name}/k_start", (zero, zero, slot, zero), axis=0),
            g.make_concatenation(f"{self.name}/v_start", (zero, zero, zero, slot), axis=0),
        )

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        """Write this call's keys, (1, kv, N, d), and values, (1, N, kv, d)."""
        columns = self.make_columns(f"{name}/v/columns", v)
        g = self.graph
        k = g.make_dynamic_update_slice(f"{name}/k/cache", k_cache, k, self.k_start)
        v = g.make_dynamic_update_slice(f"{name}/v/cache", v_cache, columns, self.v_start)
        return Extended(k, v, k, v)

    def make_columns(self, name: str, v: Tensor) -> Tensor:
        """(1, N, kv, d) -> (1, kv, d, N); with one token that moves nothing."""
        _, n, kv, d = v.shape
        if n == 1:
            return self.graph.make_reshape(name, v, (1, kv, d, 1))
        return self.graph.make_transpose(name, v, (0, 2, 3, 1))

    def attend(self, name: str, q: Tensor, seen: Extended) -> Tensor:
        """(1, kv, group * N, d) -> the same shape."""
        return make_attention(self.graph, name, q, seen.keys, seen.values, self.mask)


class FullCache(PlainCache):
    """Position p lies in slot p; a prefill reads as many slots as it needs."""

    def prepare(self) -> None:
        self.mask = self.make_mask()
        self.k_start, self.v_start = self.make_starts(self.call.first)
        n = self.length
        if n == 1:  # an IF would copy the whole cache for each token
            self.prepare_levels([], self.call.first)
            return
        levels = [level for level in sorted({n, *LEVELS}) if n <= level < self.shape.slots]
        self.prepare_levels(levels, self.make_end())

    def make_end(self) -> Tensor:
        """The position after this call's last, padding included, (1,)."""
        g = self.graph
        length = g.constant("cache/length", [self.length])
        return g.make_add(f"{self.name}/end", self.call.first, length)

    def prepare_levels(self, levels: Sequence[int], needed: Tensor) -> None:
        """Decide how many columns are looked at: the first level of at least `needed`, (1,)."""
        g = self.graph
        self.levels = tuple(levels)
        self.bodies: dict[int, tuple[Graph, Graph]] = {}
        self.conditions = [
            g.make_greater_equal(
                f"{self.name}/enough_{level}",
                g.constant(f"{self.name}/level_{level}", [level]),
                needed,
            )
            for level in levels
        ]
        self.first_mask = self.cut_mask(g, self.mask, levels[0]) if levels else None

    def attend(self, name: str, q: Tensor, seen: Extended) -> Tensor:
        whole = q, seen.keys, seen.values, self.mask
        return self.attend_up_to(
            self.graph, name, whole, self.levels, self.conditions, self.first_mask
        )

    def cut_mask(self, g: Graph, mask: Tensor, level: int) -> Tensor:
        return g.make_slice(
            f"{self.name}/mask/{level}", mask, (0, 0, 0, 0), (*mask.shape[:3], level)
        )

    def attend_up_to(
        self,
        g: Graph,
        name: str,
        whole: tuple[Tensor, Tensor, Tensor, Tensor],
        levels: Sequence[int],
        conditions: Sequence[Tensor],
        first_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention over the first of `levels` whose condition holds, or over everything.

        The runtime copies what the chosen body of an IF reads. So the first columns are cut off
        before the decision, and the whole cache is an input that only the other body reads.

        Args:
            whole: queries, keys, values and mask.
            first_mask: the mask up to the first level, where it was cut before.
        """
        if not levels:
            return make_attention(g, name, *whole)
        q, keys, values, mask = whole
        level, (_, kv, _, d) = levels[0], keys.shape
        inputs = {
            "q": q,
            "first_keys": g.make_slice(f"{name}/k/first", keys, (0, 0, 0, 0), (1, kv, level, d)),
            "first_values": g.make_slice(
                f"{name}/v/first", values, (0, 0, 0, 0), (1, kv, d, level)
            ),
            "first_mask": first_mask or self.cut_mask(g, mask, level),
            "keys": keys,
            "values": values,
            "mask": mask,
            **{f"enough_{n}": c for n, c in zip(levels[1:], conditions[1:], strict=True)},
        }
        if level not in self.bodies:
            self.bodies[level] = self.make_bodies(levels, inputs)
        return g.make_if(
            f"{name}/context", conditions[0], *self.bodies[level], list(inputs.values())
        )

    def make_bodies(self, levels: Sequence[int], inputs: dict[str, Tensor]) -> tuple[Graph, Graph]:
        """What is run where the first level suffices, and where it does not; for all layers."""
        name = f"{self.graph.name}/{self.name}"
        then = self.call.model.add_body(f"{name}/first_{levels[0]}")
        beyond = self.call.model.add_body(f"{name}/beyond_{levels[0]}")
        for input_name, tensor in inputs.items():
            then.add_input(input_name, tensor.shape, tensor.dtype)
            beyond.add_input(input_name, tensor.shape, tensor.dtype)
        parts = [then.inputs[part] for part in ("q", "first_keys", "first_values", "first_mask")]
        then.add_output("context", make_attention(then, "attention", *parts))
        q, keys, values, mask = (beyond.inputs[part] for part in ("q", "keys", "values", "mask"))
        conditions = [beyond.inputs[f"enough_{level}"] for level in levels[1:]]
        context = self.attend_up_to(
            beyond, "attention", (q, keys, values, mask), levels[1:], conditions
        )
        beyond.add_output("context", context)
        return then, beyond


class RingCache(FullCache):
    """Position p lies in slot p mod R; R is the window and `RING_SLACK`.

    A prefill looks at its own N keys, then at the ring as it was before them. A prompt's first call
    has nothing before it, and looks at its own alone.
    """

    def prepare(self) -> None:
        g, n = self.graph, self.length
        length = g.constant(f"{self.name}/slots", [self.shape.slots])
        self.mask = self.make_mask()
        if n == 1:
            slot = g.make_floor_mod(f"{self.name}/slot", self.call.first, length)
            self.k_start, self.v_start = self.make_starts(slot)
            self.prepare_levels([], self.call.first)
            return
        # This call's own N columns are enough where they end at N: nothing lies in the ring.
        self.prepare_levels([n], self.make_end())
        # The token that ends up in each slot: the newest position that belongs there, counted from
        # this call's first. Padding has position 0 and is no token, so it is never the newest.
        last = g.make_reduce_max(f"{self.name}/last", self.call.positions)
        newest = g.make_sub(f"{self.name}/newest", last, self.make_age(f"{self.name}/age", last))
        token = g.make_sub(f"{self.name}/token", newest, self.call.first)
        zero = g.constant("cache/zero", [0])
        self.tokens = g.make_maximum(f"{self.name}/tokens", token, zero)
        is_written = g.make_greater_equal(f"{self.name}/is_written", token, zero)
        self.written = g.make_cast(f"{self.name}/written", is_written, DType.FLOAT32)
        one = g.constant(f"{self.name}/one", 1.0)
        self.kept = g.make_sub(f"{self.name}/kept", one, self.written)

    def make_age(self, name: str, newest: Tensor) -> Tensor:
        """How long before position `newest`, (1,), the one in each slot is, (R,)."""
        g, slots = self.graph, self.shape.slots
        slot = g.constant(f"{self.name}/slot_numbers", np.arange(slots, dtype=np.int32))
        back = g.make_sub(f"{name}/back", newest, slot)
        return g.make_floor_mod(name, back, g.constant(f"{self.name}/slots", [slots]))

    def make_mask(self) -> Tensor:
        """(1, 1, N, N + R) over this call's keys and the old ring; in a decode (1, 1, 1, R).

        The runtime's mask knows nothing of rings.
        """
        g, n, slots, window = self.graph, self.length, self.shape.slots, self.shape.window
        assert window is not None
        name, first = f"{self.name}/mask", self.call.first
        masked, seen = g.constant(f"{name}/masked", _MASKED), g.constant(f"{name}/seen", 0.0)
        widest, one = g.constant(f"{name}/window", [window]), g.constant(f"{name}/one", [1])
        if n == 1:
            age = self.make_age(f"{name}/age", first)
            before = g.make_add(f"{name}/before", first, one)  # positions up to this one
            until = g.make_minimum(f"{name}/until", before, widest)
            hidden = g.make_greater_equal(f"{name}/hidden", age, until)
            row = g.make_select(f"{name}/row", hidden, masked, seen)
            return g.make_reshape(name, row, (1, 1, 1, slots))
        age = self.make_age(f"{name}/age", g.make_sub(f"{name}/newest", first, one))
        never = g.make_greater_equal(f"{name}/never_written", age, first)
        age = g.make_select(f"{name}/age_or_never", never, widest, age)
        age = g.make_reshape(f"{name}/age_row", age, (1, 1, 1, slots))
        # Row i is i + 1 positions after the newest in the ring.
        rows = np.arange(n, dtype=np.int32).reshape(1, 1, n, 1)
        limit = g.constant(f"{name}/limit", window - 1 - rows)
        hidden = g.make_greater_equal(f"{name}/ring_hidden", age, limit)
        ring = g.make_select(f"{name}/ring", hidden, masked, seen)
        # Of its own keys, column j is seen by the rows j to j + window - 1.
        row = g.constant(f"{name}/row_numbers", rows)
        columns = rows.reshape(1, 1, 1, n)
        is_past = g.make_greater_equal(f"{name}/is_past", row, g.constant(f"{name}/from", columns))
        is_far = g.make_greater_equal(
            f"{name}/is_far", row, g.constant(f"{name}/to", columns + np.int32(window))
        )
        own = g.make_select(f"{name}/causal", is_past, seen, masked)
        own = g.make_select(f"{name}/own", is_far, masked, own)
        return g.make_concatenation(name, (own, ring), axis=3)

    def extend(self, name: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Extended:
        if self.length == 1:
            return super().extend(name, k, v, k_cache, v_cache)
        g, n, slots = self.graph, self.length, self.shape.slots
        columns = self.make_columns(f"{name}/v/columns", v)
        keys = g.make_concatenation(f"{name}/k/seen", (k, k_cache), axis=2)
        values = g.make_concatenation(f"{name}/v/seen", (columns, v_cache), axis=3)
        # The engine lays the new cache over the old one. The old one is taken from the copy, so
        # that nothing is written before the copy is made.
        old_k = g.make_slice(f"{name}/k/old", keys, (0, 0, n, 0), k_cache.shape)
        old_v = g.make_slice(f"{name}/v/old", values, (0, 0, 0, n), v_cache.shape)
        new_k = g.make_gather(f"{name}/k/new", k, self.tokens, axis=2)
        new_v = self.make_columns(
            f"{name}/v/new", g.make_gather(f"{name}/v/new_rows", v, self.tokens, axis=1)
        )
        return Extended(
            self.make_blend(f"{name}/k/cache", old_k, new_k, (1, 1, slots, 1)),
            self.make_blend(f"{name}/v/cache", old_v, new_v, (1, 1, 1, slots)),
            keys,
            values,
        )

    def make_blend(self, name: str, old: Tensor, new: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`new` in the slots that are written, `old` in the others: the factors are 0 or 1."""
        g = self.graph
        kept = g.make_reshape(f"{name}/kept_slots", self.kept, shape)
        written = g.make_reshape(f"{name}/written_slots", self.written, shape)
        return g.make_add(
            name,
            g.make_mul(f"{name}/kept", old, kept),
            g.make_mul(f"{name}/written", new, written),
        )


def make_attention(
    g: Graph, name: str, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:
    """softmax(q @ keys^T + mask) @ values.

    Args:
        q: (1, kv, group * N, d).
        keys, values: (1, kv, columns, d) and (1, kv, d, columns).
        mask: (1, 1, group * N, columns), or (1, 1, N, columns) for all the heads of a group.
    """
    _, kv, rows, _ = q.shape
    n, columns = mask.shape[2:]
    scores = g.make_batch_matmul(f"{name}/scores", q, keys)
    if n != rows:
        scores = g.make_reshape(f"{name}/scores/groups", scores, (kv, rows // n, n, columns))
    scores = g.make_add(f"{name}/masked", scores, mask)
    weights = g.make_softmax(f"{name}/softmax", scores)
    if n != rows:
        weights = g.make_reshape(f"{name}/softmax/rows", weights, (1, kv, rows, columns))
    return g.make_batch_matmul(f"{name}/attended", weights, values)
