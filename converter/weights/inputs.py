"""What is known of the inputs of matrices, and what that makes of their columns.

- Importance. The mean square of what arrives at a column is what an error there costs; the scales
  of int4 blocks are chosen for it.
- Equalisation. All inputs of a token share one int8 scale, so that a few large ones cost all
  others their precision. A column that large inputs reach is multiplied with a factor, and what
  makes these inputs is divided by it: the weight of a norm, or rows of v and up. The network stays
  the same; without a text the factors are powers of two, so that scaling rounds nothing.

Source: SmoothQuant (Xiao et al., 2022), equation 4, with root mean squares for maxima and without
the weights' share; AWQ (Lin et al., 2023) for int4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.kernels import INT8_MAX
from converter.weights.compensation import Moment

# Of the mean over a matrix, added to every column: 32 tokens do not know those that look dead.
FLOOR = np.float32(0.1)
_LARGEST_EXPONENT = 4.0
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Strength:
    """How strongly columns are scaled.

    Attributes:
        alpha: a factor is the root mean square of a column's input to this power.
        floor: of the mean over a matrix, added to every column's mean square first.
        step: factors are 2 to a multiple of it; where it is 1, scaling rounds nothing.
    """

    alpha: float
    floor: np.float32
    step: float = 1.0


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of matrices, column by column.

    Attributes:
        importance: what a squared error in a stored column costs, float32 `(columns,)`; None where
            all cost the same.
        factors: what columns are multiplied with before they are stored, and inputs divided by,
            float32 `(columns,)`; None where they stay as they are.
        moment: where a text says enough of them, so that stored columns may make up for each
            other's errors.
    """

    importance: np.ndarray | None = None
    factors: np.ndarray | None = None
    moment: Moment | None = None

    @property
    def are_paired(self) -> bool:
        """Whether rows for matrices as they are stored are followed by as many for exact ones."""
        return self.moment is not None and self.moment.exact is not None


def learn_inputs(
    x: np.ndarray, strength: Strength | None = None, shared: tuple[int, int] = (1, 1)
) -> Inputs:
    """What some tokens say of a matrix's inputs, `(n, columns)`.

    Args:
        strength: of the factors that columns get; None where they get none.
        shared: into how many parts columns fall, and of each into how many that have the same.
    """
    powers = (x * x).mean(axis=0)
    mean = powers.mean()
    if not np.isfinite(mean) or mean < _TINY:  # the weights are damaged, or all zero
        return Inputs()
    importance = (powers / mean + FLOOR) / (1 + FLOOR)
    if strength is None:
        return Inputs(importance)
    known = (powers / mean + strength.floor) / (1 + strength.floor)
    size = np.log2(known.astype(np.float64)) / 2  # of the root
    by_part = size.reshape(*shared, -1)
    size = np.broadcast_to(by_part.mean(axis=1, keepdims=True), by_part.shape).reshape(-1)
    exponents = np.rint(strength.alpha * (size - size.mean()) / strength.step) * strength.step
    factors = np.exp2(np.clip(exponents, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)).astype(np.float32)
    return Inputs(importance / (factors * factors), factors)


def to_integers(x: np.ndarray, factors: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows, divided by factors, as int8 of -127 to 127, and their scales, float32 `(n,)`."""
    values = x.copy() if factors is None else x / factors
    peaks = np.maximum(values.max(axis=1), -values.min(axis=1))
    scales = np.maximum(peaks / np.float32(INT8_MAX), _TINY)
    values /= scales[:, None]
    return np.rint(values, out=values).astype(np.int8), scales
