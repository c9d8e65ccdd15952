"""Attention over a whole text in float32, for what sends one through a network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from converter.decoder import Attention, Rope


def rotated(rope: Rope, x: np.ndarray) -> np.ndarray:
    """(heads, n, d): value i of a head turns with value i + w / 2."""
    head_dim = x.shape[-1]
    half = (rope.width or head_dim) // 2
    angles = np.arange(x.shape[1])[:, None] * np.array(rope.inverse_frequencies(head_dim))
    cos, sin = (
        (turn(angles) * rope.attention_factor).astype(np.float32) for turn in (np.cos, np.sin)
    )
    left, right = x[..., :half], x[..., half : 2 * half]
    parts = [left * cos - right * sin, right * cos + left * sin, x[..., 2 * half :]]
    return np.concatenate(parts, axis=-1)


def mixed(
    mixer: Attention,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    see: Callable[[np.ndarray], None] = lambda _: None,
) -> np.ndarray:
    """The values that each token looks at, weighed: what the last matrix is given, `(n, heads d)`.

    Args:
        q: normalised and rotated, `(heads, n, d)`.
        k, v: `(kv heads, n, d)`.
        see: is told the scores, before a softcap, the mask and the softmax.
    """
    kv, n, width = k.shape
    q = q.reshape(kv, -1, n, width) * np.float32(mixer.scale / (mixer.softcap or 1))
    scores = q @ k[:, None].swapaxes(2, 3)  # (kv, heads / kv, n, n)
    see(scores)
    if mixer.softcap is not None:
        scores = np.tanh(scores) * np.float32(mixer.softcap)
    ago = np.arange(n)[:, None] - np.arange(n)
    sees = (ago >= 0) & (ago < (mixer.sliding_window or n))
    scores = np.where(sees, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    context = (shares @ v[:, None]).reshape(-1, n, width)
    return context.swapaxes(0, 1).reshape(n, -1)
