"""bitsandbytes: int8 with a scale per row, and 4 bits in blocks of the flattened matrix.

int8    `weight` int8, `SCB` float32 `[out]`: `q * SCB / 127`
4 bits  `weight` `[n / 2, 1]` bytes with the first code in the upper half, `weight.absmax` of every
        block, `weight.quant_map` of what the 16 codes stand for, and the shape as JSON in
        `weight.quant_state.bitsandbytes__nf4` (or fp4). With double quantisation `absmax` is codes
        again: `nested_quant_map[absmax] * nested_absmax + nested_offset`

Source: `QuantState` and `Linear8bitLt` of bitsandbytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.affine import Affine, Rows
from converter.checkpoint.quantized.base import (
    Layout,
    Matrix,
    StoredCheckpoint,
    damaged,
    part_of,
    wrong_shape,
)
from converter.checkpoint.quantized.numbers import INT8, Codebook

_STATE = ".quant_state.bitsandbytes__"
_STEP = 1 << 18  # numbers that are looked up at once


@dataclass(frozen=True)
class FlatBlocks(Matrix):
    """A matrix of 4-bit codes whose blocks do not care where a row ends.

    Attributes:
        block: numbers that share an `absmax`.
        nested_block: of those, how many share a `nested_absmax`; None where they are floats.
        offset: added to those that are codes.
    """

    info: TensorInfo
    block: int
    nested_block: int | None = None
    offset: float = 0.0

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            f"{self.info.name}{part}"
            for part in ("", ".absmax", ".quant_map", f"{_STATE}{self._kind}", *self._nested)
        )

    @property
    def _kind(self) -> str:
        return self.info.dtype.rpartition(" ")[2]

    @property
    def _nested(self) -> tuple[str, ...]:
        return () if self.nested_block is None else (".nested_absmax", ".nested_quant_map")

    def read(self, stored: StoredCheckpoint, start: int, stop: int, out: np.ndarray) -> None:
        columns, flat = self.info.shape[1], out.reshape(-1)
        book = Codebook(4, self._floats(stored, ".quant_map"), high_first=True)
        first = start * columns
        for begin in range(0, flat.size, _STEP):
            piece = flat[begin : begin + _STEP]
            self._read_flat(stored, book, first + begin, piece)

    def _read_flat(
        self, stored: StoredCheckpoint, book: Codebook, start: int, out: np.ndarray
    ) -> None:
        """Numbers from `start` on of the flattened matrix."""
        stop = start + out.size
        info = stored.tensors[self.info.name]
        size = info.nbytes // (info.shape[0] or 1)  # of an element of the column that it is
        cells = start // 2 // size, -(-stop // (2 * size))
        raw = stored.read_stored(info.name, rows=cells).view(np.uint8).reshape(1, -1)
        skipped = start - cells[0] * 2 * size
        out[:] = book.decode(raw, raw.size * 2)[0, skipped : skipped + out.size]
        blocks = start // self.block, -(-stop // self.block)
        scales = self._scales(stored, *blocks).repeat(self.block)
        skipped = start - blocks[0] * self.block
        out *= scales[skipped : skipped + out.size]

    def _scales(self, stored: StoredCheckpoint, start: int, stop: int) -> np.ndarray:
        found = stored.read_stored(f"{self.info.name}.absmax", rows=(start, stop)).reshape(-1)
        if self.nested_block is None:
            return found.astype(np.float32)
        values = self._floats(stored, ".nested_quant_map")[found]
        first, last = start // self.nested_block, -(-stop // self.nested_block)
        nested = stored.read_stored(f"{self.info.name}.nested_absmax", rows=(first, last))
        each = nested.reshape(-1).repeat(self.nested_block)
        skipped = start - first * self.nested_block
        scaled: np.ndarray = values * each[skipped : skipped + values.size]
        return scaled + np.float32(self.offset)

    def _floats(self, stored: StoredCheckpoint, part: str) -> np.ndarray:
        return stored.read_stored(f"{self.info.name}{part}").reshape(-1).astype(np.float32)


class BitsAndBytes(Layout):
    """See the module's docstring."""

    title = "bitsandbytes"

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, codes in stored.tensors.items():
            if not name.endswith(".weight"):
                continue
            if f"{name}.absmax" in stored.tensors or codes.dtype == "U8":
                yield self._flat(stored, name, codes)
            elif codes.dtype == "I8":
                yield self._int8(stored, name, codes)

    def _int8(self, stored: StoredCheckpoint, weight: str, codes: TensorInfo) -> Matrix:
        module = weight.removesuffix("weight")
        scales = part_of(stored, weight, f"{module}SCB")
        if len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, "a matrix")
        if scales.shape != codes.shape[:1] or scales.dtype != "F32":
            raise wrong_shape(stored, weight, scales, f"F32 [{codes.shape[0]}]")
        order = stored.tensors.get(f"{module}weight_format")
        if order is not None and stored.read_stored(order.name).any():
            raise damaged(stored, weight, f"{order.name} is not 0, which stands for rows")
        return Affine(
            TensorInfo(weight, codes.shape, f"{self.title} int8", codes.nbytes + scales.nbytes),
            codes=Rows(weight, codes.shape[1], INT8),
            scale=Rows(scales.name, 1),
            group=codes.shape[1],
            scaling=1 / 127,
            others=() if order is None else (order.name,),
        )

    def _flat(self, stored: StoredCheckpoint, weight: str, codes: TensorInfo) -> Matrix:
        states = [name for name in stored.tensors if name.startswith(weight + _STATE)]
        if len(states) != 1:
            raise damaged(stored, weight, f"{weight}{_STATE}nf4 is missing")
        absmax = part_of(stored, weight, f"{weight}.absmax")
        quant_map = part_of(stored, weight, f"{weight}.quant_map")
        state = _parse(stored, weight, states[0])
        shape = state.get("shape")
        block = state.get("blocksize")
        if not (
            isinstance(shape, list)
            and len(shape) == 2
            and all(type(n) is int and n > 0 for n in shape)
            and type(block) is int
            and block > 0
        ):
            raise damaged(stored, weight, f"{states[0]} states no shape or blocksize")
        rows, columns = shape
        if codes.nbytes != -(-rows * columns // 2) or len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, f"the {rows} * {columns} / 2 bytes of {shape}")
        count = -(-rows * columns // block)
        if absmax.shape != (count,):
            raise wrong_shape(stored, weight, absmax, f"[{count}]")
        if quant_map.shape != (16,):
            raise wrong_shape(stored, weight, quant_map, "[16]")
        info = TensorInfo(
            weight,
            (rows, columns),
            f"{self.title} {states[0].rpartition('__')[2]}",
            codes.nbytes + absmax.nbytes,
        )
        if absmax.dtype == "F32":
            return FlatBlocks(info, block)
        nested_block, offset = state.get("nested_blocksize"), state.get("nested_offset")
        nested = part_of(stored, weight, f"{weight}.nested_absmax")
        values = part_of(stored, weight, f"{weight}.nested_quant_map")
        if absmax.dtype != "U8" or values.shape != (256,):
            raise wrong_shape(stored, weight, values, "[256], of absmax in U8")
        if type(nested_block) is not int or nested_block < 1 or not isinstance(offset, float | int):
            raise damaged(
                stored, weight, f"{states[0]} states no nested_blocksize or nested_offset"
            )
        if nested.shape != (-(-count // nested_block),):
            raise wrong_shape(stored, weight, nested, f"[{-(-count // nested_block)}]")
        return FlatBlocks(info, block, nested_block, float(offset))


def _parse(stored: StoredCheckpoint, weight: str, name: str) -> dict[str, Any]:
    """The JSON that a tensor of bytes holds."""
    try:
        found = json.loads(stored.read_stored(name).tobytes())
    except ValueError as error:
        raise damaged(stored, weight, f"{name} is not JSON ({str(error)[:80]})") from error
    return found if isinstance(found, dict) else {}
