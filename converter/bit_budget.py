"""Which matrices stay in int8: `--bits`, a budget of bits, spent where it saves most.

Before anything has its place in the file, a text says what each matrix loses in int4
(`converter.weights.loss_meter`). Those that lose most for the bytes that they would take more
become int8, whose own loss is a hundredth of that and counts as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converter.errors import OptionError
from converter.network import Network
from converter.weights.loss_meter import measure_losses
from converter.weights.passages import LENGTH
from converter.weights.planned_weight import PlannedWeight
from converter.weights.quantization import Format

_ROW_SCALE_BITS = 32


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


def choose(bits: float, matrices: Mapping[str, Candidate], losses: Mapping[str, float]) -> set[str]:
    """The paths of those that get their wider format.

    Args:
        bits: see `room`.
        losses: what each loses that does not; 0 where it is not named.

    Raises:
        OptionError: see `room`.
    """
    left = room(bits, matrices)
    more = {
        path: _bits(matrix.wider, matrix.shape) - _bits(matrix.format, matrix.shape)
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
