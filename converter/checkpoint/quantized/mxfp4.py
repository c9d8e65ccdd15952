"""MXFP4 of gpt-oss: `X_blocks` uint8 `[..., in / 32, 16]` in E2M1, `X_scales` of exponents.

The value of a code times 2 ** (scale - 127); the first code is in the lower half of a byte. Source:
transformers' `convert_moe_packed_tensors`, which transposes the result. Here rows stay outputs, as
in every `.weight`, and that is what the name says: `X.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.affine import Affine, Rows
from converter.checkpoint.quantized.base import (
    Layout,
    Matrix,
    StoredCheckpoint,
    part_of,
    wrong_shape,
)
from converter.checkpoint.quantized.numbers import E2M1, E8M0


class MXFP4(Layout):
    """See the module's docstring."""

    title = "MXFP4"

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, codes in stored.tensors.items():
            if name.endswith("_blocks"):
                yield self._matrix(stored, name.removesuffix("_blocks"), codes)

    def _matrix(self, stored: StoredCheckpoint, weight: str, codes: TensorInfo) -> Matrix:
        scales = part_of(stored, weight, f"{weight}_scales")
        if codes.dtype != "U8" or len(codes.shape) < 3 or codes.shape[-1] != 16:
            raise wrong_shape(stored, weight, codes, "U8 [..., in / 32, 16]")
        *outer, groups, _ = codes.shape
        if scales.dtype != "U8" or scales.shape != codes.shape[:-1]:
            raise wrong_shape(stored, weight, scales, f"U8 {list(codes.shape[:-1])}")
        columns = 32 * groups
        return Affine(
            TensorInfo(
                f"{weight}.weight", (*outer, columns), self.title, codes.nbytes + scales.nbytes
            ),
            codes=Rows(codes.name, columns, E2M1, pieces=groups),
            scale=Rows(scales.name, groups, E8M0),
            group=32,
        )
