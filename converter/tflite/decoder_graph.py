"""Turns a `DecoderSpec` into the signatures `prefill_N` and `decode` of a TFLite model.

    tokens (1, N)  input_pos (N,)  [gpu only: mask (1, 1, N, C)]
    kv_cache_k_i  kv_cache_v_i
        |
    embedding -> layers -> [decode only: norm -> head -> logits (1, 1, vocabulary)]

with N tokens in this call, C slots asked for, kv key-value heads and d = head_dim; the caches'
shapes stand in `kv_cache`. What every layer shares (rotary tables, masks, the place to write in the
caches) is computed once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from converter.decoder import (
    XIELU_BETA,
    Activation,
    Attention,
    DecoderSpec,
    FeedForward,
    Norm,
    NormKind,
    Placement,
    PositionScale,
    QKNorm,
    Rope,
)
from converter.tflite.attention import Scores, make_softcap
from converter.tflite.graph import DType, Model, Tensor, Weight
from converter.tflite.kv_cache import CacheShape, Call, Extended, HeadShape, Target, make_cache
from converter.tflite.two_terms import make_terms, make_two_term_product

WeightOf = Callable[[str], Weight]


def build_decoder(
    spec: DecoderSpec,
    prefill_lengths: Sequence[int],
    cache_length: int,
    weight_of: WeightOf,
    caches: Sequence[CacheShape],
    target: Target,
) -> Model:
    """Emit one `prefill_N` for every length, and `decode`.

    Args:
        spec: the network.
        prefill_lengths: the Ns, ascending.
        cache_length: tokens that the KV cache holds, C.
        weight_of: the stored form of each weight path in `spec.weight_shapes`.
        caches: of each layer.
        target: what it will run on.
    """
    model = Model("litert-lm-cli")
    # Declared first and in order of use, so that the file is read front to back.
    for path, _ in spec.weight_shapes():
        model.declare(weight_of(path))
    layout = cache_length, caches, target
    for length in prefill_lengths:
        _DecoderGraph(model, f"prefill_{length}", spec, length, weight_of, *layout).build(
            logits=False
        )
    _DecoderGraph(model, "decode", spec, 1, weight_of, *layout).build(logits=True)
    return model


class _DecoderGraph:
    """One signature: N tokens through the network."""

    def __init__(
        self,
        model: Model,
        signature: str,
        spec: DecoderSpec,
        length: int,
        weight_of: WeightOf,
        cache_length: int,
        shapes: Sequence[CacheShape],
        target: Target,
    ) -> None:
        self.model = model
        self.graph = model.add_graph(signature)
        self.spec = spec
        self.length = length
        self.weight_of = weight_of
        self.cache_length = cache_length
        self.shapes = shapes
        self.target = target
        self.widened: dict[str, Tensor] = {}
        self.terms: dict[int, Tensor] = {}  # of inputs that several projections share

    def build(self, logits: bool) -> None:
        g, spec, n = self.graph, self.spec, self.length
        tokens = g.add_input("tokens", (1, n), DType.INT32)
        self.positions = g.add_input("input_pos", (n,), DType.INT32)
        mask = None
        if self.target is Target.GPU:
            mask = g.add_input("mask", (1, 1, n, self.cache_length), DType.FLOAT32)
        first = g.make_slice("cache/first", self.positions, (0,), (1,))
        last = g.make_reduce_max("cache/last", self.positions)
        call = Call(self.model, g, n, self.positions, first, last, mask)
        mixers = [layer.mixer for layer in spec.layers]
        ropes = dict.fromkeys(rotation(mixer) for mixer in mixers if mixer.rope is not None)
        self.rope_tables = {
            turned: self.make_rope_tables(f"rope_{i}", *turned) for i, turned in enumerate(ropes)
        }
        self.position_scales = {
            scale: self.make_position_scale(f"position_scale_{i}", scale)
            for i, scale in enumerate(
                dict.fromkeys(m.position_scale for m in mixers if m.position_scale is not None)
            )
        }
        kinds = [
            (shape, HeadShape(mixer.num_heads, mixer.num_kv_heads, mixer.head_dim))
            for shape, mixer in zip(self.shapes, mixers, strict=True)
        ]
        caches = {kind: make_cache(call, *kind, self.target) for kind in dict.fromkeys(kinds)}
        self.caches = [caches[kind] for kind in kinds]
        for shape, mixer in zip(self.shapes, mixers, strict=True):
            assert mixer.cache_of is None or shape == self.shapes[mixer.cache_of]
        inputs = {
            i: cache.add_inputs(i)
            for i, (cache, mixer) in enumerate(zip(self.caches, mixers, strict=True))
            if mixer.cache_of is None
        }
        self.seen: dict[int, Extended] = {}
        # A prefill is done when the last cache is written.
        end = len(mixers) if logits else 1 + max(inputs)

        x = self.make_embedding("embedding", tokens)  # (N, hidden)
        for i, layer in enumerate(spec.layers[:end]):
            attention, mlp = f"layers.{i}.attention", f"layers.{i}.mlp"
            normed = self.make_pre_norm(attention, x)
            if i in inputs:
                k, v = self.make_keys_and_values(attention, layer.mixer, normed)
                self.seen[i] = self.caches[i].extend(at(attention), k, v, *inputs[i])
                g.add_output(f"kv_cache_k_{i}", self.seen[i].k_cache)
                g.add_output(f"kv_cache_v_{i}", self.seen[i].v_cache)
            if i == end - 1 and not logits:
                return
            update = self.make_mixer(i, attention, layer.mixer, normed)
            if spec.placement is Placement.PARALLEL:
                both = g.make_add(
                    f"layers.{i}/parallel", update, self.make_mlp(mlp, layer.feed_forward, normed)
                )
                x = self.make_residual(f"layers.{i}", x, both)
                continue
            x = self.make_residual(attention, x, self.make_post_norm(attention, update))
            update = self.make_mlp(mlp, layer.feed_forward, self.make_pre_norm(mlp, x))
            x = self.make_residual(mlp, x, self.make_post_norm(mlp, update))
        x = self.make_norm("final_norm", x, "final_norm", spec.norm)
        head = "embedding" if spec.tied_head else "head"
        logit = self.make_projection("head", x, head, "head.bias" if spec.head_bias else None)
        if spec.logits_scale is not None:
            logit = g.make_mul("head/scaled", logit, g.constant("head/scale", spec.logits_scale))
        if spec.logits_softcap is not None:
            logit = make_softcap(g, "head/capped", logit, spec.logits_softcap)
        g.add_output("logits", g.make_reshape("logits", logit, (1, n, spec.vocab_size)))

    # Once per call ------------------------------------------------------------------------------

    def make_embedding(self, name: str, tokens: Tensor) -> Tensor:
        """(1, N) -> (N, hidden), times the family's scale."""
        g = self.graph
        ids = g.make_reshape(f"{name}/ids", tokens, (self.length,))
        x = self.make_rows(name, ids, "embedding")
        if self.spec.embedding_scale is None:
            return x
        return g.make_mul(name, x, g.constant(f"{name}/scale", self.spec.embedding_scale))

    def make_rows(self, name: str, ids: Tensor, path: str) -> Tensor:
        """Rows of a table in float32, (N,) -> (N, width).

        EMBEDDING_LOOKUP takes no float16. Were the table widened first, every signature would hold
        all of it as float32, 0.7 GB for Gemma 3; so its rows are gathered, and these are widened.
        """
        g, table = self.graph, self.graph.weight(self.weight_of(path))
        if table.dtype is not DType.FLOAT16:
            return g.make_embedding_lookup(f"{name}/rows", ids, table)
        return g.make_dequantize(
            f"{name}/rows/float32", g.make_gather(f"{name}/rows", table, ids, 0)
        )

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

    # Once per layer -----------------------------------------------------------------------------

    def make_keys_and_values(
        self, block: str, mixer: Attention, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N, hidden) -> keys and values, (1, N, kv, d)."""
        n, kv, d = self.length, mixer.num_kv_heads, mixer.head_dim
        k = self.make_heads(block, "k", mixer, x, kv)
        v = self.make_part(block, "v", mixer.biases, x)
        return k, self.graph.make_reshape(f"{at(block)}/v/heads", v, (1, n, kv, d))

    def make_mixer(self, index: int, block: str, mixer: Attention, x: Tensor) -> Tensor:
        """Attention over the layer's own cache or an earlier one's, (N, hidden) -> the same."""
        g, name = self.graph, at(block)
        q = self.make_heads(block, "q", mixer, x, mixer.num_heads)
        # Below a cap, scores are a share of it.
        scale = g.constant(f"{name}/scale", mixer.scale / (mixer.softcap or 1))
        q = g.make_mul(f"{name}/q/scaled", q, scale)
        if mixer.position_scale is not None:
            q = g.make_mul(f"{name}/q/grown", q, self.position_scales[mixer.position_scale])
        sinks = g.weight(self.weight_of(f"{block}.sinks")) if mixer.has_sinks else None
        source = index if mixer.cache_of is None else mixer.cache_of
        context = self.caches[index].attend(
            name, q, self.seen[source], Scores(mixer.softcap, sinks)
        )
        flat = self.length, mixer.num_heads * mixer.head_dim
        context = g.make_reshape(f"{name}/context/flat", context, flat)
        if mixer.is_gated:
            gate = self.make_projection(f"{name}/gate", x, f"{block}.gate")
            open_ = g.make_logistic(f"{name}/gate/logistic", gate)
            context = g.make_mul(f"{name}/gated", context, open_)
        return self.make_part(block, "o", mixer.biases, context)

    def make_mlp(self, block: str, feed_forward: FeedForward, x: Tensor) -> Tensor:
        """down(activation(gate(x)) * up(x)), or without a gate; (N, hidden) -> (N, hidden)."""
        name, biases = at(block), feed_forward.biases
        up = None
        if feed_forward.is_gated:
            gate = self.make_part(block, "gate", biases, x)
            up = self.make_part(block, "up", biases, x)
        else:
            gate = self.make_part(block, "up", biases, x)
        product = self.make_activation(block, feed_forward.activation, gate)
        if up is not None:
            product = self.graph.make_mul(f"{name}/gated", product, up)
        return self.make_part(block, "down", biases, product)

    def make_activation(self, block: str, activation: Activation, x: Tensor) -> Tensor:
        """Value by value."""
        g, name = self.graph, at(block)
        if activation is Activation.SILU:
            return g.make_mul(f"{name}/silu", x, g.make_logistic(f"{name}/logistic", x))
        if activation is Activation.RELU2:
            positive = g.make_maximum(f"{name}/relu", x, g.constant("relu/zero", 0.0))
            return g.make_mul(f"{name}/relu2", positive, positive)
        if activation is Activation.XIELU:
            return self.make_xielu(block, x)
        return g.make_gelu(f"{name}/gelu", x, activation is Activation.GELU_TANH)

    def make_xielu(self, block: str, x: Tensor) -> Tensor:
        """See `Activation.XIELU`; exp(x) - 1 - x is 0 where x is."""
        g, name = self.graph, f"{at(block)}/xielu"
        zero, one = g.constant("xielu/zero", 0.0), g.constant("xielu/one", 1.0)
        beta = g.constant("xielu/beta", XIELU_BETA)
        slopes = []
        for part in ("alpha_p", "alpha_n"):
            grown = g.make_exp(f"{name}/{part}/exp", g.weight(self.weight_of(f"{block}.{part}")))
            above = g.make_add(f"{name}/{part}/above_one", grown, one)
            slopes.append(g.make_log(f"{name}/{part}/softplus", above))
        positive = g.make_maximum(f"{name}/positive", x, zero)
        negative = g.make_minimum(f"{name}/negative", x, zero)
        bent = g.make_sub(f"{name}/expm1", g.make_exp(f"{name}/exp", negative), one)
        bent = g.make_sub(f"{name}/bent", bent, negative)
        slope = g.make_add(f"{name}/slope", slopes[1], beta)
        below = g.make_mul(f"{name}/below", bent, slope)
        square = g.make_mul(f"{name}/square", positive, positive)
        curved = g.make_add(f"{name}/curved", g.make_mul(f"{name}/above", square, slopes[0]), below)
        return g.make_add(name, curved, g.make_mul(f"{name}/straight", x, beta))

    def make_pre_norm(self, block: str, x: Tensor) -> Tensor:
        """What a block is fed with."""
        if not self.spec.placement.has_pre_norms:
            return x
        return self.make_norm(f"{at(block)}/norm", x, f"{block}.norm", self.spec.norm)

    def make_post_norm(self, block: str, update: Tensor) -> Tensor:
        """What comes out of a block, normalised where the family does so."""
        if not self.spec.placement.has_post_norms:
            return update
        name = f"{at(block)}/post_norm"
        return self.make_norm(name, update, f"{block}.post_norm", self.spec.norm)

    def make_residual(self, block: str, x: Tensor, update: Tensor) -> Tensor:
        """x + update, times the family's factor."""
        g, name = self.graph, at(block)
        if self.spec.residual_scale is not None:
            scale = g.constant("residual/scale", self.spec.residual_scale)
            update = g.make_mul(f"{name}/residual/scaled", update, scale)
        return g.make_add(f"{name}/residual", x, update)

    # Building blocks ----------------------------------------------------------------------------

    def make_heads(self, block: str, part: str, mixer: Attention, x: Tensor, heads: int) -> Tensor:
        """Queries or keys as attention takes them, (N, hidden) -> (1, N, heads, d)."""
        g, name, norm = self.graph, f"{at(block)}/{part}", mixer.qk_norm
        x = self.make_part(block, part, mixer.biases, x)
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
        return self.make_norm(f"{at(block)}/{part}_norm", x, f"{block}.{part}_norm", norm.norm)

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

    def make_norm(self, name: str, x: Tensor, path: str, norm: Norm) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis; see `Norm`.

        Plain ops: the runtime's own composite was measured slower (runtime-contract.md).
        """
        g = self.graph
        if norm.kind is NormKind.LAYER:
            x = g.make_sub(f"{name}/centred", x, g.make_mean(f"{name}/centre", x))
        mean = g.make_mean(f"{name}/mean", g.make_mul(f"{name}/square", x, x))
        epsilon = g.constant(f"norm/epsilon_{norm.epsilon:g}", norm.epsilon)
        scale = g.make_rsqrt(f"{name}/rsqrt", g.make_add(f"{name}/variance", mean, epsilon))
        x = g.make_mul(f"{name}/normed", x, scale)
        if norm.has_weight:
            x = g.make_mul(f"{name}/weighted", x, g.weight(self.weight_of(path)))
        if norm.has_bias:
            x = g.make_add(f"{name}/biased", x, g.weight(self.weight_of(f"{path}.bias")))
        return x

    def make_part(self, block: str, part: str, biases: Sequence[str], x: Tensor) -> Tensor:
        """One of a block's projections, (N, in) -> (N, out)."""
        path = f"{block}.{part}"
        bias = f"{path}.bias" if part in biases else None
        return self.make_projection(f"{at(block)}/{part}", x, path, bias)

    def make_projection(
        self, name: str, x: Tensor, path: str, bias_path: str | None = None
    ) -> Tensor:
        """x @ weight.T [+ bias], (N, in) -> (N, out)."""
        g = self.graph
        bias = None if bias_path is None else g.weight(self.weight_of(bias_path))
        if not self.weight_of(path).takes_two_terms:
            return g.make_fully_connected(name, x, self.matrix(path), bias)
        if x.index not in self.terms:
            self.terms[x.index] = make_terms(g, f"{name}/input", x)
        product = make_two_term_product(g, name, self.terms[x.index], self.matrix(path))
        return product if bias is None else g.make_add(f"{name}/biased", product, bias)

    def matrix(self, path: str) -> Tensor:
        """A matrix to multiply by; some are widened, once per graph."""
        weight = self.weight_of(path)
        tensor = self.graph.weight(weight)
        if not weight.is_widened:
            return tensor
        name = f"{weight.name}/float32"
        if name not in self.widened:
            self.widened[name] = self.graph.make_dequantize(name, tensor)
        return self.widened[name]


def rotation(mixer: Attention) -> tuple[Rope, int]:
    """What its heads have in common with all that are rotated alike, and how wide that is."""
    assert mixer.rope is not None  # it is asked of those that are rotated
    return mixer.rope, mixer.rope.width or mixer.head_dim


def at(path: str) -> str:
    """`layers.0.attention` -> `layers.0/attention`: how tensors of the graph are named."""
    block, _, part = path.rpartition(".")
    return f"{block}/{part}" if block else part
