"""The network, in the field's own words: what a family says and the graph is built from.

A `DecoderSpec` holds no files and no bytes. Its switches are the differences between families; a
family sets them from its config, and the graph knows nothing else. A layer is a mixer, which moves
information between tokens, and a feed-forward block, which works on each token alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

# `(path, shape)` of weights, in the order in which they are used.
Shapes = Iterator[tuple[str, tuple[int, ...]]]

# Every matrix of a layer, in the order of use; `biases` of a block names some of them.
ATTENTION_PROJECTIONS = ("q", "k", "v", "o")
MLP_PROJECTIONS = ("gate", "up", "down")


class Activation(StrEnum):
    """The nonlinearity of the feed-forward block."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"  # x sigmoid(1.702 x)
    RELU2 = "relu2"  # relu(x)^2
    # beta x + a_p x^2 above 0, beta x + a_n (exp(x) - 1 - x) below; a_p = softplus(alpha_p) and
    # a_n = beta + softplus(alpha_n), learned in every layer (arXiv:2411.13010).
    XIELU = "xielu"


QUICK_GELU_SLOPE = 1.702
XIELU_BETA = 0.5
# The path of what `PerLayerInput` looks up.
PER_LAYER_TABLE = "per_layer_embedding"


class NormKind(StrEnum):
    """How a row is brought to one scale."""

    RMS = "rms"  # x / sqrt(mean(x^2) + epsilon)
    LAYER = "layer"  # the same of x - mean(x)


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis, times a weight, plus a bias.

    Families that store a weight less 1 add it in the weight's source.
    """

    kind: NormKind
    epsilon: float
    has_weight: bool = True
    has_bias: bool = False

    def weight_shapes(self, path: str, width: int) -> Shapes:
        """Of rows so wide."""
        if self.has_weight:
            yield path, (width,)
        if self.has_bias:
            yield f"{path}.bias", (width,)


class Placement(StrEnum):
    """Where a block's norms stand: x is the residual stream, f a block.

    PARALLEL has one norm for both blocks: x + attention(norm(x)) + mlp(norm(x)).
    """

    BEFORE = "before"  # x + f(norm(x))
    AFTER = "after"  # x + norm(f(x))
    BOTH = "both"  # x + norm(f(norm(x)))
    PARALLEL = "parallel"

    @property
    def has_pre_norms(self) -> bool:
        return self is not Placement.AFTER

    @property
    def has_post_norms(self) -> bool:
        return self in (Placement.AFTER, Placement.BOTH)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, halves rotated against each other.

    Attributes:
        theta: base of the frequencies.
        factors: one divisor per frequency, `width / 2` of them, or one for all; infinity for one
            that does not turn. Every scaling comes down to it.
        attention_factor: on cos and sin, so that scores grow with its square.
        positions: for how many positions this holds; None for all.
        longer: what holds in a context of more positions than these, from its beginning on; None
            where nothing does.
        width: how much of the head is rotated, from its beginning; None for all of it.
    """

    theta: float
    factors: tuple[float, ...] = (1.0,)
    attention_factor: float = 1.0
    positions: int | None = None
    width: int | None = None
    longer: Rope | None = None

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """Radians per position, `theta ** (-2i / width) / factor_i` for i in 0..width/2."""
        width = self.width or head_dim
        half = width // 2
        factors = self.factors * half if len(self.factors) == 1 else self.factors
        return [self.theta ** (-2 * i / width) / factors[i] for i in range(half)]


@dataclass(frozen=True)
class QKNorm:
    """The normalisation of queries and keys.

    Attributes:
        is_full_width: all heads are one row, with a weight for each of its values; else every head
            is a row, and all have the same weight.
        after_rope: it follows the rotary embedding; else it comes before.
    """

    norm: Norm
    is_full_width: bool = False
    after_rope: bool = False


@dataclass(frozen=True)
class PositionScale:
    """Queries times 1 + beta ln(1 + floor(position / length)), as in Llama 4 and Ministral 3."""

    beta: float
    length: int


