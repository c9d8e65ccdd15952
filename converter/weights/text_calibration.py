"""Calibration by a text (`--calibrate`): some thousand tokens, and attention is whole.

What is known of the inputs is then true enough to equalise them fully where weights are int8.
Columns of int4 and int6 make up for each other's errors, and their matrices for what their inputs
have lost before (`compensation`). That takes products in float32, whose last bits are the
processor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.decoder import Attention, DecoderSpec
from converter.weights.attention import mixed, rotated
from converter.weights.calibration import Calibration, Weights
from converter.weights.compensation import Moment
from converter.weights.inputs import Inputs, Strength

# For int8 by a text: inputs that are known, and weights with steps to spare. A floor as high as
# that of a few tokens would hide most columns behind some large ones, and whole steps leave a third
# of the error that quarters do not (benchmarks/README.md).
_OF_TEXT = Strength(0.5, np.float32(0.001), step=0.25)


class TextCalibration(Calibration):
    """A text on its way, passage by passage where tokens look at each other.

    It goes on from what matrices became, so that all is known of what will reach the next.
    """

    def __init__(self, spec: DecoderSpec, weights: Weights, text: np.ndarray) -> None:
        super().__init__(spec, weights)
        self.passages = len(text)
        self.tokens = text.reshape(-1)

    def inputs(
        self, x: np.ndarray, scaled: Sequence[str] = (), shared: tuple[int, int] = (1, 1)
    ) -> Inputs:
        found = super().inputs(x, scaled, shared)
        if found.importance is None:
            return found
        seen = x if found.factors is None else x / found.factors
        return replace(found, moment=Moment(seen, self.weights.do))

    def strength(self, paths: Sequence[str]) -> Strength:
        return _OF_TEXT if self.weights.lack_inputs(*paths) else super().strength(paths)

    def mixed(self, index: int, mixer: Attention, y: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Attention as it is, of the words that `check_words` lets pass."""
        block = f"layers.{index}.attention"
        parts = "qk" if mixer.keys_are_values else "qkv"
        paths = [f"{block}.{part}" for part in parts]
        products = self.weights.multiply(inputs, y, *paths)
        q, k, *others = map(self.projected, paths, [mixer] * len(paths), products)
        [v] = others or [k]
        q, k = self.heads(f"{block}.q_norm", mixer, q), self.heads(f"{block}.k_norm", mixer, k)
        v = v.reshape(self.passages, -1, mixer.num_kv_heads, mixer.head_dim).swapaxes(1, 2)
        if mixer.value_norm is not None:
            v = self.normed(f"{block}.v_norm", v, mixer.value_norm)
        return np.concatenate([mixed(mixer, *each) for each in zip(q, k, v, strict=True)])

    def heads(self, path: str, mixer: Attention, x: np.ndarray) -> np.ndarray:
        """Queries or keys, normalised and rotated: (all, heads d) -> (passages, heads, n, d)."""
        norm = mixer.qk_norm
        if norm is not None and norm.is_full_width:
            x = self.normed(path, x, norm.norm)
        x = x.reshape(self.passages, -1, x.shape[1] // mixer.head_dim, mixer.head_dim)
        if norm is not None and not norm.is_full_width and not norm.after_rope:
            x = self.normed(path, x, norm.norm)
        x = x.swapaxes(1, 2)
        if mixer.rope is not None:
            x = np.stack([rotated(mixer.rope, passage) for passage in x])
        return self.normed(path, x, norm.norm) if norm is not None and norm.after_rope else x


class PairedCalibration(TextCalibration):
    """The text twice, one below the other: through matrices as they are stored, and as they were.

    What the first lacks of the second is what the matrices after it are to make up for.
    """

    def __init__(self, spec: DecoderSpec, weights: Weights, text: np.ndarray) -> None:
        super().__init__(spec, weights, np.concatenate([text, text]))

    def inputs(
        self, x: np.ndarray, scaled: Sequence[str] = (), shared: tuple[int, int] = (1, 1)
    ) -> Inputs:
        stored, exact = np.split(x, 2)
        found = super().inputs(stored, scaled, shared)
        if found.moment is None:
            return found
        if found.factors is not None:
            exact = exact / found.factors
        return replace(found, moment=replace(found.moment, exact=exact))
