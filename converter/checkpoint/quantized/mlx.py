"""MLX: `weight` uint32 `[out, in * bits / 32]`, `scales` and `biases` `[out, in / group]`.

`q * scale + bias`, with codes one after another; or small floats with scales alone. Source:
`mlx.core.quantize`. transformers' `metal` is the same, with `qbiases`.
"""

from __future__ import annotations

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
from converter.checkpoint.quantized.numbers import E2M1, E4M3, E8M0, FLOATS, Codebook, unsigned

_BITS = (2, 3, 4, 5, 6, 8)
# By mode: columns in a group, what codes stand for, and scales.
_FLOAT_MODES: dict[str, tuple[int, Codebook, Codebook]] = {
    "mxfp4": (32, E2M1, E8M0),
    "mxfp8": (32, E4M3, E8M0),
    "nvfp4": (16, E2M1, E4M3),
}


class MLX(Layout):
    """See the module's docstring; single modules may have another width or group."""

    title = "mlx"
    biases = "biases"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._check(settings)
        self._modules = {name: said for name, said in settings.items() if isinstance(said, dict)}
        for said in self._modules.values():
            self._check(said)

    def _check(self, settings: Settings) -> None:
        mode, bits = settings.get("mode", "affine"), settings.get("bits", 4)
        if mode != "affine" and mode not in _FLOAT_MODES:
            raise LayoutError(f"mode={mode!r:.40}")
        if mode == "affine" and bits not in _BITS:
            raise LayoutError(f"bits={bits!r:.40}")

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, codes in stored.tensors.items():
            if name.endswith(".weight") and codes.dtype == "U32":
                yield self._matrix(stored, name, codes)

    def _matrix(self, stored: StoredCheckpoint, weight: str, codes: TensorInfo) -> Matrix:
        module = weight.removesuffix(".weight")
        said = self._modules.get(module, self.settings)
        mode = said.get("mode", "affine")
        scales = part_of(stored, weight, f"{module}.scales")
        if mode == "affine":
            bits, group = said.get("bits", 4), said.get("group_size", 64)
            book, of_scales, title = unsigned(bits), None, f"{bits}-bit"
            bias = part_of(stored, weight, f"{module}.{self.biases}")
        else:
            group, book, of_scales = _FLOAT_MODES[mode]
            bits, bias, title = book.bits, None, mode
        if len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, f"U32 [out, in * {bits} / 32]")
        rows, columns = codes.shape[0], codes.shape[1] * 32 // bits
        if not isinstance(group, int) or group < 1 or columns % group:
            raise wrong_shape(stored, weight, codes, f"[out, in * {bits} / 32] of groups={group!r}")
        for part in (scales, bias):
            is_float = part is not None and part.dtype in FLOATS
            if part is not None and (
                part.shape != (rows, columns // group) or is_float != (of_scales is None)
            ):
                expected = f"[{rows}, {columns // group}]"
                raise wrong_shape(stored, weight, part, f"{expected} of groups of {group}")
        parts = [part for part in (codes, scales, bias) if part is not None]
        return Affine(
            TensorInfo(
                weight,
                (rows, columns),
                f"{self.title} {title}",
                sum(part.nbytes for part in parts),
            ),
            codes=Rows(weight, columns, book),
            scale=Rows(scales.name, columns // group, of_scales),
            group=group,
            bias=None if bias is None else Rows(bias.name, columns // group),
        )


class Metal(MLX):
    """transformers' name for it."""

    title = "metal"
    biases = "qbiases"
