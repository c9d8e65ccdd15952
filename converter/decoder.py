"""The network, in the field's own words: what a family says and the graph is built from.

A `DecoderSpec` holds no files and no bytes. Its switches are the differences between families that
field-notes lists; a family sets them from its config, and the graph knows nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

# Every matrix of a layer, in the order of use; `DecoderSpec.biases` names some of them.
ATTENTION_PROJECTIONS = ("q", "k", "v", "o")
MLP_PROJECTIONS = ("gate", "up", "down")


class Activation(Enum):
    """The gate of the feed-forward block."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over the whole head, halves rotated against each other.

    Attributes:
        theta: base of the frequencies.
        factors: one divisor per frequency, `head_dim / 2` of them, or one for all; infinity for one
            that does not turn. Every scaling comes down to it.
        attention_factor: on cos and sin, so that scores grow with its square.
        positions: for how many positions this holds; None for all.
    """

    theta: float
    factors: tuple[float, ...] = (1.0,)
    attention_factor: float = 1.0
    positions: int | None = None

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """Radians per position, `theta ** (-2i / head_dim) / factor_i` for i in 0..head_dim/2."""
        half = head_dim // 2
        factors = self.factors * half if len(self.factors) == 1 else self.factors
        return [self.theta ** (-2 * i / head_dim) / factors[i] for i in range(half)]


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer.

    Attributes:
        rope: its rotary embedding.
        sliding_window: how many positions a token sees, itself included; None for all before it.
    """

    rope: Rope
    sliding_window: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        biases: the projections that have a bias, in every layer.
        qk_norm: whether queries and keys are normalised per head before the rotary embedding.
        post_norms: whether each block's output is normalised too, before the residual addition.
        embedding_scale: factor on the embedding rows, None for 1.
        attention_scale: factor on the attention scores.
        tied_head: whether the head is the embedding table.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    norm_epsilon: float
    activation: Activation
    attention_scale: float
    layers: tuple[LayerSpec, ...]
    tied_head: bool
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float | None = None

    def weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every weight the network has, `(path, shape)`, in the order in which it is used."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        yield "embedding", (self.vocab_size, hidden)
        for i in range(len(self.layers)):
            layer = f"layers.{i}"
            yield f"{layer}.attention.norm", (hidden,)
            for part, rows in (("q", q), ("k", kv), ("v", kv)):
                yield f"{layer}.attention.{part}", (rows, hidden)
                if part in self.biases:
                    yield f"{layer}.attention.{part}.bias", (rows,)
            if self.qk_norm:
                yield f"{layer}.attention.q_norm", (self.head_dim,)
                yield f"{layer}.attention.k_norm", (self.head_dim,)
            yield f"{layer}.attention.o", (hidden, q)
            if "o" in self.biases:
                yield f"{layer}.attention.o.bias", (hidden,)
            if self.post_norms:
                yield f"{layer}.attention.post_norm", (hidden,)
            yield f"{layer}.mlp.norm", (hidden,)
            for part, shape in (("gate", (ffn, hidden)), ("up", (ffn, hidden))):
                yield f"{layer}.mlp.{part}", shape
                if part in self.biases:
                    yield f"{layer}.mlp.{part}.bias", (ffn,)
            yield f"{layer}.mlp.down", (hidden, ffn)
            if "down" in self.biases:
                yield f"{layer}.mlp.down.bias", (hidden,)
            if self.post_norms:
                yield f"{layer}.mlp.post_norm", (hidden,)
        yield "final_norm", (hidden,)
        if not self.tied_head:
            yield "head", (self.vocab_size, hidden)
