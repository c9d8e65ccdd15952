"""Weights of small integers or floats under their own name, with scales beside them.

compressed-tensors, FP8 as DeepSeek, Qwen and Mistral publish it, FBGEMM and NVIDIA ModelOpt differ
in names and in how many numbers share a scale; where they do not, the shapes tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.affine import Affine, PackedRows, Rows
from converter.checkpoint.quantized.base import (
    Layout,
    LayoutError,
    Matrix,
    Settings,
    StoredCheckpoint,
    as_rows,
    part_of,
    wrong_shape,
)
from converter.checkpoint.quantized.numbers import (
    BY_TYPE,
    E2M1,
    E8M0,
    FLOATS,
    symmetric,
    unsigned,
)

_HALVES = ("F16", "BF16")
_TITLES = {"I8": "int8", "F8_E4M3": "FP8", "F8_E5M2": "FP8"}
# Of what rounds activations and the cache.
_BESIDE = (
    ".activation_scale", ".input_scale", ".input_scale_ub", ".input_zero_point",
    ".input_global_scale", ".output_scale", ".output_zero_point", ".k_scale", ".v_scale",
    ".q_scale",
)  # fmt: skip


def scales_of(
    stored: StoredCheckpoint,
    weight: str,
    shape: tuple[int, int],
    scales: TensorInfo,
    block: Sequence[int] | None = None,
) -> tuple[Rows, int]:
    """The scales of a matrix, and how many columns share one.

    They are one for all, one per row, one per row and group of columns, or one per block of rows
    and columns. Integers are exponents: 2 ** (n - 127).

    Args:
        block: (rows, columns) of a block, where the config says so.

    Raises:
        SourceError: they are none of these.
    """
    rows, columns = shape
    book = E8M0 if scales.dtype in ("U8", "F8_E8M0") else BY_TYPE.get(scales.dtype)
    if scales.dtype not in FLOATS and book is None:
        raise wrong_shape(stored, weight, scales, "floats")
    if scales.shape in ((), (1,), (1, 1)):
        return Rows(scales.name, 1, book, shared=0), columns
    down, across = as_rows(scales.shape)
    if block is not None and (-(-rows // block[0]), -(-columns // block[1])) == (down, across):
        return Rows(scales.name, across, book, shared=block[0]), block[1]
    if rows % max(down, 1) or columns % max(across, 1) or 0 in (down, across):
        raise wrong_shape(stored, weight, scales, f"one for each part of {list(shape)}")
    return Rows(scales.name, across, book, shared=rows // down), columns // across


def block_of(value: Any) -> Sequence[int] | None:
    """`[128, 128]` as it stands in a config; None for what is no block."""
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
        return value
    return None


class ScaledBytes(Layout):
    """`X.weight` of int8 or 8-bit floats, times `X.<suffix>`.

    Attributes:
        suffixes: of the tensor of scales, of which the first that is there counts.
    """

    suffixes: tuple[str, ...]
    block: Sequence[int] | None = None
    types: tuple[str, ...] = ("I8", "F8_E4M3", "F8_E5M2")

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name, codes in stored.tensors.items():
            if name.endswith(".weight") and codes.dtype in self.types:
                yield self._scaled(stored, name, codes)

    def is_beside(self, stored: StoredCheckpoint, name: str) -> bool:
        return name.endswith(_BESIDE)

    def _scaled(self, stored: StoredCheckpoint, weight: str, codes: TensorInfo) -> Matrix:
        module = weight.removesuffix("weight")
        names = [f"{module}{suffix}" for suffix in self.suffixes]
        found = next((name for name in names if name in stored.tensors), names[0])
        scales = part_of(stored, weight, found)
        if len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, "a matrix")
        rows, columns = codes.shape
        scale, group = scales_of(stored, weight, (rows, columns), scales, self.block)
        zeros = stored.tensors.get(f"{module}weight_zero_point")
        zero = None
        if zeros is not None:
            if zeros.shape != scales.shape or zeros.dtype not in ("I8", "U8"):
                raise wrong_shape(stored, weight, zeros, f"int8 {list(scales.shape)}")
            book = BY_TYPE.get(zeros.dtype, unsigned(8))
            zero = Rows(zeros.name, scale.columns, book, scale.shared)
        nbytes = codes.nbytes + scales.nbytes
        title = " ".join(dict.fromkeys((self.title, _TITLES[codes.dtype])))
        return Affine(
            TensorInfo(weight, (rows, columns), title, nbytes),
            codes=Rows(weight, columns, BY_TYPE[codes.dtype]),
            scale=scale,
            group=group,
            zero=zero,
        )


class FP8(ScaledBytes):
    """FP8 of DeepSeek, Qwen and Mistral: times `weight_scale_inv`, despite its name.

    One scale for a block of `weight_block_size`, or for the whole. Also MXFP8, whose scales are
    exponents, one for 32 columns. Source: transformers' `Fp8Dequantize`.
    """

    title = "FP8"
    suffixes = ("weight_scale_inv", "scale")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.block = block_of(settings.get("weight_block_size"))


class FBGEMM(ScaledBytes):
    """FP8 with one scale per row."""

    title = "FBGEMM"
    suffixes = ("weight_scale",)


class CompressedTensors(ScaledBytes):
    """What LLM Compressor writes; a model may mix its formats.

    pack-quantized  `weight_packed` int32 `[out, in * bits / 32]`, `weight_scale` `[out, groups]`,
                    `weight_shape` `[2]`; perhaps `weight_zero_point`, packed along `out`, and
                    `weight_g_idx` `[in]`
    int-, float-, naive-quantized, mxfp8-quantized  see `ScaledBytes`
    nvfp4-pack-quantized, mxfp4-pack-quantized      `weight_packed` uint8 `[out, in / 2]` in E2M1,
                    `weight_scale` `[out, in / 16]` in E4M3, divided by `weight_global_scale`; or
                    `[out, in / 32]` exponents

    Source: compressed-tensors' compressors. It rounds activations, too, where the config says so;
    the weights are taken, and the target rounds in its own way.
    """

    title = "compressed-tensors"
    suffixes = ("weight_scale",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        sparsity = settings.get("sparsity_config") or {}
        form = sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity
        if form != "dense":
            raise LayoutError(f"sparsity_config.format={form!r:.40}")
        if settings.get("format") in ("marlin-24", "marlin_24"):
            raise LayoutError(f"format={settings['format']!r}")
        if settings.get("transform_config"):
            raise LayoutError("transform_config")
        self._weights = [
            group["weights"]
            for group in (settings.get("config_groups") or {}).values()
            if isinstance(group, dict) and isinstance(group.get("weights"), dict)
        ]
        blocks = [block_of(weights.get("block_structure")) for weights in self._weights]
        self.block = next((block for block in blocks if block is not None), None)

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        yield from super().matrices(stored)
        for name, codes in stored.tensors.items():
            if name.endswith(".weight_packed"):
                module = name.removesuffix("weight_packed")
                pack = self._float4 if codes.dtype == "U8" else self._packed
                yield pack(stored, module, codes)

    def _float4(self, stored: StoredCheckpoint, module: str, codes: TensorInfo) -> Matrix:
        weight = f"{module}weight"
        scales = part_of(stored, weight, f"{module}weight_scale")
        factor = stored.tensors.get(f"{module}weight_global_scale")
        if len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, "U8 [out, in / 2]")
        shape = codes.shape[0], codes.shape[1] * 2
        scale, group = scales_of(stored, weight, shape, scales)
        if factor is not None and factor.shape not in ((), (1,)):
            raise wrong_shape(stored, weight, factor, "one number")
        title = "MXFP4" if factor is None else "NVFP4"
        return Affine(
            TensorInfo(weight, shape, f"{self.title} {title}", codes.nbytes + scales.nbytes),
            codes=Rows(codes.name, shape[1], E2M1),
            scale=scale,
            group=group,
            factor=None if factor is None else factor.name,
            divides=True,
        )

    def _packed(self, stored: StoredCheckpoint, module: str, codes: TensorInfo) -> Matrix:
        weight = f"{module}weight"
        scales = part_of(stored, weight, f"{module}weight_scale")
        stated = part_of(stored, weight, f"{module}weight_shape")
        if codes.dtype != "I32" or len(codes.shape) != 2:
            raise wrong_shape(stored, weight, codes, "I32 [out, in * bits / 32]")
        if stated.shape != (2,) or stated.dtype not in ("I32", "I64"):
            raise wrong_shape(stored, weight, stated, "two integers")
        rows, columns = stored.read_stored(stated.name).reshape(-1).tolist()
        bits = self._bits(columns, codes.shape[1])
        if rows != codes.shape[0] or bits is None:
            raise wrong_shape(stored, weight, codes, f"[{rows}, {columns} * bits / 32]")
        scale, group = scales_of(stored, weight, (rows, columns), scales)
        zeros = stored.tensors.get(f"{module}weight_zero_point")
        index = stored.tensors.get(f"{module}weight_g_idx")
        if index is not None and (index.shape != (columns,) or index.dtype != "I32"):
            raise wrong_shape(stored, weight, index, f"I32 [{columns}]")
        zero, book = None, symmetric(bits)
        if zeros is not None:
            expected = -(-rows * bits // 32), scale.columns
            if zeros.shape != expected or zeros.dtype != "I32" or scale.shared != 1:
                raise wrong_shape(stored, weight, zeros, f"I32 {list(expected)}")
            zero = PackedRows(zeros.name, book, along_first=True)
        is_grid = bits == 4 and zero is None and index is None and scales.dtype in _HALVES
        parts = [part for part in (codes, scales, zeros, index, stated) if part is not None]
        return Affine(
            TensorInfo(
                weight,
                (rows, columns),
                f"{self.title} {bits}-bit",
                sum(part.nbytes for part in parts),
                group if is_grid else None,
            ),
            codes=Rows(codes.name, columns, book),
            scale=scale,
            group=group,
            zero=zero,
            index=None if index is None else index.name,
            others=(stated.name,),
        )

    def _bits(self, columns: int, words: int) -> int | None:
        """The width of codes of which so many columns fill so many words."""
        fit = [bits for bits in range(1, 9) if columns > 0 and -(-columns * bits // 32) == words]
        said = [weights.get("num_bits") for weights in self._weights]
        return next((bits for bits in fit if bits in said), None)
