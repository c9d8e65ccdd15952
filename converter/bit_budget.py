"""Which matrices get more than four bits: `--bits`, a budget of bits, spent where it saves most.

Before anything has its place in the file, a text says what each matrix loses in int4, or in int6
where `--quantize` begins there (`converter.weights.loss_meter`). Those that lose most for the bytes
that they would take more become int6, and then int8. What they lose there is taken for a share of
that, the same for all.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from converter.errors import OptionError
from converter.network import Network
from converter.weights.loss_meter import measure_losses
from converter.weights.passages import LENGTH
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import (
    INT2_IN_BYTE,
    INT6,
    INT6_TWO_TERMS,
    INT8,
    INT8_TWO_TERMS,
    Format,
)

_ROW_SCALE_BITS = 32
# Of what a matrix loses in int4, where columns make up for each other's errors in both
# (benchmarks/README.md); int8's hundredth counts as none.
_LOST_IN_INT6 = 0.2


@dataclass(frozen=True)
class Candidate:
    """A matrix of the network.

    Attributes:
        shape: (rows, columns).
        format: that `--quantize` gives it.
        wider: those that it may have instead, and the share of its loss that each leaves, from the
            smallest to the largest; none where `--quantize` is obeyed.
    """

    shape: tuple[int, int]
    format: Format
    wider: tuple[tuple[Format, float], ...] = ()

    def steps(self) -> Iterator[tuple[Format, float, int]]:
        """From each format to the next: that, the share of the loss saved, and bits for it."""
        form, lost = self.format, 1.0
        for wider, left in self.wider:
            yield wider, lost - left, _bits(wider, self.shape) - _bits(form, self.shape)
            form, lost = wider, left


def room(bits: float, matrices: Mapping[str, Candidate]) -> float:
    """Bits that a budget leaves where all have the format that `--quantize` gives them.

    Args:
        bits: of a weight on average, scales included, that all matrices may take.

    Raises:
        OptionError: they take more than that as it is.
    """
    taken = sum(_bits(matrix.format, matrix.shape) for matrix in matrices.values())
    values = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
    if taken > bits * values:
        least = -(-taken * 100 // values) / 100  # rounded up
        raise OptionError(
            f"--bits {bits:g}",
            f"the matrices take {least:g} bits a weight with nothing but what --quantize says",
            f"say --bits {least:g} or more, or a smaller scheme for the largest part, as in "
            "--quantize dynamic_int4,embedding=dynamic_int4",
        )
    return bits * values - taken


def choose(
    bits: float, matrices: Mapping[str, Candidate], losses: Mapping[str, float]
) -> dict[str, Format]:
    """The formats of those that get a wider one.

    Args:
        bits: see `room`.
        losses: what each loses in the format that it has; 0 where it is not named.

    Raises:
        OptionError: see `room`.
    """
    left = room(bits, matrices)
    chosen: dict[str, Format] = {}
    # By what the next step of each saves for its bits; of several the first.
    waiting: list[tuple[float, int, str, Format, int]] = []
    steps = {path: matrix.steps() for path, matrix in matrices.items()}
    numbers = {path: number for number, path in enumerate(matrices)}

    def wait(path: str) -> None:
        for form, saved, more in steps[path]:
            gain = losses.get(path, 0.0) * saved / more
            heapq.heappush(waiting, (-gain, numbers[path], path, form, more))
            return

    for path in matrices:
        wait(path)
    while waiting:
        _, _, path, form, more = heapq.heappop(waiting)
        if more <= left:
            chosen[path] = form
            left -= more
            wait(path)
    return chosen


def matrices_of(
    shapes: Mapping[str, tuple[int, ...]],
    formats: Mapping[str, Format],
    has_int6: bool,
) -> dict[str, Candidate]:
    """All matrices of a network; those that are in int4 or int6 may have a wider format.

    What they are multiplied by comes in two terms there, if it does so anywhere.

    Args:
        formats: that `--quantize` gives them.
        has_int6: whether int6 may be between int4 and int8.
    """
    found = {}
    two_terms = any(form.takes_two_terms for form in formats.values())
    between, wider = (INT6_TWO_TERMS, INT8_TWO_TERMS) if two_terms else (INT6, INT8)
    for path, shape in shapes.items():
        if len(shape) == 2:
            rows, columns = shape
            may_be: tuple[tuple[Format, float], ...] = ()
            if formats[path].takes_importance:
                may_be = ((wider, 0.0),)
            if formats[path].block is not None and has_int6 and columns % INT2_IN_BYTE == 0:
                may_be = ((between, _LOST_IN_INT6), *may_be)
            found[path] = Candidate((rows, columns), formats[path], may_be)
    return found


def told(matrices: Mapping[str, Candidate], chosen: Mapping[str, Format]) -> str:
    """What came of a choice, for `inspect` and others."""
    taken = values = 0
    names = Counter[str]()
    for path, matrix in matrices.items():
        form = chosen.get(path, matrix.format)
        taken += _bits(form, matrix.shape)
        values += matrix.shape[0] * matrix.shape[1]
        names[form.dtype_name] += bool(matrix.wider)
    counted = (f"{names[name]} in {name}" for name in ("int8", "int6", "int4") if names[name])
    return f"{taken / values:.2f}; of {names.total()} matrices {', '.join(counted)}"


def _bits(form: Format, shape: tuple[int, int]) -> int:
    """Of a whole matrix and its scales."""
    weight = form.weight("", shape)
    scales = sum(one.quantized for one in (weight, weight.rest) if one)
    return weight.streamed_nbytes * 8 + _ROW_SCALE_BITS * shape[0] * scales


def losses_of(
    network: Network, formats: Mapping[str, Format], text: np.ndarray, threads: int
) -> dict[str, float]:
    """What matrices lose: see `measure_losses`."""
    weights = [
        PlannedWeight(
            path,
            network.sources[path],
            *network.stored_as(path),
            shape,
            formats[path],
            nbytes=0,
            offset=0,
            updates=network.updates.get(path, ()),
        )
        for path, shape in network.shapes.items()
    ]
    spec = network.spec(LENGTH)
    return measure_losses(network.checkpoint, network.name, spec, weights, text, threads)
