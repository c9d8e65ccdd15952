"""Which matrices stay in int8: `--bits`, a budget of bits, spent where it saves most.

A text goes through the network in float, before anything has its place in the file. Of each matrix
that is to be int4 it says what that would lose: how large the error is beside what the matrix
gives, and how much of the residual stream the update is that this is part of, token by token. That
is the noise which the matrix adds to the stream, as a share of it; what comes later scales both
alike. The matrices that save most of it for their bytes become int8, whose own loss is a hundredth
of that and counts as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.decoder import DecoderSpec
from converter.errors import OptionError
from converter.weights.calibration import Inputs, TextCalibration
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import Format
from converter.weights.row_format import Clip
from converter.weights.weight_reader import WeightReader
from converter.weights.workers import Workers

# Passages of the text that measure: what is asked is which matrix loses more, not how much.
_PASSAGES = 2
_ROW_SCALE_BITS = 32
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Candidate:
    """A matrix of the network.

    Attributes:
        shape: (rows, columns).
        format: that `--quantize` gives it.
        wider: that it may have instead; None where `--quantize` is obeyed.
    """

    shape: tuple[int, int]
    format: Format
    wider: Format | None = None


def choose(bits: float, matrices: Mapping[str, Candidate], losses: Mapping[str, float]) -> set[str]:
    """The paths of those that get their wider format.

    Args:
        bits: of a weight on average, scales included, that all matrices may take.
        losses: what each loses that does not; 0 where it is not named.

    Raises:
        OptionError: they take more than that as it is.
    """
    narrow = {path: _bits(matrix.format, matrix.shape) for path, matrix in matrices.items()}
    values = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
    left = bits * values - sum(narrow.values())
    if left < 0:
        least = -(-sum(narrow.values()) * 100 // values) / 100  # rounded up
        raise OptionError(
            f"--bits {bits:g}",
            f"the matrices take {least:g} bits a weight with nothing but what --quantize says",
            f"say --bits {least:g} or more, or a smaller scheme for the largest part, as in "
            "--quantize dynamic_int4,embedding=dynamic_int4",
        )
    more = {
        path: _bits(matrix.wider, matrix.shape) - narrow[path]
        for path, matrix in matrices.items()
        if matrix.wider is not None
    }
    chosen = set()
    for path in sorted(more, key=lambda path: -losses.get(path, 0.0) / more[path]):
        if more[path] <= left:
            chosen.add(path)
            left -= more[path]
    return chosen


def matrices_of(
    shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format], wider: Format
) -> dict[str, Candidate]:
    """All matrices of a network; those that are in int4 may have a wider format."""
    return {
        path: Candidate(
            (shape[0], shape[1]), formats[path], wider if formats[path].block is not None else None
        )
        for path, shape in shapes.items()
        if len(shape) == 2
    }


def told(matrices: Mapping[str, Candidate], chosen: set[str]) -> str:
    """What came of a choice, for `inspect` and others."""
    taken = values = 0
    for path, matrix in matrices.items():
        form = matrix.wider if path in chosen else matrix.format
        assert form is not None
        taken += _bits(form, matrix.shape)
        values += matrix.shape[0] * matrix.shape[1]
    candidates = sum(matrix.wider is not None for matrix in matrices.values())
    return f"{taken / values:.2f}; {len(chosen)} of {candidates} matrices in int8, not int4"


def _bits(form: Format, shape: tuple[int, int]) -> int:
    """Of a whole matrix and its scales."""
    weight = form.weight("", shape)
    scales = weight.scales.nbytes * 8 if weight.scales else 0
    return weight.nbytes * 8 + scales + (_ROW_SCALE_BITS * shape[0] if weight.quantized else 0)


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
    meter = _Meter(checkpoint, name, weights, Clip.MSE)
    with meter.working(threads):
        _Measured(spec, meter, text[:: -(-len(text) // _PASSAGES)]).run()
        meter.weigh(np.float32(1))  # the head: what it gives is all that there is
    return meter.losses


class _Measured(TextCalibration):
    """A text on its way, and the meter is told what became of a block's update."""

    def __init__(self, spec: DecoderSpec, meter: _Meter, text: np.ndarray) -> None:
        super().__init__(spec, meter, text)
        self.meter = meter

    def add(self, x: np.ndarray, update: np.ndarray) -> np.ndarray:
        x = super().add(x, update)
        self.meter.weigh(_power(update * np.float32(self.spec.residual_scale or 1)) / _power(x))
        return x


class _Meter(WeightReader):
    """Weights that are stored nowhere: what calibration asks of them is answered in float."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, weights: Sequence[PlannedWeight], clip: Clip
    ) -> None:
        super().__init__(checkpoint, name, weights, clip)
        self.losses: dict[str, float] = {}
        self._errors: dict[str, np.ndarray] = {}  # of the block's matrices, `(n,)`
        self._packed = ThreadBuffer(np.int8)

    def working(self, threads: int) -> Workers:
        """Threads that answer, for as long as they are entered."""
        self._workers = Workers(threads)
        return self._workers

    def weigh(self, shares: np.ndarray | np.float32) -> None:
        """Of a block that is through: how much of the residual stream it is, `(n,)`."""
        for path, errors in self._errors.items():
            self.losses[path] = float((errors * shares).mean())
        self._errors.clear()

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        products = []
        for path in paths:
            product = np.empty((len(x), self._whole(path).shape[0]), np.float32)
            self._errors[path] = self._error(path, inputs, x, product)
            products.append(product)
        return products

    def store(self, inputs: Inputs, *paths: str) -> None:
        """Of these, the head alone gives something by itself; its product has no room."""
        for path in paths:
            assert inputs.moment is not None
            x = inputs.moment.inputs * (1 if inputs.factors is None else inputs.factors)
            self._errors[path] = self._error(path, inputs, x)

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        pass

    def _error(
        self, path: str, inputs: Inputs, x: np.ndarray, product: np.ndarray | None = None
    ) -> np.ndarray:
        """The squared error of a product, token by token, as a share of its square, `(n,)`."""
        weight = self._whole(path)
        blocks = list(weight.row_blocks())
        squares = np.zeros((len(blocks), 2, len(x)), np.float32)
        self._workers.do(
            partial(self._block, weight, inputs, x, product, squares[i], *block)
            for i, block in enumerate(blocks)
        )
        power, lost = squares.sum(axis=0)
        found: np.ndarray = lost / np.maximum(power, _TINY)
        return found

    def _block(
        self,
        weight: PlannedWeight,
        inputs: Inputs,
        x: np.ndarray,
        product: np.ndarray | None,
        squares: np.ndarray,
        start: int,
        stop: int,
    ) -> None:
        """Rows of a product, and the squares of it and of its errors, summed token by token."""
        rows = self._read(weight, start, stop)
        made = x @ rows.T
        squares[0] = _power(made)
        if product is not None:
            product[:, start:stop] = made
        if not weight.format.takes_importance:
            return
        stored_block = weight.stored_block if weight.carries_blocks else None
        packed, scales = self._pack(weight.format, rows.copy(), inputs, self._packed, stored_block)
        rounded = weight.format.widened(packed, scales)
        if inputs.factors is not None:
            rounded /= inputs.factors
        rounded -= rows
        squares[1] = _power(x @ rounded.T)


def _power(x: np.ndarray) -> np.ndarray:
    """The sum of squares of each row."""
    found: np.ndarray = np.einsum("nc,nc->n", x, x)
    return found
