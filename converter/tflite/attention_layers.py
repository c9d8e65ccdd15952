"""Attention layers: queries, keys and values, and their caches in `kv_cache`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converter.decoder import Attention, PositionScale, QKNorm, Rope
from converter.tflite.attention import Scores
from converter.tflite.blocks import Blocks, at
from converter.tflite.graph import DType, Tensor
from converter.tflite.kv_cache import CacheShape, Extended, HeadShape, Target, make_cache
from converter.tflite.state import StateBuffer


class AttentionLayers:
    """The attention layers of one signature; what several of them share is made once."""

    def __init__(
        self,
        blocks: Blocks,
        mixers: Mapping[int, Attention],
        shapes: Mapping[int, CacheShape],
        target: Target,
        borrows: bool = False,
    ) -> None:
        """
        Args:
            mixers: by the layer's number, as are `shapes` of their caches.
            borrows: whether `cache_of` is a layer of another network, which has been called; its
                caches are inputs, and no outputs.
        """
        self.blocks = blocks
        self.graph = blocks.graph
        self.length = blocks.length
        self.positions = blocks.call.positions
        self.mixers = mixers
        ropes = dict.fromkeys(rotation(m) for m in mixers.values() if m.rope is not None)
        self.rope_tables = {
            turned: self.make_rope_tables(f"rope_{i}", *turned) for i, turned in enumerate(ropes)
        }
        scales = dict.fromkeys(m.position_scale for m in mixers.values() if m.position_scale)
        self.position_scales = {
            scale: self.make_position_scale(f"position_scale_{i}", scale)
            for i, scale in enumerate(scales)
        }
        kinds = {
            i: (shapes[i], HeadShape(mixer.num_heads, mixer.num_kv_heads, mixer.head_dim))
            for i, mixer in mixers.items()
        }
        caches = {
            kind: make_cache(blocks.call, *kind, target) for kind in dict.fromkeys(kinds.values())
        }
        self.caches = {i: caches[kind] for i, kind in kinds.items()}
        self.borrows = borrows
        for i, mixer in mixers.items():
            assert borrows or mixer.cache_of is None or shapes[i] == shapes[mixer.cache_of]
        self.states: dict[int, tuple[StateBuffer, ...]] = {}
        self.inputs: dict[int, tuple[Tensor, ...]] = {}
        self.seen: dict[int, Extended] = {}

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare a layer's cache, where it has one of its own."""
        source = self.mixers[index].cache_of
        if source is not None:
            if self.borrows and source not in self.seen:
                self.seen[source] = self.caches[index].borrowed(source)
            return ()
        self.states[index] = states = self.caches[index].buffers(index)
        self.inputs[index] = tuple(state.add_to(self.graph) for state in states)
        return states

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Write a layer's keys and values, from what it is fed with, (N, hidden)."""
        if index not in self.inputs:
            return
        k, v = self.make_keys_and_values(block, self.mixers[index], x)
        self.seen[index] = seen = self.caches[index].extend(at(block), k, v, self.inputs[index])
        for state, cache in zip(self.states[index], seen.caches, strict=True):
            self.graph.add_output(state.name, cache)

    def mix(self, index: int, block: str, x: Tensor) -> Tensor:
        """Attention over the layer's own cache or an earlier one's, (N, hidden) -> the same."""
        g, name, mixer = self.graph, at(block), self.mixers[index]
        q = self.make_heads(block, "q", mixer, x, mixer.num_heads)
        # Below a cap, scores are a share of it.
        scale = mixer.scale / (mixer.softcap or 1)
        if scale != 1:
            q = g.make_mul(f"{name}/q/scaled", q, g.constant(f"{name}/scale", scale))
        if mixer.position_scale is not None:
            q = g.make_mul(f"{name}/q/grown", q, self.position_scales[mixer.position_scale])
        sinks = self.blocks.weight(f"{block}.sinks") if mixer.has_sinks else None
        source = index if mixer.cache_of is None else mixer.cache_of
        context = self.caches[index].attend(
            name, q, self.seen[source], Scores(mixer.softcap, sinks)
        )
        flat = self.length, mixer.num_heads * mixer.head_dim
        context = g.make_reshape(f"{name}/context/flat", context, flat)
        if mixer.is_gated:
            gate = self.blocks.make_part(block, "gate", mixer.biases, x)
            open_ = g.make_logistic(f"{name}/gate/logistic", gate)
            context = g.make_mul(f"{name}/gated", context, open_)
        return self.blocks.make_part(block, "o", mixer.biases, context)

    # Queries, keys and values ---------------------------------------------------------------------

    def make_keys_and_values(
        self, block: str, mixer: Attention, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, hidden) -> keys and values, (1, N, kv, d)."""
        name, shape = at(block), (1, self.length, mixer.num_kv_heads, mixer.head_dim)
        projected = self.blocks.make_part(block, "k", mixer.biases, x)
        k = self.make_heads_of(block, "k", mixer, projected, mixer.num_kv_heads)
        v = projected
        if not mixer.keys_are_values:
            v = self.blocks.make_part(block, "v", mixer.biases, x)
        v = self.graph.make_reshape(f"{name}/v/heads", v, shape)
        if mixer.value_norm is not None:
            path = f"{block}.v_norm"
            v = self.blocks.make_norm(f"{name}/v_norm", v, path, mixer.value_norm)
        return k, v

    def make_heads(self, block: str, part: str, mixer: Attention, x: Tensor, heads: int) -> Tensor:
        """Queries or keys as attention takes them, (N, hidden) -> (1, N, heads, d)."""
        x = self.blocks.make_part(block, part, mixer.biases, x)
        return self.make_heads_of(block, part, mixer, x, heads)

    def make_heads_of(
        self, block: str, part: str, mixer: Attention, x: Tensor, heads: int
    ) -> Tensor:
        """A projection as attention takes it, (N, heads * d) -> (1, N, heads, d)."""
        g, name, norm = self.graph, f"{at(block)}/{part}", mixer.qk_norm
        if norm is not None and norm.is_full_width:
            x = self.make_qk_norm(block, part, norm, x)
        x = g.make_reshape(f"{name}/heads", x, (1, self.length, heads, mixer.head_dim))
        if norm is not None and not norm.is_full_width and not norm.after_rope:
            x = self.make_qk_norm(block, part, norm, x)
        if mixer.rope is not None:
            x = self.make_rope(f"{name}/rope", x, *self.rope_tables[rotation(mixer)])
        if norm is not None and norm.after_rope:
            x = self.make_qk_norm(block, part, norm, x)
        return x

    def make_qk_norm(self, block: str, part: str, norm: QKNorm, x: Tensor) -> Tensor:
        """Queries or keys normalised over the last axis."""
        return self.blocks.make_norm(
            f"{at(block)}/{part}_norm", x, f"{block}.{part}_norm", norm.norm
        )

    def make_rope(self, name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the halves of the first `width` values of every head, (1, N, heads, d)."""
        g, (_, n, heads, d), width = self.graph, x.shape, cos.shape[3]
        half = width // 2
        first = g.make_slice(f"{name}/first", x, (0, 0, 0, 0), (1, n, heads, half))
        second = g.make_slice(f"{name}/second", x, (0, 0, 0, half), (1, n, heads, half))
        swapped = g.make_concatenation(f"{name}/swapped", (second, first), axis=3)
        turned, rest = x, None
        if width < d:
            turned = g.make_slice(f"{name}/turned", x, (0, 0, 0, 0), (1, n, heads, width))
            rest = g.make_slice(f"{name}/rest", x, (0, 0, 0, width), (1, n, heads, d - width))
        turned = g.make_add(
            f"{name}/rotated" if rest is not None else name,
            g.make_mul(f"{name}/cos", turned, cos),
            g.make_mul(f"{name}/sin", swapped, sin),
        )
        return turned if rest is None else g.make_concatenation(name, (turned, rest), axis=3)

    # Once per call ------------------------------------------------------------------------------

    def make_rope_tables(self, name: str, rope: Rope, width: int) -> tuple[Tensor, Tensor]:
        """cos and sin of each position and frequency, (1, N, 1, width), ready for `make_rope`.

        Both times the attention factor, where there is one.
        The first half of sin is negative: the rotation of (a, b) is (a cos - b sin, b cos + a sin),
        so swapping the halves and one multiplication replace two slices of work.
        """
        g, n = self.graph, self.length
        frequencies = np.asarray(rope.inverse_frequencies(width), np.float32)
        position = g.make_cast(f"{name}/position", self.positions, DType.FLOAT32)
        angles = g.make_mul(
            f"{name}/angles",
            g.make_reshape(f"{name}/column", position, (1, n, 1, 1)),
            g.constant(f"{name}/frequencies", frequencies.reshape(1, 1, 1, -1)),
        )  # (1, N, 1, width/2)
        cos = g.make_cos(f"{name}/cos_half", angles)
        sin = g.make_sin(f"{name}/sin_half", angles)
        if rope.attention_factor != 1:
            factor = g.constant(f"{name}/attention_factor", rope.attention_factor)
            cos = g.make_mul(f"{name}/cos_scaled", cos, factor)
            sin = g.make_mul(f"{name}/sin_scaled", sin, factor)
        minus = g.make_neg(f"{name}/minus_sin", sin)
        return (
            g.make_concatenation(f"{name}/cos", (cos, cos), axis=3),
            g.make_concatenation(f"{name}/sin", (minus, sin), axis=3),
        )

    def make_position_scale(self, name: str, scale: PositionScale) -> Tensor:
        """1 + beta ln(1 + floor(position / length)), (1, N, 1, 1)."""
        g = self.graph
        length = g.constant(f"{name}/length", np.asarray([scale.length], np.int32))
        steps = g.make_floor_div(f"{name}/steps", self.positions, length)
        count = g.make_add(f"{name}/count", steps, g.constant(f"{name}/one_step", [1]))
        count = g.make_cast(f"{name}/float32", count, DType.FLOAT32)
        grown = g.make_mul(
            f"{name}/grown",
            g.make_log(f"{name}/log", count),
            g.constant(f"{name}/beta", scale.beta),
        )
        total = g.make_add(f"{name}/total", grown, g.constant(f"{name}/one", 1.0))
        return g.make_reshape(name, total, (1, self.length, 1, 1))


def rotation(mixer: Attention) -> tuple[Rope, int]:
    """What its heads have in common with all that are rotated alike, and how wide that is."""
    assert mixer.rope is not None  # it is asked of those that are rotated
    return mixer.rope, mixer.rope.width or mixer.head_dim
