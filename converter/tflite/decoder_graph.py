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

from converter.decoder import Activation, DecoderSpec, LayerSpec, Rope
from converter.tflite.graph import DType, Model, Tensor, Weight
from converter.tflite.kv_cache import CacheShape, Call, Target, make_cache
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
        call = Call(self.model, g, spec, n, self.positions, first, last, mask)
        self.rope_tables = {
            rope: self.make_rope_tables(f"rope_{i}", rope)
            for i, rope in enumerate(dict.fromkeys(layer.rope for layer in spec.layers))
        }
        caches = {
            shape: make_cache(call, shape, self.target) for shape in dict.fromkeys(self.shapes)
        }
        self.caches = [caches[shape] for shape in self.shapes]
        inputs = [cache.add_inputs(i) for i, cache in enumerate(self.caches)]

        x = self.make_embedding("embedding", tokens)  # (N, hidden)
        for i, (layer, (k_cache, v_cache)) in enumerate(zip(spec.layers, inputs, strict=True)):
            name = f"layers.{i}"
            normed = self.make_norm(f"{name}/attention/norm", x, f"{name}.attention.norm")
            k, v = self.make_keys_and_values(name, layer, normed)
            seen = self.caches[i].extend(f"{name}/attention", k, v, k_cache, v_cache)
            g.add_output(f"kv_cache_k_{i}", seen.k_cache)
            g.add_output(f"kv_cache_v_{i}", seen.v_cache)
            if i == len(spec.layers) - 1 and not logits:
                return  # a prefill is done when its last layer has written the cache
            q = self.make_queries(name, layer, normed)
            context = self.caches[i].attend(f"{name}/attention", q, seen)
            x = self.make_residual(
                f"{name}/attention", x, self.make_attention_output(name, context)
            )
            normed = self.make_norm(f"{name}/mlp/norm", x, f"{name}.mlp.norm")
            x = self.make_residual(f"{name}/mlp", x, self.make_mlp(name, normed))
        x = self.make_norm("final_norm", x, "final_norm")
        head = self.make_projection("head", x, "embedding" if spec.tied_head else "head")
        g.add_output("logits", g.make_reshape("logits", head, (1, n, spec.vocab_size)))

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

    def make_rope_tables(self, name: str, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin of each position and frequency, (1, N, 1, d), ready for `make_rope`.

        Both times the attention factor, where there is one.
        The first half of sin is negative: the rotation of (a, b) is (a cos - b sin, b cos + a sin),
        so swapping the halves and one multiplication replace two slices of work.
        """
        g, n, d = self.graph, self.length, self.spec.head_dim
        frequencies = np.asarray(rope.inverse_frequencies(d), np.float32)
        position = g.make_cast(f"{name}/position", self.positions, DType.FLOAT32)
        angles = g.make_mul(
            f"{name}/angles",
            g.make_reshape(f"{name}/column", position, (1, n, 1, 1)),
            g.constant(f"{name}/frequencies", frequencies.reshape(1, 1, 1, d // 2)),
        )  # (1, N, 1, d/2)
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

    # Once per layer -----------------------------------------------------------------------------

    def make_keys_and_values(self, layer: str, spec: LayerSpec, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, hidden) -> keys and values, (1, N, kv, d)."""
        n, kv, d = self.length, self.spec.num_key_value_heads, self.spec.head_dim
        name = f"{layer}/attention"
        k = self.make_heads(layer, "k", spec, x, kv)
        v = self.make_projection(f"{name}/v", x, f"{layer}.attention.v")
        return k, self.graph.make_reshape(f"{name}/v/heads", v, (1, n, kv, d))

    def make_queries(self, layer: str, spec: LayerSpec, x: Tensor) -> Tensor:
        """(N, hidden) -> scaled queries (1, N, heads, d)."""
        g, name = self.graph, f"{layer}/attention"
        q = self.make_heads(layer, "q", spec, x, self.spec.num_attention_heads)
        scale = g.constant(f"{name}/scale", self.spec.attention_scale)
        return g.make_mul(f"{name}/q/scaled", q, scale)

    def make_attention_output(self, layer: str, context: Tensor) -> Tensor:
        """(1, N, heads, d) -> (N, hidden)."""
        g, (_, n, heads, d), name = self.graph, context.shape, f"{layer}/attention"
        context = g.make_reshape(f"{name}/context/flat", context, (n, heads * d))
        return self.make_projection(f"{name}/o", context, f"{layer}.attention.o")

    def make_mlp(self, layer: str, x: Tensor) -> Tensor:
        """down(activation(gate(x)) * up(x)), (N, hidden) -> (N, hidden)."""
        g, name = self.graph, f"{layer}/mlp"
        gate = self.make_projection(f"{name}/gate", x, f"{layer}.mlp.gate")
        up = self.make_projection(f"{name}/up", x, f"{layer}.mlp.up")
        if self.spec.activation is Activation.SILU:
            gate = g.make_mul(f"{name}/silu", gate, g.make_logistic(f"{name}/logistic", gate))
        else:
            approximate = self.spec.activation is Activation.GELU_TANH
            gate = g.make_gelu(f"{name}/gelu", gate, approximate)
        product = g.make_mul(f"{name}/gated", gate, up)
        return self.make_projection(f"{name}/down", product, f"{layer}.mlp.down")

    def make_residual(self, name: str, x: Tensor, update: Tensor) -> Tensor:
        """x + update, the update normalised first where the family does so."""
        if self.spec.post_norms:
            path = name.replace("/", ".")
            update = self.make_norm(f"{name}/post_norm", update, f"{path}.post_norm")
        return self.graph.make_add(f"{name}/residual", x, update)

    # Building blocks ----------------------------------------------------------------------------

    def make_heads(self, layer: str, part: str, spec: LayerSpec, x: Tensor, heads: int) -> Tensor:
        """Queries or keys with their rotary embedding, (N, hidden) -> (1, N, heads, d)."""
        name, path = f"{layer}/attention/{part}", f"{layer}.attention.{part}"
        x = self.make_projection(name, x, path)
        shape = (1, self.length, heads, self.spec.head_dim)
        x = self.graph.make_reshape(f"{name}/heads", x, shape)
        if self.spec.qk_norm:
            x = self.make_norm(f"{name}_norm", x, f"{path}_norm")
        return self.make_rope(f"{name}/rope", x, *self.rope_tables[spec.rope])

    def make_rope(self, name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the halves of every head, (1, N, heads, d) -> the same shape."""
        g, (_, n, heads, d) = self.graph, x.shape
        first = g.make_slice(f"{name}/first", x, (0, 0, 0, 0), (1, n, heads, d // 2))
        second = g.make_slice(f"{name}/second", x, (0, 0, 0, d // 2), (1, n, heads, d // 2))
        swapped = g.make_concatenation(f"{name}/swapped", (second, first), axis=3)
        return g.make_add(
            name,
            g.make_mul(f"{name}/cos", x, cos),
            g.make_mul(f"{name}/sin", swapped, sin),
        )

    def make_norm(self, name: str, x: Tensor, path: str) -> Tensor:
        """RMSNorm over the last axis: x / sqrt(mean(x^2) + epsilon) * weight.

        Plain ops: the runtime's own composite was measured slower (runtime-contract.md).
        """
        g = self.graph
        mean = g.make_mean(f"{name}/mean", g.make_mul(f"{name}/square", x, x))
        epsilon = g.constant("norm/epsilon", self.spec.norm_epsilon)
        scale = g.make_rsqrt(f"{name}/rsqrt", g.make_add(f"{name}/variance", mean, epsilon))
        normed = g.make_mul(f"{name}/normed", x, scale)
        return g.make_mul(name, normed, g.weight(self.weight_of(path)))

    def make_projection(self, name: str, x: Tensor, path: str) -> Tensor:
        """x @ weight.T [+ bias], (N, in) -> (N, out)."""
        g, bias = self.graph, None
        if path.rpartition(".")[2] in self.spec.biases:
            bias = g.weight(self.weight_of(f"{path}.bias"))
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
