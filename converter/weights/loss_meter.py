"""What each matrix of a network loses in blocks of int4, as a text says.

The text goes through the network in float. Every block that adds to the residual stream is taken
again for each of its matrices that is to be int4, with that one rounded: how far the stream moves,
as a share of it, is what the matrix loses. What comes later scales both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.decoder import DecoderSpec, Experts, FeedForward, LayerSpec, Mixer
from converter.weights.inputs import Inputs
from converter.weights.planned_weight import PlannedWeight
from converter.weights.row_format import Clip
from converter.weights.text_calibration import TextCalibration
from converter.weights.weight_reader import WeightReader
from converter.workers import Workers

# Passages of the text that measure: what is asked is which matrix loses more, not how much.
_PASSAGES = 2
# Of the head, whose products are wide, every so many tokens.
_SPARSE = 32
_TINY = np.finfo(np.float32).tiny


def measure_losses(
    checkpoint: Checkpoint,
    name: str,
    spec: DecoderSpec,
    weights: Sequence[PlannedWeight],
    text: np.ndarray,
    threads: int,
) -> dict[str, float]:
    """What each matrix loses that is stored in blocks of int4, as a share of the residual stream.

    Args:
        weights: of the whole network; where they go is not looked at.
        text: passages of tokens, `(passages, n)`.

    Raises:
        LiteRTLMError: see `converter.weights.stream.WeightStream`.
    """
    with Workers(threads) as workers:
        meter = _Meter(checkpoint, name, weights, workers)
        _Measured(spec, meter, text[:: -(-len(text) // _PASSAGES)]).run()
    return meter.losses


class _Measured(TextCalibration):
    """A text on its way, which takes every block again for each matrix in it, rounded."""

    def __init__(self, spec: DecoderSpec, meter: _Meter, text: np.ndarray) -> None:
        super().__init__(spec, meter, text)
        self.meter = meter

    def mixer_block(self, index: int, layer: LayerSpec, mixer: Mixer, x: np.ndarray) -> np.ndarray:
        return self.measured(partial(super().mixer_block, index, layer, mixer, x))

    def feed_block(
        self, index: int, feed_forward: FeedForward | Experts, x: np.ndarray
    ) -> np.ndarray:
        return self.measured(partial(super().feed_block, index, feed_forward, x))

    def measured(self, block: Callable[[], np.ndarray]) -> np.ndarray:
        """What a block makes of the residual stream; the meter keeps what its matrices lose."""
        exact = block()
        for path in self.meter.met():
            self.meter.compare(path, block, exact)
        self.meter.forget()
        return exact


class _Meter(WeightReader):
    """Weights that are stored nowhere: products with them in float, or with one of them rounded.

    Products with the same inputs are made once, until they are forgotten.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, weights: Sequence[PlannedWeight], workers: Workers
    ) -> None:
        super().__init__(checkpoint, name, weights, Clip.MSE)
        self._workers = workers
        self.losses: dict[str, float] = {}
        self._packed = ThreadBuffer(np.int8)
        self._made: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # inputs and products
        self._rounded: str | None = None

    def met(self) -> list[str]:
        """The matrices in blocks of int4 that were met since all was forgotten."""
        return [path for path in self._made if self._whole(path).format.takes_importance]

    def forget(self) -> None:
        self._made.clear()

    def compare(self, path: str, make: Callable[[], np.ndarray], exact: np.ndarray) -> None:
        """Keep how far what is made is from `exact` while a matrix is rounded: a share of it."""
        self._rounded = path
        error = make() - exact
        self._rounded = None
        self.losses[path] = float((_power(error) / np.maximum(_power(exact), _TINY)).mean())

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        return [self._product(path, inputs, x) for path in paths]

    def store(self, inputs: Inputs, *paths: str) -> None:
        """Of the head, which is all that is stored for itself: what it loses."""
        for path in paths:
            if self._whole(path).format.takes_importance:
                assert inputs.moment is not None
                x = inputs.moment.inputs[::_SPARSE]
                x = x if inputs.factors is None else x * inputs.factors
                make = partial(self._product, path, inputs, x)
                self.compare(path, make, make())

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        pass

    def _product(self, path: str, inputs: Inputs, x: np.ndarray) -> np.ndarray:
        is_rounded = path == self._rounded
        if path in self._made and not is_rounded:
            before, product = self._made[path]
            if np.array_equal(before, x):
                return product.copy()  # whoever gets it may change it
        weight = self._whole(path)
        product = np.empty((len(x), weight.shape[0]), np.float32)

        def fill(start: int, stop: int) -> None:
            rows = self._read(weight, start, stop)
            if is_rounded:
                rows = self._round(weight, inputs, rows)
            np.matmul(x, rows.T, out=product[:, start:stop])

        self._workers.do(partial(fill, *block) for block in weight.row_blocks())
        self._made.setdefault(path, (x.copy(), product.copy()))
        return product

    def _round(self, weight: PlannedWeight, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Rows as they would be stored, but that columns do not make up for each other."""
        stored_block = weight.stored_block if weight.carries_blocks else None
        packed, scales = self._pack(weight.format, rows, inputs, self._packed, stored_block)
        rounded = weight.format.widened(packed, scales)
        return rounded if inputs.factors is None else rounded / inputs.factors


def _power(x: np.ndarray) -> np.ndarray:
    """The sum of squares of each row."""
    found: np.ndarray = np.einsum("nc,nc->n", x, x)
    return found
