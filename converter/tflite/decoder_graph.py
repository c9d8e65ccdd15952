"""Turns a `DecoderSpec` into the signatures `prefill_N`, `decode` and `verify` of a TFLite model.

    tokens (1, N)  input_pos (N,)  [gpu only: mask (1, 1, N, C)]  states
        |
    embedding -> layers -> [decode only: norm -> head -> logits (1, 1, vocabulary)]

with N tokens in this call and C slots asked for. A layer's mixer has a file of its own, which says
what it keeps between calls: `attention_layers`, whose caches' shapes stand in `kv_cache`,
`short_conv` and `delta_net`. `verify`, which is there for drafts, stands in `lookup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from converter.decoder import (
    PER_LAYER_TABLE,
    Attention,
    DecoderSpec,
    GatedDeltaNet,
    LayerSpec,
    Mamba2,
    PerLayerInput,
    Placement,
    ShortConv,
)
from converter.tflite.altup import AltUpStreams
from converter.tflite.attention import make_softcap
from converter.tflite.attention_layers import AttentionLayers
from converter.tflite.blocks import Blocks, WeightOf, at
from converter.tflite.delta_net import DeltaNetLayers
from converter.tflite.feed_forward import make_feed_forward
from converter.tflite.graph import DType, Graph, Model, Tensor
from converter.tflite.kv_cache import CacheType, Call, Target, cache_shape
from converter.tflite.lookup import WIDTH as LOOKUP_WIDTH
from converter.tflite.lookup import History, add_no_activations, add_verify
from converter.tflite.mamba2 import Mamba2Layers
from converter.tflite.short_conv import ShortConvLayers
from converter.tflite.state import StateBuffer


class Decoder(NamedTuple):
    """A network, and what the engine keeps for it between calls."""

    model: Model
    states: tuple[StateBuffer, ...]


class MixerLayers(Protocol):
    """All layers of one kind of mixer in one signature."""

    def add_states(self, index: int) -> tuple[StateBuffer, ...]:
        """Declare what a layer keeps between calls; nothing where an earlier one does."""

    def write(self, index: int, block: str, x: Tensor) -> None:
        """Bring a layer's states up to date with what it is fed with, (N, hidden)."""

    def mix(self, index: int, block: str, x: Tensor) -> Tensor:
        """Its output, (N, hidden) -> the same; it has been written before."""


def build_decoder(
    spec: DecoderSpec,
    prefill_lengths: Sequence[int],
    cache_length: int,
    weight_of: WeightOf,
    target: Target,
    rings: bool,
    drafts: int = 0,
    cache_type: CacheType = CacheType.FP32,
    has_trained_drafter: bool = False,
) -> Decoder:
    """Emit one `prefill_N` for every length, `decode`, and `verify` where there are drafts.

    Args:
        spec: the network.
        prefill_lengths: the Ns, ascending.
        cache_length: tokens that the KV cache holds, C.
        weight_of: the stored form of each weight path in `spec.weight_shapes`.
        target: what it will run on.
        rings: whether caches of windows may be rings; see `cache_shape`.
        drafts: how many tokens are drafted at once; 0 for none. They may reach beyond C.
        cache_type: what keys and values are held as.
        has_trained_drafter: whether tokens are drafted from what the last layer makes of the text
            (`assistant`), and not from the text itself (`lookup`).
    """
    model = Model("litert-lm-cli")
    # Declared first and in order of use, so that the file is read front to back.
    for path, _ in spec.weight_shapes():
        model.declare(weight_of(path))

    slots, history = slots_for(cache_length, drafts), None
    if drafts and not has_trained_drafter:
        history = History.of(len(spec.layers), cache_length, prefill_lengths)

    def emit(
        g: Graph, ids: Tensor, positions: Tensor, fits: bool = False, used: range | None = None
    ) -> DecoderGraph:
        mask = None
        if target is Target.GPU:
            shape = 1, 1, *positions.shape, slots
            mask = g.add_input("mask", shape, DType.FLOAT32)
        first = g.make_slice("cache/first", positions, (0,), (1,))
        last = g.make_reduce_max("cache/last", positions)
        call = Call(model, g, positions.shape[0], positions, first, last, mask, fits, used)
        return DecoderGraph(call, spec, ids, weight_of, slots, target, rings, cache_type)

    def emit_signature(signature: str, n: int) -> DecoderGraph:
        g = model.add_graph(signature)
        tokens = g.add_input("tokens", (1, n), DType.INT32)
        positions = g.add_input("input_pos", (n,), DType.INT32)
        ids = g.make_reshape("embedding/ids", tokens, (n,))
        network = emit(g, ids, positions)
        if history is not None:
            history.add(g, ids, network.first)
        return network

    for length in prefill_lengths:
        emit_signature(f"prefill_{length}", length).build_prefill()
    decode = emit_signature("decode", 1)
    last = decode.make_last()
    decode.graph.add_output("logits", decode.make_logits(last))
    states = decode.states
    if not drafts:
        return Decoder(model, states)

    def make_handed(network: DecoderGraph, last: Tensor) -> Tensor | None:
        if not has_trained_drafter:
            return None
        return network.graph.make_reshape("last", last, (1, *last.shape))

    def emit_rows(
        g: Graph, ids: Tensor, positions: Tensor, used: range
    ) -> tuple[Tensor, Tensor | None]:
        network = emit(g, ids, positions, fits=True, used=used)
        last = network.make_last()
        return network.make_logits(last), make_handed(network, last)

    handed = make_handed(decode, last)
    if handed is None:
        add_no_activations(decode.graph, decode.first)
    else:
        decode.graph.add_output("activations", handed)
    width = LOOKUP_WIDTH if handed is None else spec.hidden_size
    add_verify(model, drafts, spec.vocab_size, slots, states, history, emit_rows, width)
    return Decoder(model, states if history is None else (*states, history.state))


