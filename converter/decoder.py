"""The network, in the field's own words: what a family says and the graph is built from.

A `DecoderSpec` holds no files and no bytes. Its switches are the differences between families; a
family sets them from its config, and the graph knows nothing else. A layer is a mixer, which moves
information between tokens, and a feed-forward block, which works on each token alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

# Every matrix of a layer, in the order of use; `biases` of a block names some of them.
ATTENTION_PROJECTIONS = ("q", "k", "v", "o")
MLP_PROJECTIONS = ("gate", "up", "down")


class Activation(StrEnum):
    """The nonlinearity of the feed-forward block."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU2 = "relu2"  # relu(x)^2
    # beta x + a_p x^2 above 0, beta x + a_n (exp(x) - 1 - x) below; a_p = softplus(alpha_p) and
    # a_n = beta + softplus(alpha_n), learned in every layer (arXiv:2411.13010).
    XIELU = "xielu"


XIELU_BETA = 0.5


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
        biases: the projections (q, k, v, o) that have one.
        softcap: scores s become softcap tanh(s / softcap).
        position_scale: None where queries do not grow with the position.
        is_gated: the output is multiplied with sigmoid(gate(x)) before the last projection.
        has_sinks: every head has one more score, learned, whose share of the softmax is dropped.
        cache_of: the earlier layer whose keys and values are looked at, of the same window and
            with a cache of its own; None where it has one itself.
    """

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


@dataclass(frozen=True)
class FeedForward:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) where it is not gated.

    Attributes:
        width: of what stands between.
        biases: the projections (gate, up, down) that have one.
    """

    width: int
    activation: Activation
    is_gated: bool = True
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerSpec:
    """One layer."""

    mixer: Attention
    feed_forward: FeedForward


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

    def for_context(self, length: int) -> DecoderSpec:
        """The same with the rotary embeddings that hold in a context of so many positions."""

        def fit(layer: LayerSpec) -> LayerSpec:
            rope = layer.mixer.rope
            if rope is None or rope.longer is None or length <= (rope.positions or length):
                return layer
            return replace(layer, mixer=replace(layer.mixer, rope=rope.longer))

        return replace(self, layers=tuple(map(fit, self.layers)))

    def weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight the network has, `(path, shape)`, in the order in which it is used."""
        hidden = self.hidden_size
        yield "embedding", (self.vocab_size, hidden)
        for i, layer in enumerate(self.layers):
            yield from self._attention_shapes(f"layers.{i}.attention", layer.mixer)
            yield from self._mlp_shapes(f"layers.{i}.mlp", layer.feed_forward)
        yield from _norm_shapes("final_norm", self.norm, hidden)
        if not self.tied_head:
            yield "head", (self.vocab_size, hidden)
        if self.head_bias:
            yield "head.bias", (self.vocab_size,)

    def _attention_shapes(
        self, block: str, mixer: Attention
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden = self.hidden_size
        q, kv = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        if self.placement.has_pre_norms:
            yield from _norm_shapes(f"{block}.norm", self.norm, hidden)
        own = mixer.cache_of is None
        for part, rows in (("q", q), *((("k", kv), ("v", kv)) if own else ())):
            yield from _matrix_shapes(f"{block}.{part}", (rows, hidden), mixer.biases)
        if mixer.is_gated:
            yield f"{block}.gate", (q, hidden)
        if mixer.qk_norm is not None:
            full = mixer.qk_norm.is_full_width
            for part, rows in (("q", q), *((("k", kv),) if own else ())):
                width = rows if full else mixer.head_dim
                yield from _norm_shapes(f"{block}.{part}_norm", mixer.qk_norm.norm, width)
        if mixer.has_sinks:
            yield f"{block}.sinks", (mixer.num_heads,)
        yield from _matrix_shapes(f"{block}.o", (hidden, q), mixer.biases)
        if self.placement.has_post_norms:
            yield from _norm_shapes(f"{block}.post_norm", self.norm, hidden)

    def _mlp_shapes(
        self, block: str, feed_forward: FeedForward
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, width, biases = self.hidden_size, feed_forward.width, feed_forward.biases
        if self.placement in (Placement.BEFORE, Placement.BOTH):
            yield from _norm_shapes(f"{block}.norm", self.norm, hidden)
        if feed_forward.is_gated:
            yield from _matrix_shapes(f"{block}.gate", (width, hidden), biases)
        yield from _matrix_shapes(f"{block}.up", (width, hidden), biases)
        if feed_forward.activation is Activation.XIELU:
            yield f"{block}.alpha_p", (1,)
            yield f"{block}.alpha_n", (1,)
        yield from _matrix_shapes(f"{block}.down", (hidden, width), biases)
        if self.placement.has_post_norms:
            yield from _norm_shapes(f"{block}.post_norm", self.norm, hidden)


def _matrix_shapes(
    path: str, shape: tuple[int, int], biases: tuple[str, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield path, shape
    if path.rpartition(".")[2] in biases:
        yield f"{path}.bias", shape[:1]


def _norm_shapes(path: str, norm: Norm, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if norm.has_weight:
        yield path, (width,)
    if norm.has_bias:
        yield f"{path}.bias", (width,)
