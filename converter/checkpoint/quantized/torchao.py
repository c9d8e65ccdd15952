"""torchao: tensor subclasses taken apart, `X._weight_qdata` and so on, described by the file.

Codes are one to a byte, `(qdata - zero_point) * scale` in blocks of rows and columns. What is laid
out for one kind of hardware (tiles for tensor cores, preshuffled rows) is refused. Source:
torchao.prototype.safetensors, as transformers' `TorchAoDeserialize` calls it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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
from converter.checkpoint.quantized.numbers import BY_TYPE
from converter.checkpoint.quantized.scaled import block_of, scales_of
from converter.errors import UnsupportedError

_READ = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
_PARTS = ("qdata", "scale", "zero_point")


class TorchAO(Layout):
    """See the module's docstring."""

    title = "torchao"

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, text in stored.metadata().items():
            said = _description(stored, name, text)
            kind = said.get("_type")
            if kind is None or kind == "Tensor":
                continue
            parts = said.get("_tensor_data_names")
            if kind not in _READ or not isinstance(parts, list) or set(parts) - {*_PARTS}:
                raise UnsupportedError(
                    f"{stored.path}: {name}",
                    f"torchao's {kind:.40} of {parts!s:.80} is not read, only {', '.join(_READ)}",
                    "convert the original in BF16, F16 or F32 instead; or a GGUF of it",
                )
            yield self._matrix(stored, name, said)

    def is_beside(self, stored: StoredCheckpoint, name: str) -> bool:
        return name.endswith(("_act_quant_scale", "_act_quant_zero_point"))

    def _matrix(self, stored: StoredCheckpoint, weight: str, said: dict[str, Any]) -> Matrix:
        module, _, own = weight.rpartition(".")
        codes, scales = (
            part_of(stored, weight, f"{module}._{own}_{part}") for part in ("qdata", "scale")
        )
        if len(codes.shape) != 2 or codes.dtype not in BY_TYPE:
            raise wrong_shape(stored, weight, codes, "a matrix of bytes")
        rows, columns = codes.shape
        block = block_of(said.get("_data", {}).get("block_size"))
        if block is None:
            raise damaged(stored, weight, "its description states no block_size")
        # Blocks may be as large as the matrix; and its own size is what torchao writes for "all".
        block = (min(block[0], rows), min(block[1], columns))
        scale, group = scales_of(stored, weight, (rows, columns), scales, block)
        zero = None
        if "zero_point" in said["_tensor_data_names"]:
            zeros = part_of(stored, weight, f"{module}._{own}_zero_point")
            if zeros.shape != scales.shape or zeros.dtype != "I8":
                raise wrong_shape(stored, weight, zeros, f"I8 {list(scales.shape)}")
            zero = Rows(zeros.name, scale.columns, BY_TYPE["I8"], scale.shared)
        kind = said.get("_data", {}).get("target_dtype", {}).get("_data")
        title = kind if isinstance(kind, str) else "FP8" if codes.dtype != "I8" else "int8"
        return Affine(
            TensorInfo(
                weight, (rows, columns), f"{self.title} {title}", codes.nbytes + scales.nbytes
            ),
            codes=Rows(codes.name, columns, BY_TYPE[codes.dtype]),
            scale=scale,
            group=group,
            zero=zero,
        )


def _description(stored: StoredCheckpoint, name: str, text: str) -> dict[str, Any]:
    """What the file says about a tensor; nothing where it speaks of something else."""
    if "." not in name:
        return {}
    try:
        said = json.loads(text)
    except ValueError as error:
        raise damaged(stored, name, f"its description is not JSON ({str(error)[:80]})") from error
    return said if isinstance(said, dict) else {}