@dataclass(frozen=True)
class Attention:
    """Softmax attention over a cache of keys and values.

    Attributes:
        scale: factor on the scores.
        rope: its rotary embedding; None for none (NoPE).
        sliding_window: how many positions a token sees, itself included; None for all before it.
        biases: the projections (q, k, v, o, gate) that have one.
        softcap: scores s become softcap tanh(s / softcap).
        position_scale: None where queries do not grow with the position.
        is_gated: the output is multiplied with sigmoid(gate(x)) before the last projection.
        has_sinks: every head has one more score, learned, whose share of the softmax is dropped.
        cache_of: the earlier layer whose keys and values are looked at, of the same window and
            with a cache of its own; None where it has one itself.
        value_norm: the normalisation of each head's values; None for none.
        keys_are_values: values are what k's projection gives, before keys are normalised and
            rotated; there is no v.
    """

    block: ClassVar[str] = "attention"

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    sliding_window: int | None = None
    biases: tuple[str, ...] = ()
    qk_norm: QKNorm | None = None
    softcap: float | None = None
    position_scale: PositionScale | None = None
    is_gated: bool = False
    has_sinks: bool = False
    cache_of: int | None = None
    value_norm: Norm | None = None
    keys_are_values: bool = False

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        own = self.cache_of is None
        yield from _matrix_shapes(f"{block}.q", (q, hidden), self.biases)
        if own:
            yield from _matrix_shapes(f"{block}.k", (kv, hidden), self.biases)
        if own and not self.keys_are_values:
            yield from _matrix_shapes(f"{block}.v", (kv, hidden), self.biases)
        if self.is_gated:
            yield from _matrix_shapes(f"{block}.gate", (q, hidden), self.biases)
        if self.qk_norm is not None:
            full = self.qk_norm.is_full_width
            for part, rows in (("q", q), *((("k", kv),) if own else ())):
                width = rows if full else self.head_dim
                yield from self.qk_norm.norm.weight_shapes(f"{block}.{part}_norm", width)
        if self.value_norm is not None and own:
            yield from self.value_norm.weight_shapes(f"{block}.v_norm", self.head_dim)
        if self.has_sinks:
            yield f"{block}.sinks", (self.num_heads,)
        yield from _matrix_shapes(f"{block}.o", (hidden, q), self.biases)


@dataclass(frozen=True)
class ShortConv:
    """A gated causal convolution over a few tokens, each value of a row by itself, as in LFM2.

    out(c(x) * kernel(b(x) * x(x))): `kernel` weighs the last tokens' products, the newest last.

    Attributes:
        kernel: how many tokens it sees, itself included.
        has_bias: whether its projections and the convolution have one.
    """

    block: ClassVar[str] = "conv"

    kernel: int
    has_bias: bool = False

    @property
    def biases(self) -> tuple[str, ...]:
        """The parts that have one."""
        return ("b", "c", "x", "kernel", "out") if self.has_bias else ()

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        for part in "bcx":
            yield from _matrix_shapes(f"{block}.{part}", (hidden, hidden), self.biases)
        yield f"{block}.kernel", (hidden, 1, self.kernel)
        if self.has_bias:
            yield f"{block}.kernel.bias", (hidden,)
        yield from _matrix_shapes(f"{block}.out", (hidden, hidden), self.biases)


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention whose memory is one matrix per head, by the gated delta rule.

    Of each token: q, k, v = silu(conv(qkv(x))), a causal convolution along the tokens, channel by
    channel; q and k brought to length 1, q divided by sqrt(key_dim); the logarithm of a decay,
    g = decay * softplus(alpha(x) + step), and a strength b = sigmoid(beta(x)). Then for the memory
    M of each head, (key_dim, value_dim):

        M = exp(g) M;  M = M + k (b (v - M^T k))^T;  output M^T q

    and o(norm(output) * silu(z(x))). Source: Yang et al., 2024 (arXiv:2412.06464).

    Attributes:
        num_key_heads: of queries and of keys.
        num_value_heads: of values, and of memories; each key head serves as many of them.
        key_dim, value_dim: their widths.
        kernel: tokens that the convolution sees, itself included.
        norm: of each head's output.
        is_tiled: value head i has key head i modulo their number; else those of a key head lie
            side by side.
    """

    block: ClassVar[str] = "delta"

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm: Norm
    is_tiled: bool = False

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of q, k and v, all heads together."""
        keys = self.num_key_heads * self.key_dim
        return keys, keys, self.num_value_heads * self.value_dim

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        heads, channels, values = self.num_value_heads, sum(self.widths), self.widths[2]
        yield f"{block}.qkv", (channels, hidden)
        yield f"{block}.z", (values, hidden)
        yield f"{block}.beta", (heads, hidden)
        yield f"{block}.alpha", (heads, hidden)
        yield f"{block}.conv", (channels, 1, self.kernel)
        yield f"{block}.step", (heads,)
        yield f"{block}.decay", (heads,)
        yield from self.norm.weight_shapes(f"{block}.out_norm", self.value_dim)
        yield f"{block}.o", (hidden, values)


