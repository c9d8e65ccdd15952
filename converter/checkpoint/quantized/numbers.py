"""From stored codes to numbers: every layout packs small integers that stand for floats.

A code is `bits` wide, and codes follow one another from the lowest bit of the first byte on (little
endian, across bytes where 8 is no multiple of `bits`). What it stands for is a table: integers with
and without a sign, and the small floats of the OCP specifications
(https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from converter.kernels import widen_bf16

STEP = 1 << 16  # bytes that are looked up at once: numpy makes eight of each
# How several float32 are called where they are moved as one.
_AT_ONCE: dict[int, type[np.generic]] = {2: np.complex64, 4: np.complex128}
# What a stored type is to numpy; those that it does not have, as their bits.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F64": np.float64,
    "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)
class Codebook:
    """What codes stand for.

    Attributes:
        bits: width of a code, 1 to 8.
        values: float32, one per code, `(2 ** bits,)`.
        high_first: whether the first of the codes in a byte has its upper bits (bitsandbytes).
    """

    bits: int
    values: np.ndarray
    high_first: bool = False

    @cached_property
    def _by_byte(self) -> np.ndarray:
        """The numbers in every byte, float32 `(256, 8 / bits)`."""
        shifts = np.arange(0, 8, self.bits)
        codes = np.arange(256)[:, None] >> (shifts[::-1] if self.high_first else shifts)
        return np.ascontiguousarray(self.values[codes & (1 << self.bits) - 1])

    def look_up(self, raw: np.ndarray) -> np.ndarray:
        """The numbers in bytes, where a byte holds whole codes: float32 `(*shape, 8 / bits)`."""
        table = self._by_byte
        wide = _AT_ONCE.get(table.shape[1])
        if wide is None:
            return np.asarray(table[raw])
        found: np.ndarray = table.view(wide)[raw, 0]
        return found.view(np.float32).reshape(*raw.shape, table.shape[1])

    def decode(self, raw: np.ndarray, columns: int, out: np.ndarray | None = None) -> np.ndarray:
        """The numbers of rows of codes, float32 `(n, columns)`.

        Args:
            raw: uint8 `(n, bytes)`.
            out: where they go.
        """
        if out is None:
            out = np.empty((len(raw), columns), np.float32)
        if 8 % self.bits:
            self._decode_across(raw, out)
            return out
        step = max(1, STEP // max(1, raw.shape[1]))
        for start in range(0, len(raw), step):
            found = self.look_up(raw[start : start + step])
            out[start : start + step] = found.reshape(len(found), -1)[:, :columns]
        return out

    def _decode_across(self, raw: np.ndarray, out: np.ndarray) -> None:
        """The same for codes that lie across bytes."""
        columns = out.shape[1]
        step = max(1, STEP // max(1, 8 * raw.shape[1]))
        weights = 1 << np.arange(self.bits, dtype=np.uint8)
        for start in range(0, len(raw), step):
            found = np.unpackbits(
                raw[start : start + step], axis=1, count=columns * self.bits, bitorder="little"
            )
            codes = found.reshape(len(found), columns, self.bits) @ weights
            out[start : start + step] = self.values[codes]


def unsigned(bits: int, less: int = 0) -> Codebook:
    """Integers from `-less` on."""
    return Codebook(bits, np.arange(1 << bits, dtype=np.float32) - less)


def symmetric(bits: int) -> Codebook:
    """Integers from `-2 ** (bits - 1)` on: the code of 0 is in the middle."""
    return unsigned(bits, 1 << bits - 1)


def _small_floats(exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    """All floats of a format without infinity, in the order of their codes."""
    codes = np.arange(1 << 1 + exponent_bits + mantissa_bits)
    mantissa = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    size = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias)
    )
    return np.where(codes >> exponent_bits + mantissa_bits, -size, size).astype(np.float32)


def _e4m3() -> np.ndarray:
    values = _small_floats(4, 3, 7)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> np.ndarray:
    values = _small_floats(5, 2, 15)
    values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return values


def _e8m0() -> np.ndarray:
    return np.append(np.exp2(np.arange(255) - 127.0), np.nan).astype(np.float32)


INT8 = Codebook(8, np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32))
E2M1 = Codebook(4, _small_floats(2, 1, 1))
E4M3 = Codebook(8, _e4m3())
E5M2 = Codebook(8, _e5m2())
E8M0 = Codebook(8, _e8m0())
# Of stored types whose codes are bytes and speak for themselves.
BY_TYPE = {"I8": INT8, "F8_E4M3": E4M3, "F8_E5M2": E5M2, "F8_E8M0": E8M0}


def widened(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Floats as they are stored (`NUMPY_TYPES`) as float32, of the same shape."""
    if dtype == "BF16":
        values = np.empty(stored.shape, np.float32)
        widen_bf16(np.ascontiguousarray(stored).reshape(-1), values.reshape(-1))
        return values
    if dtype in BY_TYPE:
        return np.asarray(BY_TYPE[dtype].values[stored.view(np.uint8)])
    return stored.astype(np.float32)
