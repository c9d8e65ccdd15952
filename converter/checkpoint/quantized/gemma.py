"""Gemma's mobile checkpoints (`quant_method` gemma): integers of 2, 4 or 8 bits, a scale per row.

`weight` uint8 or int8 with `weight_scale` `[out, 1]`; of an embedding `embedding_quantized` with
`embedding_scale`. Codes of 4 bits stand for -8 to 7, those of 2 for -2 to 1, the first in the lower
bits. The config says how wide those of a module are. Source: transformers' `gemma_quant`. Its
static ranges of activations and of the cache are left out: the target has its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.affine import Affine, Rows
from converter.checkpoint.quantized.base import (
    Layout,
    LayoutError,
    Matrix,
    Settings,
    StoredCheckpoint,
    part_of,
    wrong_shape,
)
from converter.checkpoint.quantized.numbers import INT8, symmetric
from converter.checkpoint.quantized.scaled import scales_of


class Gemma(Layout):
    """See the module's docstring."""

    title = "gemma"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        try:
            self._by_name = [
                (re.compile(pattern), said.get("num_bits"))
                for pattern, said in (settings.get("module_quant_configs") or {}).items()
            ]
        except (re.error, AttributeError) as error:
            raise LayoutError(f"module_quant_configs: {error!s:.80}") from error

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, codes in stored.tensors.items():
            module, _, own = name.rpartition(".")
            if own == "weight" and codes.dtype in ("U8", "I8"):
                yield self._matrix(stored, module, codes, "weight_scale")
            elif own == "embedding_quantized":
                yield self._matrix(stored, module, codes, "embedding_scale")

    def is_beside(self, stored: StoredCheckpoint, name: str) -> bool:
        ends = ("input_activation_scale", "output_activation_scale", "k_cache_scale")
        return name.endswith((*ends, "v_cache_scale"))

    def _matrix(
        self, stored: StoredCheckpoint, module: str, codes: TensorInfo, scale_name: str
    ) -> Matrix:
        weight = f"{module}.weight"
        scales = part_of(stored, weight, f"{module}.{scale_name}")
        bits = 8 if codes.dtype == "I8" else self._bits(module)
        if bits not in (2, 4, 8) or len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, f"a matrix of 2, 4 or 8 bits, not {bits}")
        rows, columns = codes.shape[0], codes.shape[1] * 8 // bits
        scale, group = scales_of(stored, weight, (rows, columns), scales)
        return Affine(
            TensorInfo(
                weight,
                (rows, columns),
                f"{self.title} {bits}-bit",
                codes.nbytes + scales.nbytes,
            ),
            codes=Rows(codes.name, columns, INT8 if bits == 8 else symmetric(bits)),
            scale=scale,
            group=group,
        )

    def _bits(self, module: str) -> object:
        default = self.settings.get("num_bits", 4)
        for pattern, bits in self._by_name:
            if pattern.search(module):
                return default if bits is None else bits
        return default