@dataclass(frozen=True)
class Mamba2:
    """A state space model whose memory is one matrix per head, which forgets as a whole.

    Of each token: x, B, C = activation(conv(xbc(x))), a causal convolution along the tokens,
    channel by channel; x is (heads, head_dim), B and C are (groups, state_dim), each for as many
    heads that lie side by side; and a step t = softplus(dt(x) + step), within `step_limits`. Then
    for the memory M of each head, (head_dim, state_dim):

        M = exp(t decay) M + t x B^T;  output M C + skip x

    and o(norm(output * silu(gate(x)))). Source: Dao and Gu, 2024 (arXiv:2405.21060).

    Attributes:
        groups: of B and of C.
        kernel: tokens that the convolution sees, itself included.
        activation: of what comes out of it.
        norm: of the gated output; None for none.
        norm_groups: parts of a row that are normalised each by itself.
        gates_last: the output is normalised first, then gated.
        biases: the parts (gate, xbc, dt, conv, o) that have one.
        step_limits: the least and the largest step.
    """

    block: ClassVar[str] = "mamba"

    num_heads: int
    head_dim: int
    groups: int
    state_dim: int
    kernel: int
    activation: Activation = Activation.SILU
    norm: Norm | None = None
    norm_groups: int = 1
    gates_last: bool = False
    biases: tuple[str, ...] = ("conv",)
    step_limits: tuple[float, float] = (0.0, math.inf)

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of x, B and C."""
        return self.width, self.groups * self.state_dim, self.groups * self.state_dim

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        channels = sum(self.widths)
        yield from _matrix_shapes(f"{block}.gate", (self.width, hidden), self.biases)
        yield from _matrix_shapes(f"{block}.xbc", (channels, hidden), self.biases)
        yield from _matrix_shapes(f"{block}.dt", (self.num_heads, hidden), self.biases)
        yield f"{block}.conv", (channels, 1, self.kernel)
        if "conv" in self.biases:
            yield f"{block}.conv.bias", (channels,)
        yield f"{block}.step", (self.num_heads,)
        yield f"{block}.decay", (self.num_heads,)
        yield f"{block}.skip", (self.num_heads,)
        if self.norm is not None:
            yield from self.norm.weight_shapes(f"{block}.out_norm", self.width)
        yield from _matrix_shapes(f"{block}.o", (hidden, self.width), self.biases)


# What moves information between tokens.
Mixer = Attention | ShortConv | GatedDeltaNet | Mamba2


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) where it is not gated.

    Attributes:
        width: of what stands between.
        biases: the projections (gate, up, down) that have one.
        cutoff: gates g become relu(g - mean(g) - cutoff std(g)) before the activation, which leaves
            few of them (Gemma 3n); None where they stay as they are.
        limit: gates are at most so large, and what they gate is between minus that and that
            (gpt-oss); None where nothing is cut.
        up_offset: added to what is gated.
    """

    width: int
    activation: Activation
    is_gated: bool = True
    biases: tuple[str, ...] = ()
    cutoff: float | None = None
    limit: float | None = None
    up_offset: float = 0.0

    @property
    def is_linear_in_up(self) -> bool:
        """Whether what `up` gives goes as a factor into what `down` is given."""
        return self.is_gated and self.limit is None and not self.up_offset

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        if self.is_gated:
            yield from _matrix_shapes(f"{block}.gate", (self.width, hidden), self.biases)
        yield from _matrix_shapes(f"{block}.up", (self.width, hidden), self.biases)
        if self.activation is Activation.XIELU:
            yield f"{block}.alpha_p", (1,)
            yield f"{block}.alpha_n", (1,)
        yield from _matrix_shapes(f"{block}.down", (hidden, self.width), self.biases)


