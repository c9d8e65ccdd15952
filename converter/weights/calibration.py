"""Calibration without data: what reaches each matrix, and what its columns are scaled with.

A few random tokens go through the network while its weights are streamed. Attention is simplified
to the mean of all values so far, which needs no queries, keys or positions and was measured to
serve as well (benchmarks/README.md). What is learned of a matrix's inputs has two uses:

- Importance. The mean square of what arrives at a column is what an error there costs; the scales
  of int4 blocks are chosen for it.
- Equalisation. All inputs of a token share one int8 scale, so that a few large ones cost all
  others their precision. A column that large inputs reach is multiplied with a factor, and what
  makes these inputs is divided by it: the weight of a norm, or rows of v and up. The network stays
  the same; the factors are powers of two, so that scaling rounds nothing.

Source: SmoothQuant (Xiao et al., 2022), equation 4, with root mean squares for maxima and without
the weights' share; AWQ (Lin et al., 2023) for int4.

Every product is one of small integers, which is exact: neither threads nor blocks nor the processor
change a bit of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from converter.decoder import Activation, DecoderSpec
from converter.kernels import INT8_MAX

TOKENS = 32
# Of the mean over a matrix, added to every column: 32 tokens do not know those that look dead.
_FLOOR = np.float32(0.1)
# A factor is the root mean square of a column's input to this power (benchmarks.rounding).
_ALPHA = 0.25
_LARGEST_EXPONENT = 4.0


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of matrices, column by column.

    Attributes:
        importance: what a squared error in a stored column costs, float32 `(columns,)`; None where
            all cost the same.
        factors: what columns are multiplied with before they are stored, and inputs divided by:
            powers of two, float32 `(columns,)`; None where they stay as they are.
    """

    importance: np.ndarray | None = None
    factors: np.ndarray | None = None


class Weights(Protocol):
    """What calibration asks of the stream of weights; paths are those of `DecoderSpec`."""

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """The embedding's rows of some tokens, `(n, hidden)`."""

    def vector(self, path: str) -> np.ndarray:
        """A norm or a bias as the checkpoint has it, `(n,)`."""

    def may_scale(self, *paths: str) -> bool:
        """Whether all of these matrices may be stored with scaled columns or rows."""

    def store(self, inputs: Inputs, *paths: str) -> None:
        """Store matrices, some time."""

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        """Store matrices, and `x @ weight.T` for each: `(n, columns)` to `(n, rows)`."""

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        """Store a norm's weight or a bias divided; or divide the rows of a matrix just stored."""


