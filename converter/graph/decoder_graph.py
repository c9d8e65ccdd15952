"""Turns a `DecoderSpec` into the signatures `prefill_N` and `decode` of a TFLite model.

The layout is the plain static one of `shared/runtime-contract.md`:

    tokens (1, N)  input_pos (N,)  mask (1, 1, N, C)
    kv_cache_k_i (1, kv, C, d)  kv_cache_v_i (1, kv, d, C)
        |
    embedding -> layers -> [decode only: norm -> head -> logits (1, 1, vocabulary)]

with N tokens in this call, C slots in the KV cache, kv key-value heads and d = head_dim. What every
layer shares (rotary tables, masks, the place to write in the caches) is computed once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from converter.decoder import Activation, DecoderSpec, LayerSpec, Rope
from converter.graph.tflite import DType, Model, Tensor, Weight

# Added to the scores of positions outside a window. Large against any score, small enough that
# two such numbers added up (the runtime's mask and ours) stay finite.
_MASKED = -1e9

WeightOf = Callable[[str], Weight]


def build_decoder(
    spec: DecoderSpec, prefill_lengths: Sequence[int], cache_length: int, weight_of: WeightOf
) -> Model:
    """Emit one `prefill_N` for every length, and `decode`.

    Args:
        spec: the network.
        prefill_lengths: the Ns, ascending.
        cache_length: slots in the KV cache, C.
        weight_of: the stored form of each weight path in `spec.weight_shapes`.
    """
    model = Model("litert-lm-cli")
    # Declared first and in order of use, so that the file is read front to back.
    for path, _ in spec.weight_shapes():
        model.weight_buffer(weight_of(path))
    for length in prefill_lengths:
        _DecoderGraph(model, f"prefill_{length}", spec, length, cache_length, weight_of).build(
            logits=False
        )
    _DecoderGraph(model, "decode", spec, 1, cache_length, weight_of).build(logits=True)
    return model


class _DecoderGraph:
    """One signature: N tokens through the network."""

    def __init__(
        self,
        model: Model,
        signature: str,
        spec: DecoderSpec,
        length: int,
        cache_length: int,
        weight_of: WeightOf,
    ) -> None:
        self.graph = model.add_graph(signature)
        self.spec = spec
        self.length = length
        self.cache_length = cache_length
        self.weight_of = weight_of
        self.widened: dict[str, Tensor] = {}

    def build(self, logits: bool) -> None:
        g, spec, n, c = self.graph, self.spec, self.length, self.cache_length
        kv, d = spec.num_key_value_heads, spec.head_dim
        tokens = g.add_input("tokens", (1, n), DType.INT32)
        self.positions = g.add_input("input_pos", (n,), DType.INT32)
        self.mask = g.add_input("mask", (1, 1, n, c), DType.FLOAT32)
        caches = [
            (
                g.add_input(f"kv_cache_k_{i}", (1, kv, c, d), DType.FLOAT32),
                g.add_input(f"kv_cache_v_{i}", (1, kv, d, c), DType.FLOAT32),
            )
            for i in range(len(spec.layers))
        ]
        self.rope_tables = {
            rope: self.make_rope_tables(f"rope_{i}", rope)
            for i, rope in enumerate(dict.fromkeys(layer.rope for layer in spec.layers))
        }
        self.masks = {
            window: self.make_mask("mask", window)
            for window in dict.fromkeys(self.window_of(layer) for layer in spec.layers)
        }
        self.k_start, self.v_start = self.make_cache_starts()

        x = self.make_embedding("embedding", tokens)  # (N, hidden)
        for i, (layer, (k_cache, v_cache)) in enumerate(zip(spec.layers, caches, strict=True)):
            name = f"layers.{i}"
            normed = self.make_norm(f"{name}/attention/norm", x, f"{name}.attention.norm")
            k, v = self.make_keys_and_values(name, layer, normed, k_cache, v_cache)
            g.add_output(f"kv_cache_k_{i}", k)
            g.add_output(f"kv_cache_v_{i}", v)
            if i == len(spec.layers) - 1 and not logits:
                return  # a prefill is done when its last layer has written the cache
            x = self.make_residual(
                f"{name}/attention", x, self.make_attention(name, layer, normed, k, v)
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
        x = g.make_embedding_lookup(f"{name}/rows", ids, self.float_or_int8("embedding"))
        if self.spec.embedding_scale is None:
            return x
        return g.make_mul(name, x, g.constant(f"{name}/scale", self.spec.embedding_scale))

    def make_rope_tables(self, name: str, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin of each position and frequency, (1, N, 1, d), ready for `make_rope`.

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
        minus = g.make_neg(f"{name}/minus_sin", sin)
        return (
            g.make_concatenation(f"{name}/cos", (cos, cos), axis=3),
            g.make_concatenation(f"{name}/sin", (minus, sin), axis=3),
        )

    def make_mask(self, name: str, window: int | None) -> Tensor:
        """The runtime's causal mask, narrowed to the window, one copy per head in a group.

        (1, 1, N, C) -> (1, 1, group * N, C)
        """
        g, n, c = self.graph, self.length, self.cache_length
        mask = self.mask
        if window is not None:
            name = f"{name}_{window}"
            # Slot j holds position j; it is out of sight when position - j >= window.
            first = g.constant(
                f"{name}/seen_until", (np.arange(c, dtype=np.int32) + window).reshape(1, 1, 1, c)
            )
            position = g.make_reshape(f"{name}/position", self.positions, (1, 1, n, 1))
            passed = g.make_greater_equal(f"{name}/passed", position, first)
            masked = g.constant(f"{name}/masked", _MASKED)
            mask = g.make_select(name, passed, masked, mask)
        group = self.spec.num_attention_heads // self.spec.num_key_value_heads
        if group == 1:
            return mask
        return g.make_concatenation(f"{name}/grouped", [mask] * group, axis=2)

    def window_of(self, layer: LayerSpec) -> int | None:
        """The layer's window, or None where the cache is too short for it to matter."""
        window = layer.sliding_window
        return window if window is not None and window < self.cache_length else None

    def make_cache_starts(self) -> tuple[Tensor, Tensor]:
        """Where this call writes in a k cache, (0, 0, p, 0), and in a v cache, (0, 0, 0, p)."""
        g = self.graph
        zero = g.constant("cache/zero", [0])
        first = g.make_slice("cache/first", self.positions, (0,), (1,))
        return (
            g.make_concatenation("cache/k_start", (zero, zero, first, zero), axis=0),
            g.make_concatenation("cache/v_start", (zero, zero, zero, first), axis=0),
        )

    # Once per layer -----------------------------------------------------------------------------

    def make_keys_and_values(
        self, layer: str, spec: LayerSpec, x: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The caches with this call's keys and values in them.

        x (N, hidden) -> k -> [norm] -> rope -> (1, kv, N, d) -> k cache (1, kv, C, d)
                      -> v -------------------> (1, kv, d, N) -> v cache (1, kv, d, C)
        """
        g, n, kv, d = self.graph, self.length, self.spec.num_key_value_heads, self.spec.head_dim
        name = f"{layer}/attention"
        k = self.make_heads(layer, "k", spec, x, kv)  # (1, N, kv, d)
        k = self.make_heads_first(f"{name}/k/heads_first", k)
        v = self.make_projection(f"{name}/v", x, f"{layer}.attention.v", self.spec.qkv_bias)
        if n == 1:
            v = g.make_reshape(f"{name}/v/column", v, (1, kv, d, 1))
        else:
            v = g.make_reshape(f"{name}/v/heads", v, (1, n, kv, d))
            v = g.make_transpose(f"{name}/v/columns", v, (0, 2, 3, 1))
        return (
            g.make_dynamic_update_slice(f"{name}/k/cache", k_cache, k, self.k_start),
            g.make_dynamic_update_slice(f"{name}/v/cache", v_cache, v, self.v_start),
        )

    def make_attention(
        self, layer: str, spec: LayerSpec, x: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Grouped-query attention over the whole cache, (N, hidden) -> (N, hidden).

        The heads of a group stand in the rows of one matrix, so keys and values are not repeated:

            q (1, kv, group*N, d) @ k^T -> + mask -> softmax -> @ v -> (1, kv, group*N, d) -> o
        """
        g, n, d = self.graph, self.length, self.spec.head_dim
        heads, kv = self.spec.num_attention_heads, self.spec.num_key_value_heads
        name = f"{layer}/attention"
        q = self.make_heads(layer, "q", spec, x, heads)  # (1, N, heads, d)
        scale = g.constant(f"{name}/scale", self.spec.attention_scale)
        q = g.make_mul(f"{name}/q/scaled", q, scale)
        q = self.make_heads_first(f"{name}/q/heads_first", q)  # (1, heads, N, d)
        q = g.make_reshape(f"{name}/q/grouped", q, (1, kv, heads // kv * n, d))
        scores = g.make_batch_matmul(f"{name}/scores", q, k)  # (1, kv, group*N, C)
        scores = g.make_add(f"{name}/masked", scores, self.masks[self.window_of(spec)])
        weights = g.make_softmax(f"{name}/softmax", scores)
        context = g.make_batch_matmul(f"{name}/context", weights, v)  # (1, kv, group*N, d)
        if n > 1:
            context = g.make_reshape(f"{name}/context/heads", context, (1, heads, n, d))
            context = g.make_transpose(f"{name}/context/tokens_first", context, (0, 2, 1, 3))
        context = g.make_reshape(f"{name}/context/flat", context, (n, heads * d))
        return self.make_projection(f"{name}/o", context, f"{layer}.attention.o", self.spec.o_bias)

    def make_mlp(self, layer: str, x: Tensor) -> Tensor:
        """down(activation(gate(x)) * up(x)), (N, hidden) -> (N, hidden)."""
        g, bias, name = self.graph, self.spec.mlp_bias, f"{layer}/mlp"
        gate = self.make_projection(f"{name}/gate", x, f"{layer}.mlp.gate", bias)
        up = self.make_projection(f"{name}/up", x, f"{layer}.mlp.up", bias)
        if self.spec.activation is Activation.GELU_TANH:
            gate = g.make_gelu(f"{name}/gelu", gate)
        else:
            gate = g.make_mul(f"{name}/silu", gate, g.make_logistic(f"{name}/logistic", gate))
        product = g.make_mul(f"{name}/gated", gate, up)
        return self.make_projection(f"{name}/down", product, f"{layer}.mlp.down", bias)

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
        x = self.make_projection(name, x, path, self.spec.qkv_bias)
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

    def make_heads_first(self, name: str, x: Tensor) -> Tensor:
        """(1, N, heads, d) -> (1, heads, N, d); with one token that moves nothing."""
        _, n, heads, d = x.shape
        if n == 1:
            return self.graph.make_reshape(name, x, (1, heads, 1, d))
        return self.graph.make_transpose(name, x, (0, 2, 1, 3))

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

    def make_projection(self, name: str, x: Tensor, path: str, bias: bool = False) -> Tensor:
        """x @ weight.T [+ bias], (N, in) -> (N, out)."""
        bias_tensor = self.graph.weight(self.weight_of(f"{path}.bias")) if bias else None
        return self.graph.make_fully_connected(name, x, self.float_or_int8(path), bias_tensor)

    def float_or_int8(self, path: str) -> Tensor:
        """A matrix in a form that the kernels take: float16 is widened, once per graph."""
        weight = self.weight_of(path)
        tensor = self.graph.weight(weight)
        if weight.dtype is not DType.FLOAT16:
            return tensor
        name = f"{weight.name}/float32"
        if name not in self.widened:
            self.widened[name] = self.graph.make_dequantize(name, tensor)
        return self.widened[name]