def slots_for(cache_length: int, drafts: int) -> int:
    """How many slots a cache is asked for: the last drafts may reach beyond the context."""
    return cache_length + drafts + 1 if drafts else cache_length


class DecoderGraph:
    """One call: N tokens through the network.

    Args:
        borrows: whether its caches are another network's, which it does not write.
    """

    def __init__(
        self,
        call: Call,
        spec: DecoderSpec,
        ids: Tensor,
        weight_of: WeightOf,
        cache_length: int,
        target: Target,
        rings: bool,
        cache_type: CacheType,
        borrows: bool = False,
    ) -> None:
        self.graph = call.graph
        self.spec = spec
        self.length = call.length
        self.first = call.first
        self.ids = ids
        self.blocks = Blocks(call, weight_of)
        self.altup = None
        if spec.altup is not None:
            self.altup = AltUpStreams(self.blocks, spec.altup, spec.norm)
        mixers = [(i, mixer) for i, layer in enumerate(spec.layers) for mixer in layer.mixers]
        attention = {i: mixer for i, mixer in mixers if isinstance(mixer, Attention)}
        convs = {i: mixer for i, mixer in mixers if isinstance(mixer, ShortConv)}
        delta = {i: mixer for i, mixer in mixers if isinstance(mixer, GatedDeltaNet)}
        mamba = {i: mixer for i, mixer in mixers if isinstance(mixer, Mamba2)}
        shapes = {
            i: cache_shape(mixer.sliding_window, cache_length, target, rings, cache_type)
            for i, mixer in attention.items()
        }
        self.mixers: dict[type, MixerLayers] = {
            Attention: AttentionLayers(self.blocks, attention, shapes, target, borrows),
            ShortConv: ShortConvLayers(self.blocks, convs, spec.hidden_size),
            GatedDeltaNet: DeltaNetLayers(self.blocks, delta),
            Mamba2: Mamba2Layers(self.blocks, mamba),
        }
        added = [(i, self.mixers[type(mixer)].add_states(i)) for i, mixer in mixers]
        self.states = tuple(state for _, states in added for state in states)
        self.last_writer = max((i for i, states in added if states), default=-1)

    def build_prefill(self) -> None:
        """A prefill is done when the last state is written."""
        last = self.last_writer
        x, layer = self.make_layers(last), self.spec.layers[last]
        if self.altup is not None:
            x = self.altup.active_of(f"layers.{last}", self.altup.predict(last, x))
        self.write(last, layer, self.make_pre_norm(mixer_path(last, layer), x))

    def make_last(self) -> Tensor:
        """What all layers make of the tokens, normalised for the head: (N, hidden)."""
        return self.make_final_norm(self.make_layers(len(self.spec.layers)))

    def make_final_norm(self, x: Tensor) -> Tensor:
        """What comes out of the last layer, as the head takes it: (N, hidden)."""
        if self.altup is not None:
            x = self.altup.end(x)
        return self.blocks.make_norm("final_norm", x, "final_norm", self.spec.norm)

    def make_logits(self, x: Tensor) -> Tensor:
        """What the head makes of them, (N, hidden) -> (1, N, vocabulary)."""
        g, spec = self.graph, self.spec
        head, bias = "embedding" if spec.tied_head else "head", None
        if spec.head_bias:
            bias = "head.bias"
        logits = self.blocks.make_projection("head", x, head, bias)
        if spec.logits_scale is not None:
            logits = g.make_mul("head/scaled", logits, g.constant("head/scale", spec.logits_scale))
        if spec.logits_softcap is not None:
            logits = make_softcap(g, "head/capped", logits, spec.logits_softcap)
        shape = 1, self.length, spec.vocab_size
        return g.make_reshape("logits", logits, shape)

    def make_layers(self, count: int) -> Tensor:
        """The tokens after so many layers, (N, hidden)."""
        x = self.make_rows("embedding", self.ids, "embedding", self.spec.embedding_scale)
        self.embedded = x
        if self.spec.per_layer_input is not None:
            self.rows = self.make_per_layer_rows(self.spec.per_layer_input)
        if self.altup is not None:
            x = self.altup.begin(x)
        for i, layer in enumerate(self.spec.layers[:count]):
            x = self.make_layer(i, layer, x)
        return x

    def make_layer(self, index: int, layer: LayerSpec, x: Tensor) -> Tensor:
        """One layer, (N, hidden) -> the same; with several streams (N, streams, hidden)."""
        g, spec, altup = self.graph, self.spec, self.altup
        if altup is None:
            x = self.make_blocks(index, layer, x)
            if spec.per_layer_input is not None:
                x = g.make_add(
                    f"layers.{index}/per_layer",
                    x,
                    self.make_per_layer_update(index, spec.per_layer_input, x),
                )
        else:
            predicted = altup.predict(index, x)
            made = self.make_blocks(index, layer, altup.active_of(f"layers.{index}", predicted))
            x = altup.correct(index, predicted, made)
            if spec.per_layer_input is not None:
                seen = altup.output_of(index, x)
                update = self.make_per_layer_update(index, spec.per_layer_input, seen)
                x = altup.add_to_others(index, x, update)
        if spec.has_layer_scales:
            scale = self.blocks.weight(f"layers.{index}.scale")
            x = g.make_mul(f"layers.{index}/scaled", x, scale)
        return x

    def make_blocks(self, index: int, layer: LayerSpec, x: Tensor) -> Tensor:
        """Mixer and feed-forward block, or one of them, (N, hidden) -> the same."""
        if layer.mixer is not None:
            x = self.make_mixer_block(index, layer, x)
        if layer.feed_forward is None or self.spec.placement is Placement.PARALLEL:
            return x
        mlp = f"layers.{index}.mlp"
        fed = self.make_pre_norm(mlp, x)
        update = make_feed_forward(self.blocks, mlp, layer.feed_forward, fed, x)
        return self.make_residual(mlp, x, self.make_post_norm(mlp, update))

    def make_mixer_block(self, index: int, layer: LayerSpec, x: Tensor) -> Tensor:
        """The mixer, and the feed-forward block where it is beside it, (N, hidden) -> the same."""
        g, block, mlp = self.graph, mixer_path(index, layer), f"layers.{index}.mlp"
        fed = self.make_pre_norm(block, x)
        self.write(index, layer, fed)
        update = self.mix(index, layer, fed)
        if self.spec.placement is Placement.PARALLEL:
            assert layer.feed_forward is not None
            fed = make_feed_forward(self.blocks, mlp, layer.feed_forward, fed, x)
            update = g.make_add(f"layers.{index}/parallel", update, fed)
            return self.make_residual(f"layers.{index}", x, update)
        x = self.make_residual(block, x, self.make_post_norm(block, update))
        if self.spec.laurel_rank is not None:
            x = self.add_laurel(f"layers.{index}.laurel", x, fed)
        return x

    def add_laurel(self, block: str, x: Tensor, fed: Tensor) -> Tensor:
        """See `DecoderSpec.laurel_rank`; (N, hidden) -> the same."""
        g, blocks, name = self.graph, self.blocks, at(block)
        low = blocks.make_part(block, "left", (), fed)
        update = blocks.make_part(block, "right", (), low)
        update = blocks.make_norm(f"{name}/post_norm", update, f"{block}.post_norm", self.spec.norm)
        path = g.make_add(f"{name}/path", fed, update)
        both = g.make_add(f"{name}/both", x, path)
        return g.make_mul(name, both, g.constant("laurel/half", 2**-0.5))

    def write(self, index: int, layer: LayerSpec, fed: Tensor) -> None:
        """Bring a layer's states up to date."""
        for mixer in layer.mixers:
            self.mixers[type(mixer)].write(index, f"layers.{index}.{mixer.block}", fed)

    def mix(self, index: int, layer: LayerSpec, fed: Tensor) -> Tensor:
        """What a layer's mixers make of their input, (N, hidden) -> the same."""
        made = [
            self.mixers[type(mixer)].mix(index, f"layers.{index}.{mixer.block}", fed)
            for mixer in layer.mixers
        ]
        return made[0] if len(made) == 1 else self.graph.make_add(f"layers.{index}/both", *made)

    # Embeddings -----------------------------------------------------------------------------------

    def make_rows(self, name: str, ids: Tensor, path: str, scale: float | None) -> Tensor:
        """Rows of a table in float32, times a scale, (N,) -> (N, width).

        EMBEDDING_LOOKUP takes no float16. Were the table widened first, every signature would hold
        all of it as float32, 0.7 GB for Gemma 3; so its rows are gathered, and these are widened.
        """
        g, table = self.graph, self.blocks.weight(path)
        rest = self.blocks.weight_of(path).rest
        if rest is not None:
            most = g.make_embedding_lookup(f"{name}/rows/most", ids, table)
            lacking = g.make_embedding_lookup(f"{name}/rows/rest", ids, g.weight(rest))
            rows = g.make_add(f"{name}/rows", most, lacking)
        elif table.dtype is not DType.FLOAT16:
            rows = g.make_embedding_lookup(f"{name}/rows", ids, table)
        else:
            gathered = g.make_gather(f"{name}/rows", table, ids, 0)
            rows = g.make_dequantize(f"{name}/rows/float32", gathered)
        return rows if scale is None else g.make_mul(name, rows, g.constant(f"{name}/scale", scale))

    def make_per_layer_rows(self, given: PerLayerInput) -> Tensor:
        """The rows of the second table, (N, layers * width)."""
        g, ids = self.graph, self.ids
        if given.rows < self.spec.vocab_size:
            beyond = g.constant("per_layer/known", [given.rows])
            is_beyond = g.make_greater_equal("per_layer/is_beyond", ids, beyond)
            ids = g.make_select("per_layer/ids", is_beyond, g.constant("per_layer/none", [0]), ids)
        return self.make_rows("per_layer", ids, PER_LAYER_TABLE, given.width**0.5)

    def make_per_layer_update(self, index: int, given: PerLayerInput, x: Tensor) -> Tensor:
        """What a layer makes of its part of the second embedding; see `PerLayerInput`."""
        g, blocks, block = self.graph, self.blocks, f"layers.{index}.per_layer"
        name, n = at(block), self.length
        part = g.make_slice(f"{name}/row", self.rows, (0, index * given.width), (n, given.width))
        context = blocks.make_part(block, "projection", (), self.embedded)
        shrunk = g.constant("per_layer/shrunk", self.spec.hidden_size**-0.5)
        context = g.make_mul(f"{name}/context", context, shrunk)
        context = blocks.make_norm(f"{name}/norm", context, "per_layer_norm", self.spec.norm)
        part = g.make_add(f"{name}/sum", part, context)
        part = g.make_mul(f"{name}/part", part, g.constant("per_layer/half", 2**-0.5))
        gate = blocks.make_part(block, "gate", (), x)
        gate = blocks.make_activation(block, given.activation, gate)
        update = blocks.make_part(block, "up", (), g.make_mul(f"{name}/gated", gate, part))
        norm = self.spec.norm
        return blocks.make_norm(f"{name}/post_norm", update, f"{block}.post_norm", norm)

    # Blocks ---------------------------------------------------------------------------------------

    def make_pre_norm(self, block: str, x: Tensor) -> Tensor:
        """What a block is fed with."""
        if not self.spec.placement.has_pre_norms:
            return x
        return self.blocks.make_norm(f"{at(block)}/norm", x, f"{block}.norm", self.spec.norm)

    def make_post_norm(self, block: str, update: Tensor) -> Tensor:
        """What comes out of a block, normalised where the family does so."""
        if not self.spec.placement.has_post_norms:
            return update
        name = f"{at(block)}/post_norm"
        return self.blocks.make_norm(name, update, f"{block}.post_norm", self.spec.norm)

    def make_residual(self, block: str, x: Tensor, update: Tensor) -> Tensor:
        """x + update, times the family's factor."""
        g, name = self.graph, at(block)
        if self.spec.residual_scale is not None:
            scale = g.constant("residual/scale", self.spec.residual_scale)
            update = g.make_mul(f"{name}/residual/scaled", update, scale)
        return g.make_add(f"{name}/residual", x, update)


def mixer_path(index: int, layer: LayerSpec) -> str:
    """Where a layer's mixer has its weights."""
    assert layer.mixer is not None
    return f"layers.{index}.{layer.mixer.block}"
