"""Quantised weights as the libraries publish them, packed here from their formulas.

Each packer takes a weight `(rows, columns)` and returns the tensors that stand for it, by what
comes behind the module's name, and the numbers that they say, in float32. The reader was held
against the libraries themselves, once and by hand: AutoGPTQ's and AutoAWQ's sources,
compressed-tensors 0.20, bitsandbytes 0.50, mlx 0.32, torchao 0.18, and transformers 5.14.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


class Packed(NamedTuple):
    """Tensors by their names behind the module's, and the weight that they are, float32."""

    tensors: Tensors
    values: np.ndarray


Packer = Callable[[np.ndarray], Packed]

# compressed-tensors' config of `pack_quantized`.
PACK_QUANTIZED = {
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
}


def quantize(model: Any, folder: Path, settings: dict[str, Any], pack: Packer, *kept: str) -> Any:
    """Make a saved model's linear layers quantised, but for those named like `kept`.

    Returns the model as transformers has it, with the numbers that are in the file.
    """
    tensors = load_file(folder / "model.safetensors")
    for name, module in model.named_modules():
        stored = f"{name}.weight"
        is_table = isinstance(module, torch.nn.Embedding) and "quantization" in settings
        is_linear = isinstance(module, torch.nn.Linear)
        if stored not in tensors or not (is_linear or is_table) or name.endswith(kept):
            continue
        parts, values = pack(tensors.pop(stored).numpy())
        module.weight.data = torch.from_numpy(values)
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return model


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes one after another from the lowest bit on: `(n, k)` to int32 `(n, words)`."""
    words = -(-codes.shape[1] * bits // 32)
    packed = [
        sum(int(code) << bits * i for i, code in enumerate(row)).to_bytes(4 * words, "little")
        for row in codes
    ]
    return np.frombuffer(b"".join(packed), np.int32).reshape(len(codes), words)


class Grid(NamedTuple):
    """`(codes - zeros) * scales` in groups of columns; `index` says whose group each is in."""

    codes: np.ndarray  # (rows, columns), from 0
    zeros: np.ndarray  # (rows, groups)
    scales: np.ndarray  # (rows, groups), float32, but numbers that float16 holds
    index: np.ndarray  # (columns,)

    @property
    def values(self) -> np.ndarray:
        q = (self.codes - self.zeros[:, self.index]).astype(np.float32)
        return q * self.scales[:, self.index]


def on_grid(
    weight: np.ndarray,
    bits: int,
    group: int,
    symmetric: bool = True,
    index: np.ndarray | None = None,
    half: Callable[[np.ndarray], np.ndarray] = lambda s: s.astype(np.float16).astype(np.float32),
) -> Grid:
    """The nearest grid of integers, by the least and the largest of each group."""
    columns = weight.shape[1]
    group = columns if group == -1 else group
    if index is None:
        index = np.arange(columns) // group
    top = (1 << bits) - 1
    lows, highs = (
        np.stack([reduce(weight[:, index == g], axis=1) for g in range(index.max() + 1)], axis=1)
        for reduce in (np.min, np.max)
    )
    if symmetric:
        scales = half(np.maximum(np.maximum(-lows, highs) / (top // 2), 1e-4))
        zeros = np.full(scales.shape, 1 << bits - 1)
    else:
        scales = half(np.maximum((highs.clip(0) - lows.clip(None, 0)) / top, 1e-4))
        zeros = np.rint(-lows.clip(None, 0) / scales).clip(1, top).astype(int)
    q = np.rint(weight / scales[:, index]) + zeros[:, index]
    return Grid(q.clip(0, top).astype(int), zeros, scales, index)


def gptq(
    weight: np.ndarray,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    order: np.random.Generator | None = None,
    less: int = 1,
    has_index: bool = True,
) -> Packed:
    """AutoGPTQ's; with `order`, groups are those of desc_act. `less`: 0 for gptq_v2.

    AutoRound's have no index.
    """
    index = None
    if order is not None:
        index = order.permutation(np.arange(weight.shape[1]) // group)
    grid = on_grid(weight, bits, group, symmetric, index)
    zeros = (grid.zeros.T - less) % (1 << bits)
    tensors = {
        "qweight": pack_words(grid.codes, bits).T,
        "qzeros": pack_words(zeros, bits),
        "scales": grid.scales.T.astype(np.float16),
    }
    if has_index:
        tensors["g_idx"] = grid.index.astype(np.int32)
    return Packed({name: _tensor(array) for name, array in tensors.items()}, grid.values)


def awq(weight: np.ndarray, group: int = 32, symmetric: bool = False) -> Packed:
    """AutoAWQ's gemm."""
    grid = on_grid(weight, 4, group, symmetric)

    def pack(codes: np.ndarray) -> np.ndarray:
        eights = codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack_words(eights.reshape(codes.shape), 4)

    tensors = {
        "qweight": pack(grid.codes.T),
        "qzeros": pack(grid.zeros.T),
        "scales": grid.scales.T.astype(np.float16),
    }
    return Packed({name: _tensor(array) for name, array in tensors.items()}, grid.values)


