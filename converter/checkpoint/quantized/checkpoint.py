"""A checkpoint of quantised weights as one of plain numbers: nothing above it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.base import Checkpoint, TensorInfo, room_for
from converter.checkpoint.quantized.base import (
    Layout,
    Matrix,
    StoredCheckpoint,
    as_rows,
    damaged,
)


class QuantizedCheckpoint(Checkpoint):
    """The weights of `checkpoint`, with those that `layout` finds in place of their parts.

    Raises:
        SourceError, UnsupportedError: see `Layout.matrices`.
    """

    def __init__(self, checkpoint: StoredCheckpoint, layout: Layout) -> None:
        self._checkpoint = checkpoint
        self._matrices: dict[str, Matrix] = {
            matrix.info.name: matrix for matrix in layout.matrices(checkpoint)
        }
        parts = {part for matrix in self._matrices.values() for part in matrix.parts}
        for name in self._matrices:
            if name in checkpoint.tensors and name not in parts:
                raise damaged(checkpoint, name, "it is there in plain numbers, too")
        self.path, self.format = checkpoint.path, checkpoint.format
        self.quantization = layout.title if self._matrices else None
        self.config: dict[str, Any] = checkpoint.config
        self.generation_config = checkpoint.generation_config
        self.tensors: dict[str, TensorInfo] = {
            name: info
            for name, info in checkpoint.tensors.items()
            if name not in parts and not layout.is_beside(checkpoint, name)
        } | {matrix.info.name: matrix.info for matrix in self._matrices.values()}

    @property
    def files(self) -> Sequence[Path]:
        return self._checkpoint.files

    def read_rows(
        self,
        name: str,
        start: int,
        stop: int,
        buffer: np.ndarray | None = None,
        keep_bf16: bool = False,
    ) -> np.ndarray:
        """Read rows `start:stop` as float32, `(stop - start, columns)`; see `Checkpoint.read_rows`.

        Raises:
            IndexError: the matrix does not have these rows.
        """
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._checkpoint.read_rows(name, start, stop, buffer, keep_bf16)
        rows, columns = as_rows(matrix.info.shape)
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start}:{stop} of {name}, which has {rows}")
        out = room_for((stop - start) * columns, buffer).reshape(stop - start, columns)
        if start < stop:
            matrix.read(self._checkpoint, start, stop, out)
        return out

    def read_columns(
        self, name: str, first_row: int, last_row: int, start: int, stop: int
    ) -> np.ndarray:
        if name in self._matrices:
            return super().read_columns(name, first_row, last_row, start, stop)
        return self._checkpoint.read_columns(name, first_row, last_row, start, stop)

    def check_unchanged(self) -> None:
        self._checkpoint.check_unchanged()

    def close(self) -> None:
        self._checkpoint.close()