def calibrate(spec: DecoderSpec, weights: Weights) -> None:
    """Send a few tokens through the network, and every matrix to where it is stored."""

    def has_bias(path: str) -> bool:
        return path.rpartition(".")[2] in spec.biases

    def project(path: str, product: np.ndarray) -> np.ndarray:
        return product + weights.vector(f"{path}.bias") if has_bias(path) else product

    def normed(path: str, x: np.ndarray) -> np.ndarray:
        mean = (x * x).mean(axis=-1, keepdims=True)
        scaled: np.ndarray = x / np.sqrt(mean + np.float32(spec.norm_epsilon))
        return scaled * weights.vector(path)

    def add(block: str, update: np.ndarray) -> np.ndarray:
        return x + (normed(f"{block}.post_norm", update) if spec.post_norms else update)

    # Spread over the vocabulary; the same ones each time.
    tokens = np.arange(1, TOKENS + 1) * 2654435761 % spec.vocab_size
    x = weights.embed(tokens) * np.float32(spec.embedding_scale or 1)
    seen = np.arange(1, TOKENS + 1, dtype=np.float32)[:, None]  # tokens up to each
    kv_heads = spec.num_key_value_heads
    groups = spec.num_attention_heads // kv_heads
    for index in range(len(spec.layers)):
        block = f"layers.{index}.attention"
        q, k, v, o = (f"{block}.{part}" for part in "qkvo")
        y = normed(f"{block}.norm", x)
        inputs = _inputs(y, weights.may_scale(q, k, v))
        weights.divide(f"{block}.norm", inputs.factors)
        weights.store(inputs, q, k)
        [values] = weights.multiply(inputs, y, v)
        values = project(v, values).cumsum(axis=0) / seen
        heads = values.reshape(TOKENS, kv_heads, 1, spec.head_dim)
        y = heads.repeat(groups, axis=2).reshape(TOKENS, -1)
        inputs = _inputs(y, weights.may_scale(v, o))
        of_values = inputs.factors
        if of_values is not None:  # the same for all query heads that a value head feeds
            of_values = of_values.reshape(kv_heads, groups, -1)[:, 0].reshape(-1)
        weights.divide(v, of_values)
        if has_bias(v):
            weights.divide(f"{v}.bias", of_values)
        [product] = weights.multiply(inputs, y, o)
        x = add(block, project(o, product))

        block = f"layers.{index}.mlp"
        gate, up, down = (f"{block}.{part}" for part in ("gate", "up", "down"))
        y = normed(f"{block}.norm", x)
        inputs = _inputs(y, weights.may_scale(gate, up))
        weights.divide(f"{block}.norm", inputs.factors)
        gates, ups = weights.multiply(inputs, y, gate, up)
        y = _activate(spec.activation, project(gate, gates))
        y *= project(up, ups)
        del gates, ups  # the widest that there are
        inputs = _inputs(y, weights.may_scale(up, down))
        weights.divide(up, inputs.factors)
        if has_bias(up):
            weights.divide(f"{up}.bias", inputs.factors)
        [product] = weights.multiply(inputs, y, down)
        x = add(block, project(down, product))
    # A tied head's columns are the embedding's: they stay as they are.
    head = "embedding" if spec.tied_head else "head"
    inputs = _inputs(normed("final_norm", x), not spec.tied_head and weights.may_scale(head))
    weights.divide("final_norm", inputs.factors)
    weights.store(inputs, head)


def to_integers(x: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows, divided by factors, as int8 of -127 to 127, and their scales, float32 `(n,)`."""
    values = x.copy() if factors is None else x / factors
    peaks = np.maximum(values.max(axis=1), -values.min(axis=1))
    scales = np.maximum(peaks / np.float32(INT8_MAX), _TINY)
    values /= scales[:, None]
    return np.rint(values, out=values).astype(np.int8), scales


_TINY = np.finfo(np.float32).tiny


def _inputs(x: np.ndarray, scaled: bool) -> Inputs:
    """What some tokens say of a matrix's inputs, `(n, columns)`."""
    powers = (x * x).mean(axis=0)
    mean = powers.mean()
    if not np.isfinite(mean) or mean < _TINY:  # the weights are damaged, or all zero
        return Inputs()
    importance = (powers / mean + _FLOOR) / (1 + _FLOOR)
    if not scaled:
        return Inputs(importance)
    size = np.log2(importance.astype(np.float64)) / 2  # of the root
    exponents = np.rint(_ALPHA * (size - size.mean()))
    factors = np.exp2(np.clip(exponents, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)).astype(np.float32)
    return Inputs(importance / (factors * factors), factors)


def _activate(activation: Activation, x: np.ndarray) -> np.ndarray:
    """The activation's values, with room for no others."""
    with np.errstate(over="ignore"):
        if activation is not Activation.SILU:  # the two GELUs differ by less than 1e-3
            # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
            y = np.float32(0.044715) * x
            for _ in range(2):
                y *= x
            y += x
            y *= np.float32(np.sqrt(2 / np.pi))
            np.tanh(y, out=y)
            y += 1
            y *= x
            y *= np.float32(0.5)
            return y
        y = np.negative(x)  # x / (1 + exp(-x))
        np.exp(y, out=y)
        y += 1
        return np.divide(x, y, out=y)
