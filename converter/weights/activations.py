"""What the feed-forward blocks' activations make of many numbers at once."""

from __future__ import annotations

import numpy as np

from converter.decoder import QUICK_GELU_SLOPE, Activation


def activate(activation: Activation, x: np.ndarray) -> np.ndarray:
    """The activation's values, with room for no others: what x holds may be lost.

    Of those without learned numbers. The two GELUs differ by less than 1e-3, and are one here.
    """
    with np.errstate(over="ignore"):
        if activation is Activation.RELU2:
            np.maximum(x, 0, out=x)
            x *= x
            return x
        if activation in (Activation.GELU, Activation.GELU_TANH):
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
        if activation is Activation.QUICK_GELU:
            y *= np.float32(QUICK_GELU_SLOPE)
        np.exp(y, out=y)
        y += 1
        return np.divide(x, y, out=y)
