"""Matrices of which every number is `(code - zero) * scale + bias`, which is almost all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.base import Matrix, Part, StoredCheckpoint, damaged
from converter.checkpoint.quantized.numbers import STEP, Codebook, widened


@dataclass(frozen=True)
class Rows(Part):
    """A tensor whose rows are those of the matrix.

    Attributes:
        columns: numbers in a row.
        codebook: what its bytes stand for; None for floats.
        shared: rows of the matrix that share a row of the tensor; 0 for all.
        pieces: rows of the tensor that are one row of the matrix.
    """

    tensor: str
    columns: int
    codebook: Codebook | None = None
    shared: int = 1
    pieces: int = 1

    def read(self, stored: StoredCheckpoint, start: int, stop: int) -> np.ndarray:
        if self.shared == 0:
            return np.repeat(self._read(stored, 0, 1), stop - start, axis=0)
        first, last = start // self.shared, -(-stop // self.shared)
        found = self._read(stored, first, last)
        if self.shared == 1:
            return found
        return np.asarray(found[np.arange(start, stop) // self.shared - first])

    def _read(self, stored: StoredCheckpoint, first: int, last: int) -> np.ndarray:
        rows = first * self.pieces, last * self.pieces
        found = stored.read_stored(self.tensor, rows=rows)
        return _numbers(stored, self, found.reshape(last - first, -1))


@dataclass(frozen=True)
class Columns(Part):
    """A tensor whose columns are the rows of the matrix: `[in, out]`, or packed along `in`.

    Attributes: see `Rows`.
    """

    tensor: str
    columns: int
    codebook: Codebook | None = None

    def read(self, stored: StoredCheckpoint, start: int, stop: int) -> np.ndarray:
        tile = stored.read_stored(self.tensor, columns=(start, stop))
        return _numbers(stored, self, np.ascontiguousarray(tile.T))


def _numbers(stored: StoredCheckpoint, part: Rows | Columns, tile: np.ndarray) -> np.ndarray:
    if part.codebook is None:
        return widened(tile, stored.tensors[part.tensor].dtype)
    raw = tile.view(np.uint8).reshape(len(tile), -1)
    return part.codebook.decode(raw, part.columns)


@dataclass(frozen=True)
class PackedRows(Part):
    """Codes of neighbouring rows in words of 32 bits, along the last or the first dimension.

    Attributes:
        codebook: what the codes stand for.
        order: of which of its rows each code of a word is, where they are not in order.
        along_first: whether the tensor is `[words, k]` and not `[k, words]`.
        add: to every word before it is taken apart.
    """

    tensor: str
    codebook: Codebook
    order: Sequence[int] | None = None
    along_first: bool = False
    add: int = 0

    def read(self, stored: StoredCheckpoint, start: int, stop: int) -> np.ndarray:
        bits, shape = self.codebook.bits, stored.tensors[self.tensor].shape
        # 32 codes are whole words whatever their width.
        first, last = start // 32 * bits, min(-(-stop // 32) * bits, shape[not self.along_first])
        if self.along_first:
            words = stored.read_stored(self.tensor, rows=(first, last))
        else:
            words = stored.read_stored(self.tensor, columns=(first, last)).T
        if self.add:
            words = words.view(np.uint32) + np.uint32(self.add)  # modulo 2 ** 32
        rows = self._rows(words)
        skipped = start - start // 32 * 32
        return rows[skipped : skipped + stop - start]

    def _rows(self, words: np.ndarray) -> np.ndarray:
        """The rows in `(words, k)`: float32 `(words * 32 / bits, k)`."""
        bits = self.codebook.bits
        if 32 % bits:
            raw = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], -1)
            return self.codebook.decode(raw, len(words) * 32 // bits).T
        order = self.order or range(32 // bits)
        rows = np.empty((len(words), 32 // bits, words.shape[1]), np.float32)
        raw = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
        step = max(1, STEP // max(1, 4 * words.shape[1]))
        for start in range(0, len(words), step):
            found = self.codebook.look_up(raw[start : start + step])
            by_code = found.reshape(len(found), words.shape[1], -1)
            for code, row in enumerate(order):
                rows[start : start + step, row] = by_code[..., code]
        return rows.reshape(-1, words.shape[1])


@dataclass(frozen=True)
class Affine(Matrix):
    """`(code - zero) * scale + bias`, where a part may hold for several columns at once.

    Attributes:
        group: columns that share a number of `scale`, `zero` and `bias`.
        index: the tensor that says which of those each column takes, where they are not in order.
        factor: a tensor of one number on all scales.
        divides: whether scales are divided by `factor`.
        scaling: on all numbers.
        others: tensors that belong to it and are not read again.
    """

    info: TensorInfo
    codes: Part
    scale: Rows | Columns
    group: int
    zero: Part | None = None
    bias: Part | None = None
    index: str | None = None
    factor: str | None = None
    divides: bool = False
    scaling: float = 1.0
    others: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        named = (self.index, self.factor, *self.others)
        held = (self.codes, self.scale, self.zero, self.bias)
        return (*(p.tensor for p in held if p is not None), *(n for n in named if n is not None))

    def read(self, stored: StoredCheckpoint, start: int, stop: int, out: np.ndarray) -> None:
        out[:] = self.codes.read(stored, start, stop)
        index = self._groups(stored)
        if self.zero is not None:
            np.subtract(*self._spread(out, self.zero.read(stored, start, stop), index))
        scales = self.scale.read(stored, start, stop)
        if self.factor is not None:
            info = stored.tensors[self.factor]
            factor = widened(stored.read_stored(self.factor), info.dtype).reshape(())
            scales = scales / factor if self.divides else scales * factor
        np.multiply(*self._spread(out, scales, index))
        if self.scaling != 1:
            out *= np.float32(self.scaling)
        if self.bias is not None:
            np.add(*self._spread(out, self.bias.read(stored, start, stop), index))

    def _groups(self, stored: StoredCheckpoint) -> np.ndarray | None:
        """Which group each column is in; None where they are in order."""
        if self.index is None:
            return None
        index = stored.read_stored(self.index).reshape(-1)
        count = self.scale.columns
        if index.max(initial=-1) == -1:  # compressed-tensors, where it was never set
            return None
        if index.min() < 0 or index.max() >= count:
            raise damaged(stored, self.info.name, f"{self.index} names groups beyond {count}")
        in_order = np.arange(index.size) // self.group
        return None if np.array_equal(index, in_order) else index

    def _spread(
        self, out: np.ndarray, numbers: np.ndarray, index: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arguments for numpy: `out`, one of `numbers` for each of its values, and `out`."""
        rows, columns = out.shape
        if index is not None:
            numbers = numbers[:, index]
        elif numbers.shape[1] > 1 and columns % self.group:
            numbers = numbers.repeat(self.group, axis=1)[:, :columns]
        elif numbers.shape[1] > 1:
            out = out.reshape(rows, -1, self.group)
            numbers = numbers[..., None]
        return out, numbers, out