class Router(StrEnum):
    """How a router's logits become the weights of experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class Experts:
    """Feed-forward blocks of which every token takes a few: sum_e weight_e expert_e(x) + shared(x).

    Scores are softmax(router(x)) or its sigmoid; the `active` largest of them, plus a bias where
    there is one for choosing, are taken. Renormalised, the softmax of all is that of those taken.

    Attributes:
        expert: each of them.
        count: how many there are.
        active: how many a token takes.
        router: how scores are made.
        renormalises: weights are scores divided by their sum, plus `epsilon`.
        scale: factor on the weights.
        router_bias: whether the router has a bias.
        choice_bias: whether one is added to scores that are compared, though not to weights.
        shared: a block that every token takes; None for none.
        shared_is_gated: what it makes is multiplied with sigmoid(shared_gate . x).
        router_norm: the router sees the residual stream under it; None where it sees x.
        own_norms: for norm(shared(x)) + norm(sum_e weight_e expert_e(norm(r))), r the residual
            stream; None where all see x and are added as they are.
        has_scales: what each expert makes is multiplied with a number of its own.
    """

    expert: FeedForward
    count: int
    active: int
    router: Router = Router.SOFTMAX
    renormalises: bool = True
    epsilon: float = 0.0
    scale: float = 1.0
    router_bias: bool = False
    choice_bias: bool = False
    shared: FeedForward | None = None
    shared_is_gated: bool = False
    router_norm: Norm | None = None
    own_norms: Norm | None = None
    has_scales: bool = False

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of what lies between the norms of its block."""
        biases = ("router",) if self.router_bias else ()
        if self.router_norm is not None:
            yield from self.router_norm.weight_shapes(f"{block}.router_norm", hidden)
        yield from _matrix_shapes(f"{block}.router", (self.count, hidden), biases)
        if self.choice_bias:
            yield f"{block}.choice", (self.count,)
        if self.has_scales:
            yield f"{block}.scales", (self.count,)
        if self.shared is not None:
            yield from self.shared.weight_shapes(f"{block}.shared", hidden)
            if self.shared_is_gated:
                yield f"{block}.shared_gate", (hidden,)
            if self.own_norms is not None:
                yield from self.own_norms.weight_shapes(f"{block}.shared.post_norm", hidden)
        if self.own_norms is not None:
            yield from self.own_norms.weight_shapes(f"{block}.experts.norm", hidden)
        for e in range(self.count):
            yield from self.expert.weight_shapes(f"{block}.experts.{e}", hidden)
        if self.own_norms is not None:
            yield from self.own_norms.weight_shapes(f"{block}.experts.post_norm", hidden)


