"""What a layout of quantised weights is: it finds matrices among a checkpoint's tensors.

    quantization_config --methods.py--> Layout --matrices()--> Matrix, one per quantised weight
    tensors of the file -------------------'                     `--read()--> its rows in float32

Which modules are quantised is told by their tensors; the config says how to take them.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from converter.checkpoint.base import Checkpoint, TensorInfo
from converter.errors import SourceError

Settings = Mapping[str, Any]
# Tensors that state the shape of a weight, which is known before one is read.
STATES_A_SHAPE = re.compile(r"\.(?:weight_shape|weight\.quant_state\.bitsandbytes__\w+)$")


class StoredCheckpoint(Checkpoint):
    """A checkpoint whose tensors can also be read as they are stored."""

    @abstractmethod
    def metadata(self) -> Mapping[str, str]:
        """What its files say about themselves."""

    @abstractmethod
    def read_stored(
        self,
        name: str,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """A part of a tensor as it is stored (see `numbers.NUMPY_TYPES`), `(rows, columns)`.

        Dimensions but the last are multiplied into rows; one dimension is a column of rows. Nothing
        is read but what is returned.

        Raises:
            SourceError: the file ended early or changed while it was read.
        """


class LayoutError(Exception):
    """A layout does not read what the config says; the message says what that is."""


class Layout(ABC):
    """One way in which a checkpoint's weights are quantised.

    Attributes:
        title: what people call it.
    """

    title: ClassVar[str]

    def __init__(self, settings: Settings) -> None:
        """Take the config's `quantization_config`.

        Raises:
            LayoutError: it says something that cannot be read.
        """
        self.settings = settings

    @abstractmethod
    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        """Every quantised weight.

        Raises:
            SourceError: one lacks a part, or has one of an impossible shape.
            UnsupportedError: one is stored in a way that is not read.
        """

    def is_beside(self, stored: StoredCheckpoint, name: str) -> bool:
        """Whether a tensor that is no part of a weight belongs to the quantisation alone.

        Scales of activations and of the cache, for one: the target rounds its own, or none.
        """
        return False


class Matrix(ABC):
    """A quantised weight.

    Attributes:
        info: what it is to the rest of the converter: the name of the weight, its shape, and the
            layout in place of a type.
        parts: the tensors it is made of.
    """

    info: TensorInfo
    parts: tuple[str, ...]

    @abstractmethod
    def read(self, stored: StoredCheckpoint, start: int, stop: int, out: np.ndarray) -> None:
        """Fill `out`, float32 `(stop - start, columns)`, with rows; memory is that of a block."""


class Part(ABC):
    """Numbers that belong to the rows of a matrix: its codes, their scales, their zeros.

    Attributes:
        tensor: where they are stored.
    """

    tensor: str

    @abstractmethod
    def read(self, stored: StoredCheckpoint, start: int, stop: int) -> np.ndarray:
        """Those of rows `start:stop`, float32 `(stop - start, k)`."""


def as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of a stored tensor, as `StoredCheckpoint.read_stored` counts them."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]


def part_of(stored: StoredCheckpoint, weight: str, name: str) -> TensorInfo:
    """The tensor `name`, which is part of `weight`.

    Raises:
        SourceError: there is none.
    """
    found = stored.tensors.get(name)
    if found is None:
        raise damaged(stored, weight, f"{name} is missing")
    return found


def damaged(stored: StoredCheckpoint, weight: str, why: str) -> SourceError:
    """A quantised weight whose tensors contradict each other or the config."""
    return SourceError(
        f"{stored.path}: {weight}",
        f"its quantised tensors do not fit together: {why}",
        "fetch the model again, or check that config.json belongs to these weights",
    )


def wrong_shape(
    stored: StoredCheckpoint, weight: str, part: TensorInfo, expected: object
) -> SourceError:
    return damaged(
        stored, weight, f"{part.name} is {part.dtype} {list(part.shape)}, not {expected}"
    )
