"""Storage formats of weights, and the schemes that choose among them: rows in, packed rows out.

A format works on one block of rows at a time and never sees a whole tensor. The result of a row
depends on that row alone, so the bytes do not depend on block size or number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.errors import OptionError
from converter.graph.tflite import DType
from converter.kernels import pack_int8

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_NOT_FINITE = "holds NaN or infinite values"


class ValueRangeError(ValueError):
    """A weight holds a value that the format cannot represent; the message says which."""


@dataclass(frozen=True)
class Format:
    """How one weight is stored.

    Attributes:
        dtype: element type in the model.
        quantized: whether each row has a float32 scale.
    """

    dtype: DType
    quantized: bool = False

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a weight of this shape, scales not counted."""
        return int(np.prod(shape)) * _ITEM_SIZE[self.dtype]

    @property
    def takes_bf16(self) -> bool:
        """Whether `pack` takes BF16 rows as uint16, which saves widening them."""
        return self.dtype is DType.INT8

    def pack(
        self, rows: np.ndarray, buffer: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pack rows, `(n, columns)`; they are used as scratch space and lost.

        Args:
            rows: float32; or uint16 for BF16, where the format `takes_bf16`.
            buffer: int8, of one dimension and large enough, for a result that is int8.

        Returns:
            The packed rows, `(n, columns)`, and their scales, `(n,)`, or None.

        Raises:
            ValueRangeError: a value is NaN or infinite, or too large for float16.
        """
        if self.dtype is DType.INT8:
            flat = buffer if buffer is not None else np.empty(rows.size, np.int8)
            packed = flat[: rows.size].reshape(rows.shape)
            scales = np.empty(len(rows), np.float32)
            if not pack_int8(rows, packed, scales):
                raise ValueRangeError(_NOT_FINITE)
            return packed, scales
        peak = max(rows.max(initial=0), -rows.min(initial=0))  # NaN spreads through both
        if not np.isfinite(peak):
            raise ValueRangeError(_NOT_FINITE)
        if self.dtype is DType.FLOAT16 and peak > _FLOAT16_MAX:
            raise ValueRangeError(f"holds {peak:.3g}, beyond float16's {_FLOAT16_MAX:.0f}")
        return rows.astype(_NUMPY[self.dtype], copy=False), None


FLOAT32 = Format(DType.FLOAT32)
FLOAT16 = Format(DType.FLOAT16)
INT8 = Format(DType.INT8, quantized=True)

_ITEM_SIZE = {DType.FLOAT32: 4, DType.FLOAT16: 2, DType.INT8: 1}
_NUMPY = {DType.FLOAT32: np.float32, DType.FLOAT16: np.float16}


@dataclass(frozen=True)
class Scheme:
    """What `--quantize` names. Vectors (norms, biases) stay float32: they are tiny and matter."""

    name: str
    matrix: Format
    summary: str

    def format_of(self, shape: tuple[int, ...]) -> Format:
        """The format of a weight with this shape."""
        return self.matrix if len(shape) > 1 else FLOAT32


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "dynamic_int8", INT8, "int8 weights, one scale per row; activations int8 on the fly"
        ),
        Scheme("fp16", FLOAT16, "float16 weights, float32 arithmetic"),
        Scheme("fp32", FLOAT32, "float32 weights and arithmetic"),
    )
}
DEFAULT_SCHEME = "dynamic_int8"


def get_scheme(name: str) -> Scheme:
    """The scheme called `name`.

    Raises:
        OptionError: there is none.
    """
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise OptionError(f"--quantize {name}", "no such scheme", f"choose one of: {known}")
    return SCHEMES[name]
