"""What every source of weights looks like to the rest of the converter.

A checkpoint is a config, named tensors that can be read by row blocks, and the files of its
tokenizer. Whether it came from the hub, a folder of safetensors or a GGUF file ends here.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class ThreadBuffer(threading.local):
    """Memory that a thread uses again and again, one array of `dtype` for each."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._array = np.empty(0, dtype)

    def of_size(self, count: int) -> np.ndarray:
        """Room for `count` values, with whatever stands there; valid until the next call."""
        if self._array.size < count:
            # A power of two: of what grows by a little at a time, each size would leave a hole.
            # Memory that nobody has touched costs nothing.
            self._array = np.empty(1 << (count - 1).bit_length(), self._array.dtype)
        return self._array[:count]


def room_for(count: int, buffer: np.ndarray | None) -> np.ndarray:
    """The first `count` values of `buffer`, or new float32 memory where it is too small."""
    if buffer is not None and buffer.size >= count:
        return buffer[:count]
    return np.empty(count, np.float32)


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        shape: rows first.
        dtype: stored type (`BF16`, `Q4_K`), or how it is quantised (`GPTQ 4-bit`).
        nbytes: size there.
        int4_block: columns that share a scale, where the stored numbers are -8 to 7 times one that
            float16 holds; None where they are not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    int4_block: int | None = None


class Checkpoint(ABC):
    """A readable model.

    Attributes:
        path: the folder or file it was opened from.
        format: `safetensors` or `gguf`; families use it to choose a column of their name table.
        config: the model's config with Hugging Face's keys (`hidden_size`, ...). A GGUF's metadata
            is translated to them, and `model_type` holds its `general.architecture`.
        generation_config: the contents of generation_config.json, or {}.
        tensors: every tensor in the checkpoint, by the name it has there.
        quantization: how the tensors were quantised that are presented here as plain numbers
            (`GPTQ`); None where none were. Of a GGUF the types of its tensors tell.
    """

    path: Path
    format: str
    quantization: str | None = None
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Everything that a conversion reads of it."""

    @abstractmethod
    def read_rows(
        self,
        name: str,
        start: int,
        stop: int,
        buffer: np.ndarray | None = None,
        keep_bf16: bool = False,
    ) -> np.ndarray:
        """Read rows `start:stop` of a tensor as float32, shape `(stop - start, columns)`.

        A tensor of one dimension is one row: shape `(1, n)`. Never reads more than it returns, and
        may be called from several threads at once. The result lies in `buffer`, float32 and of one
        dimension, where one is given that is large enough: fresh memory costs as much as the
        reading. With `keep_bf16`, BF16 may come as it is stored, uint16, valid until the thread's
        next call.

        Raises:
            SourceError: the file ended early or changed while it was read.
        """

    def read_columns(
        self, name: str, first_row: int, last_row: int, start: int, stop: int
    ) -> np.ndarray:
        """Columns `start:stop` of some rows as float32: `(stop - start, last_row - first_row)`.

        For tensors that hold a matrix transposed. A checkpoint that can reads nothing else.

        Raises:
            SourceError: see `read_rows`.
        """
        return self.read_rows(name, first_row, last_row)[:, start:stop].T

    @abstractmethod
    def check_unchanged(self) -> None:
        """Make sure that what was read is one state of the files.

        Raises:
            SourceError: size or time of a file changed since it was opened.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the files."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