@dataclass(frozen=True)
class LayerSpec:
    """One layer; of mixer and feed-forward block it may have only one, as in Nemotron-H.

    Attributes:
        beside: a mixer of another kind, fed with the same; what both make is added.
    """

    mixer: Mixer | None
    feed_forward: FeedForward | Experts | None
    beside: Mixer | None = None

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Both, where there are two; none where there is only a feed-forward block."""
        return tuple(mixer for mixer in (self.mixer, self.beside) if mixer is not None)


@dataclass(frozen=True)
class PerLayerInput:
    """A second embedding of every token, of which each layer is given a part, as in Gemma 3n and 4.

    A part is (norm(project(x) / sqrt(hidden)) + sqrt(width) row) / sqrt(2), with x the scaled
    embedding; after its feed-forward block a layer adds norm(up(activation(gate(x)) * part)).

    Attributes:
        width: of a part.
        rows: tokens in the table; the others have row 0.
        activation: of the gate.
    """

    width: int
    rows: int
    activation: Activation


@dataclass(frozen=True)
class AltUp:
    """Alternating updates: the residual stream is several, of which a layer sees one.

    Before a layer, x_j grows by sum_k p_jk x_k; after it, by c_j (y - x_active), y being what the
    layer makes of x_active. With r(x) = tanh(router(norm(x) / hidden)), p is predict(r(x_active)),
    and c is 1 + correct(r(y)). The streams begin as projections of the embedding, and end as the
    mean of x_0 and projections of the others; both as long as the embedding, or as x_0.
    Source: arXiv:2301.13310 and transformers' Gemma3nTextAltUp.

    Attributes:
        streams: how many there are.
        active: the one that layers see.
        scales_output: whether a weight is on what the per-layer input is gated by.
    """

    streams: int
    active: int = 0
    scales_output: bool = True

    def weight_shapes(self, block: str, hidden: int) -> Shapes:
        """Of one layer."""
        n = self.streams
        yield f"{block}.router_norm", (hidden,)
        yield f"{block}.router", (n, hidden)
        yield f"{block}.predict", (n * n, n)
        yield f"{block}.correct", (n, n)
        if self.scales_output:
            yield f"{block}.output_scale", (hidden,)


# Matrices that stay in float32: a few values, on which much depends.
EXACT_MATRICES = frozenset({"router", "predict", "correct", "alpha", "beta", "dt"})


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        norm: of every block, and the last one.
        embedding_scale: factor on the embedding rows, None for 1.
        residual_scale: factor on what a block adds, None for 1.
        logits_scale: factor on the logits, None for 1.
        logits_softcap: logits l become softcap tanh(l / softcap).
        tied_head: whether the head is the embedding table.
        head_bias: whether the head has a bias.
        per_layer_input: None where there is none.
        has_layer_scales: what a layer hands on is multiplied with a number of its own.
        laurel_rank: beside its attention a layer has a path of so few values: with n what both are
            fed with, x becomes (x + attention(n) + n + norm(right(left(n)))) / sqrt(2).
        altup: None where there is one residual stream.
    """

    vocab_size: int
    hidden_size: int
    norm: Norm
    layers: tuple[LayerSpec, ...]
    tied_head: bool
    placement: Placement = Placement.BEFORE
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logits_scale: float | None = None
    logits_softcap: float | None = None
    head_bias: bool = False
    per_layer_input: PerLayerInput | None = None
    has_layer_scales: bool = False
    laurel_rank: int | None = None
    altup: AltUp | None = None

    def for_context(self, length: int) -> DecoderSpec:
        """The same with the rotary embeddings that hold in a context of so many positions."""

        def fit(layer: LayerSpec) -> LayerSpec:
            mixer = layer.mixer
            if not isinstance(mixer, Attention):
                return layer
            rope = mixer.rope
            if rope is None or rope.longer is None or length <= (rope.positions or length):
                return layer
            return replace(layer, mixer=replace(mixer, rope=rope.longer))

        return replace(self, layers=tuple(map(fit, self.layers)))

    def weight_shapes(self) -> Shapes:
        """Every weight the network has, in the order in which it is used."""
        hidden, placement = self.hidden_size, self.placement
        yield "embedding", (self.vocab_size, hidden)
        if self.per_layer_input is not None:
            width = self.per_layer_input.width
            yield PER_LAYER_TABLE, (self.per_layer_input.rows, len(self.layers) * width)
            yield from self.norm.weight_shapes("per_layer_norm", width)
        others = range(self.altup.streams - 1 if self.altup else 0)
        for i in others:
            yield f"altup_begin.{i}", (hidden, hidden)
        for i, layer in enumerate(self.layers):
            if self.altup is not None:
                yield from self.altup.weight_shapes(f"layers.{i}.altup", hidden)
            if layer.mixer is not None:
                mixer = f"layers.{i}.{layer.mixer.block}"
                if placement.has_pre_norms:
                    yield from self.norm.weight_shapes(f"{mixer}.norm", hidden)
                for part in layer.mixers:
                    yield from part.weight_shapes(f"layers.{i}.{part.block}", hidden)
                if placement.has_post_norms:
                    yield from self.norm.weight_shapes(f"{mixer}.post_norm", hidden)
            if self.laurel_rank is not None:
                yield f"layers.{i}.laurel.left", (self.laurel_rank, hidden)
                yield f"layers.{i}.laurel.right", (hidden, self.laurel_rank)
                yield from self.norm.weight_shapes(f"layers.{i}.laurel.post_norm", hidden)
            if layer.feed_forward is not None:
                mlp = f"layers.{i}.mlp"
                if placement in (Placement.BEFORE, Placement.BOTH):
                    yield from self.norm.weight_shapes(f"{mlp}.norm", hidden)
                yield from layer.feed_forward.weight_shapes(mlp, hidden)
                if placement.has_post_norms:
                    yield from self.norm.weight_shapes(f"{mlp}.post_norm", hidden)
            if self.per_layer_input is not None:
                block = f"layers.{i}.per_layer"
                yield f"{block}.projection", (width, hidden)
                yield f"{block}.gate", (width, hidden)
                yield f"{block}.up", (hidden, width)
                yield from self.norm.weight_shapes(f"{block}.post_norm", hidden)
            if self.has_layer_scales:
                yield f"layers.{i}.scale", (1,)
        for i in others:
            yield f"altup_end.{i}", (hidden, hidden)
        yield from self.norm.weight_shapes("final_norm", hidden)
        if not self.tied_head:
            yield "head", (self.vocab_size, hidden)
        if self.head_bias:
            yield "head.bias", (self.vocab_size,)


def _matrix_shapes(path: str, shape: tuple[int, int], biases: tuple[str, ...]) -> Shapes:
    yield path, shape
    if path.rpartition(".")[2] in biases:
        yield f"{path}.bias", shape[:1]