def pack_quantized(
    weight: np.ndarray,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    order: np.random.Generator | None = None,
    dtype: torch.dtype = torch.float16,
) -> Packed:
    """compressed-tensors' pack-quantized."""
    index = None
    if order is not None:
        index = order.permutation(np.arange(weight.shape[1]) // group)

    def half(scales: np.ndarray) -> np.ndarray:
        return torch.tensor(scales).to(dtype).float().numpy()

    grid = on_grid(weight, bits, group, symmetric, index, half)
    tensors = {
        "weight_packed": _tensor(pack_words(grid.codes, bits)),
        "weight_scale": torch.tensor(grid.scales).to(dtype),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = _tensor(pack_words(grid.zeros.T, bits).T)
    if index is not None:
        tensors["weight_g_idx"] = _tensor(index.astype(np.int32))
    return Packed(tensors, grid.values)


def _blocks(weight: torch.Tensor, block: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest magnitude of every block, and the same spread over the weight."""
    rows, columns = weight.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    peaks = torch.zeros(down, across)
    for i in range(down):
        for j in range(across):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            peaks[i, j] = part.abs().max()
    spread = peaks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return peaks, spread[:rows, :columns]


def scaled(
    weight: np.ndarray,
    block: Sequence[int],
    scale_name: str = "weight_scale",
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_dtype: torch.dtype = torch.float32,
    shape: Sequence[int] | None = None,
) -> Packed:
    """int8 or FP8 with a scale for every block; `shape` of the scales where it is not theirs."""
    values = torch.tensor(weight)
    top = 127 if dtype is torch.int8 else float(torch.finfo(dtype).max)
    peaks, _ = _blocks(values, block)
    scales = (peaks / top).to(scale_dtype)
    spread = scales.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    spread = spread[: len(weight), : weight.shape[1]]
    codes = values / spread
    codes = (codes.round() if dtype is torch.int8 else codes).clamp(-top, top).to(dtype)
    return Packed(
        {"weight": codes, scale_name: scales.reshape(shape or scales.shape).contiguous()},
        (codes.float() * spread).numpy(),
    )


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.abs(values[..., None] - table).argmin(-1)


def float4(
    weight: np.ndarray, group: int, names: tuple[str, str] = ("weight_packed", "weight_scale")
) -> Packed:
    """E2M1 with exponents for scales (MXFP4)."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, group)
    exponents = np.floor(np.log2(np.abs(groups).max(-1))) - 2
    scales = np.exp2(exponents).astype(np.float32)[..., None]
    codes = _nearest(groups / scales, E2M1)
    packed = pack_words(codes.reshape(rows, columns), 4).view(np.uint8)
    return Packed(
        {names[0]: _tensor(packed), names[1]: _tensor((exponents + 127).astype(np.uint8))},
        (E2M1[codes] * scales).reshape(weight.shape),
    )


def nvfp4(weight: np.ndarray) -> Packed:
    """compressed-tensors' nvfp4-pack-quantized: scales in E4M3, divided by one for all."""
    groups = weight.reshape(len(weight), -1, 16)
    factor = np.float32(448 * 6 / np.abs(weight).max())
    scales = torch.tensor(np.abs(groups).max(-1) / 6 * factor).to(torch.float8_e4m3fn)
    real = scales.float().numpy()[..., None] / factor
    codes = _nearest(groups / real, E2M1)
    packed = pack_words(codes.reshape(weight.shape), 4).view(np.uint8)
    tensors = {
        "weight_packed": _tensor(packed),
        "weight_scale": scales,
        "weight_global_scale": torch.tensor([factor]),
    }
    return Packed(tensors, (E2M1[codes] * real).reshape(weight.shape))


def mlx(weight: np.ndarray, bits: int = 4, group: int = 64, bias_name: str = "biases") -> Packed:
    """mlx's affine mode."""
    groups = weight.reshape(len(weight), -1, group)
    low, high = groups.min(-1), groups.max(-1)
    biases = low.astype(np.float16)
    scales = ((high - low) / ((1 << bits) - 1)).astype(np.float16)
    s, b = (array.astype(np.float32)[..., None] for array in (scales, biases))
    codes = np.rint((groups - b) / s).clip(0, (1 << bits) - 1).astype(int)
    words = pack_words(codes.reshape(weight.shape), bits)
    return Packed(
        {
            "weight": torch.tensor(words.copy()).view(torch.uint32),
            "scales": _tensor(scales),
            bias_name: _tensor(biases),
        },
        (codes.astype(np.float32) * s + b).reshape(weight.shape),
    )


def mlx_floats(weight: np.ndarray) -> Packed:
    """mlx's mxfp4 mode: the same bytes as anybody's, in words of 32 bits."""
    tensors, values = float4(weight, 32)
    words = tensors["weight_packed"].view(torch.uint32)
    return Packed({"weight": words, "scales": tensors["weight_scale"]}, values)


def bnb_int8(weight: np.ndarray) -> Packed:
    """bitsandbytes' int8."""
    peaks = np.abs(weight).max(1).astype(np.float32)
    codes = np.rint(weight * (127 / peaks[:, None])).astype(np.int8)
    tensors = {
        "weight": _tensor(codes),
        "SCB": _tensor(peaks),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return Packed(tensors, codes * peaks[:, None] / np.float32(127))


NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / 12


def bnb_4bit(
    weight: np.ndarray,
    kind: str = "nf4",
    nested: bool = True,
    storage: torch.dtype = torch.uint8,
    block: int = 64,
) -> Packed:
    """bitsandbytes' nf4 or fp4, in blocks of the flattened matrix."""
    table = {"nf4": NF4, "fp4": FP4}[kind]
    flat = weight.reshape(-1)
    padded = np.zeros(-(-flat.size // block) * block, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, block)
    absmax = np.abs(blocks).max(1)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(weight.shape),
    }  # fmt: skip
    tensors: Tensors = {"weight.quant_map": _tensor(table)}
    if nested:
        offset = float(absmax.mean())
        levels = np.linspace(-1, 1, 256).astype(np.float32)
        bunches = np.zeros(-(-len(absmax) // 256) * 256, np.float32)
        bunches[: len(absmax)] = absmax - offset
        peaks = np.abs(bunches.reshape(-1, 256)).max(1)
        each = peaks.repeat(256)[: len(absmax)]
        codes = _nearest((absmax - offset) / each, levels).astype(np.uint8)
        absmax = levels[codes] * each + np.float32(offset)
        tensors |= {
            "weight.absmax": _tensor(codes),
            "weight.nested_absmax": _tensor(peaks),
            "weight.nested_quant_map": _tensor(levels),
        }
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
    else:
        tensors["weight.absmax"] = _tensor(absmax)
    codes4 = _nearest(blocks / absmax[:, None], table)
    values = (table[codes4] * absmax[:, None]).reshape(-1)[: flat.size].reshape(weight.shape)
    pairs = codes4.reshape(-1)[: flat.size]
    pairs = np.append(pairs, 0)[: -(-flat.size // 2) * 2].reshape(-1, 2)
    packed = _tensor((pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8))
    tensors["weight"] = packed.view(storage).reshape(-1, 1)
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = _tensor(np.frombuffer(text, np.uint8))
    return Packed(tensors, values)


def gemma(
    weight: np.ndarray, bits: int = 4, names: Sequence[str] = ("weight", "weight_scale")
) -> Packed:
    """Gemma's mobile checkpoints: a scale per row, bytes that end with the row."""
    grid = on_grid(weight, bits, -1, half=lambda scales: scales.astype(np.float32))
    if bits == 8:
        codes = (grid.codes - 128).astype(np.int8)
    else:
        words = pack_words(grid.codes, bits).view(np.uint8)
        codes = words[:, : -(-weight.shape[1] * bits // 8)]
    tensors = {names[0]: _tensor(codes), names[1]: torch.tensor(grid.scales)}
    return Packed(tensors, grid.values)


def torchao(
    weight: np.ndarray,
    bits: int = 8,
    group: int = -1,
    symmetric: bool = True,
) -> Packed:
    """torchao's Int8Tensor and IntxUnpackedToInt8Tensor; see `torchao_metadata`."""
    grid = on_grid(weight, bits, group, symmetric)
    less = 1 << bits - 1
    tensors = {
        "_weight_qdata": _tensor((grid.codes - less).astype(np.int8)),
        "_weight_scale": torch.tensor(grid.scales),
        "_weight_zero_point": _tensor((grid.zeros - less).astype(np.int8)),
    }
    return Packed(tensors, grid.values)


def torchao_float8(weight: np.ndarray) -> Packed:
    """torchao's Float8Tensor, with a scale per row."""
    tensors, values = scaled(weight, (1, weight.shape[1]))
    return Packed(
        {
            f"_weight_{to}": tensors[of]
            for of, to in (("weight", "qdata"), ("weight_scale", "scale"))
        },
        values,
    )


def torchao_metadata(
    weight: str, kind: str, block: Sequence[int], *parts: str, **data: Any
) -> dict[str, str]:
    """How torchao describes a weight in the file's metadata."""
    said = {
        "_type": kind,
        "_data": {"block_size": list(block), **data},
        "_tensor_data_names": parts,
    }
    return {weight: json.dumps(said), "tensor_names": json.dumps([weight])}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())
