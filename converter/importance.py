"""How much each input of a matrix matters, found without any data: where int4 may err.

A few random tokens go through the network once; the mean square of what arrives at a matrix's
column is what an error in that column costs. Attention is simplified to the mean of all values so
far, which needs no queries, keys or positions and was measured to serve as well
(benchmarks/README.md).

Every product is one of small integers, whose sums float32 holds exactly: neither threads nor blocks
nor the BLAS library change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from converter.decoder import Activation, DecoderSpec
from converter.kernels import INT8_MAX

TOKENS = 32
# Columns whose products are added in float32: 127 * 127 * 1024 < 2^24.
_EXACT_COLUMNS = 1024
# Of the mean over a matrix, added to every column: 32 tokens do not know those that look dead.
_FLOOR = np.float32(0.1)

Vector = Callable[[str], np.ndarray]
Product = Callable[[str, np.ndarray], np.ndarray]


def measure_importance(
    spec: DecoderSpec, rows_of: Callable[[np.ndarray], np.ndarray], vector: Vector, product: Product
) -> dict[str, np.ndarray]:
    """The importance of every matrix's columns, float32 `(columns,)`, by path; their mean is 1.

    Args:
        rows_of: the embedding's rows of some tokens, `(n, hidden)`.
        vector: a norm or bias by its path.
        product: `x @ weight.T` of the weight with a path, `(n, columns)` to `(n, rows)`.
    """
    found: dict[str, np.ndarray] = {}

    def project(path: str, x: np.ndarray, bias: bool) -> np.ndarray:
        y = product(path, x)
        return y + vector(f"{path}.bias") if bias else y

    def normed(path: str, x: np.ndarray) -> np.ndarray:
        mean = (x * x).mean(axis=-1, keepdims=True)
        scaled: np.ndarray = x / np.sqrt(mean + np.float32(spec.norm_epsilon)) * vector(path)
        return scaled

    def add(block: str, update: np.ndarray) -> np.ndarray:
        return x + (normed(f"{block}.post_norm", update) if spec.post_norms else update)

    # Spread over the vocabulary; the same ones each time.
    tokens = np.arange(1, TOKENS + 1) * 2654435761 % spec.vocab_size
    x = rows_of(tokens) * np.float32(spec.embedding_scale or 1)
    seen = np.arange(1, TOKENS + 1, dtype=np.float32)[:, None]  # tokens up to each
    groups = spec.num_attention_heads // spec.num_key_value_heads
    for index in range(len(spec.layers)):
        block = f"layers.{index}.attention"
        y = normed(f"{block}.norm", x)
        found |= dict.fromkeys((f"{block}.q", f"{block}.k", f"{block}.v"), _importance(y))
        values = project(f"{block}.v", y, spec.qkv_bias).cumsum(axis=0) / seen
        heads = values.reshape(TOKENS, spec.num_key_value_heads, spec.head_dim)
        y = heads.repeat(groups, axis=1).reshape(TOKENS, -1)
        found[f"{block}.o"] = _importance(y)
        x = add(block, project(f"{block}.o", y, spec.o_bias))

        block = f"layers.{index}.mlp"
        y = normed(f"{block}.norm", x)
        found |= dict.fromkeys((f"{block}.gate", f"{block}.up"), _importance(y))
        gate = project(f"{block}.gate", y, spec.mlp_bias)
        y = _activate(spec.activation, gate) * project(f"{block}.up", y, spec.mlp_bias)
        found[f"{block}.down"] = _importance(y)
        x = add(block, project(f"{block}.down", y, spec.mlp_bias))
    found["embedding" if spec.tied_head else "head"] = _importance(normed("final_norm", x))
    return found


def to_integers(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as integers of -127 to 127, float32, and their scales, `(n, 1)`."""
    scales = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(INT8_MAX), _TINY)
    return np.rint(x / scales), scales


def integer_product(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`x @ rows.T`, exact, of integers of at most 127; float64 `(n, len(rows))`.

    Args:
        x: float32 `(n, columns)`.
        rows: int8 `(m, columns)`.
    """
    total = np.zeros((len(x), len(rows)))
    for start in range(0, x.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += x[:, part] @ rows[:, part].astype(np.float32).T
    return total


_TINY = np.finfo(np.float32).tiny


def _importance(x: np.ndarray) -> np.ndarray:
    powers = (x * x).mean(axis=0)
    mean = powers.mean()
    if not np.isfinite(mean) or mean < _TINY:  # the weights are damaged, or all zero
        return np.ones_like(powers)
    return (powers / mean + _FLOOR) / (1 + _FLOOR)


def _activate(activation: Activation, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        if activation is Activation.GELU_TANH:
            inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
            return np.float32(0.5) * x * (1 + np.tanh(inner))
        return x / (1 + np.exp(-x))
