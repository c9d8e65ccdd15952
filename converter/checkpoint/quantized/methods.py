"""Which checkpoints hold quantised weights, by which method, and whether that is read.

Told by the config, before weights are fetched. What is not read is refused by name: each method
packs its numbers in a layout of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.base import Layout, LayoutError
from converter.checkpoint.quantized.bitsandbytes import BitsAndBytes
from converter.checkpoint.quantized.gemma import Gemma
from converter.checkpoint.quantized.gptq import AWQ, GPTQ, auto_round
from converter.checkpoint.quantized.mlx import MLX, Metal
from converter.checkpoint.quantized.mxfp4 import MXFP4
from converter.checkpoint.quantized.numbers import FLOATS
from converter.checkpoint.quantized.scaled import FBGEMM, FP8, CompressedTensors
from converter.checkpoint.quantized.torchao import TorchAO
from converter.errors import UnsupportedError

LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "gptq": GPTQ,
    "awq": AWQ,
    "auto-round": auto_round,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fp8": FP8,
    "mxfp8": FP8,
    "fbgemm_fp8": FBGEMM,
    "mlx": MLX,
    "metal": Metal,
    "mxfp4": MXFP4,
    "torchao": TorchAO,
    "gemma": Gemma,
}

# Of a config.json, at its top or in the text part of a larger model: mlx, which says the same under
# transformers' key, too, transformers, older compressed-tensors.
_KEYS = ("quantization", "quantization_config", "compression_config")
# Files that say so beside a config.json that does not.
_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "NVIDIA ModelOpt",
    "quantization_config.json": "a quantisation",
    "quanto_qmap.json": "quanto",
    "mlc-chat-config.json": "MLC",
}
# What stands beside or instead of a matrix named `*.weight`.
_TENSORS = re.compile(
    r"\.(?:qweight|qzeros|q_weight|scales|SCB|weight_packed|weight_scale(?:_inv|_2)?|weight_shape"
    r"|weight\.absmax|weight\.quant_map|weight\.quant_state\..*|weight\._data|_?weight_qdata|W_q"
    r"|trellis|input_scale|g_idx)$"
)
_BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*|\[\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)


def layout_of(
    what: str,
    config: Mapping[str, Any],
    names: Collection[str],
    base_model: str | None = None,
) -> Layout | None:
    """How the weights of a folder or repository are quantised; None where they are not.

    Args:
        what: the folder or repository, as the user knows it.
        config: its config.json.
        names: the names of the files in it.
        base_model: the model that it was made of, where somebody says so.

    Raises:
        UnsupportedError: in a way that is not read.
    """
    found = _settings(config)
    if found is None:
        method = next((f"{_FILES[name]}: {name}" for name in _FILES if name in names), None)
        if method is not None:
            raise _refusal(what, method, base_model)
        return None
    key, settings = found
    if not isinstance(settings, dict):
        raise _refusal(what, f"{key}={settings!r:.40}", base_model)
    layout = LAYOUTS.get(_method(key, settings))
    if layout is None:
        raise _refusal(what, _described(key, settings), base_model)
    try:
        return layout(settings)
    except LayoutError as error:
        raise _refusal(what, f"{_described(key, settings)}, {error}", base_model) from error


def refuse_quantized(
    what: str, tensors: Iterable[TensorInfo], base_model: str | None = None
) -> None:
    """Raise where one of the tensors is of a quantised weight, which no config speaks of.

    Raises:
        UnsupportedError: by the name of a tensor, or the type of a weight.
    """
    for tensor in tensors:
        if _TENSORS.search(tensor.name):
            raise _refusal(what, f"it holds a tensor {tensor.name}", base_model)
        if tensor.name.endswith("weight") and tensor.dtype not in FLOATS:
            method = f"tensor {tensor.name} is stored as {tensor.dtype}"
            raise _refusal(what, method, base_model)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says nothing of how weights are stored."""
    return {
        key: without_quantization(value)
        if key in ("text_config", "language_config") and isinstance(value, dict)
        else value
        for key, value in config.items()
        if key not in _KEYS
    }


def base_model_of(folder: Path) -> str | None:
    """The model that a folder's README.md names as the one it was made of."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as file:
            head = file.read(1 << 16)
    except OSError:
        return None
    front = head.split("\n---", 1)[0] if head.startswith("---") else ""
    found = _BASE_MODEL.search(front)
    return found.group(1) if found else None


def _refusal(what: str, method: str, base_model: str | None) -> UnsupportedError:
    original = base_model or "the model that it was made of (base_model in its README names it)"
    return UnsupportedError(
        what,
        f"its weights are quantised already, in a layout that is not read ({method})",
        f"convert the original in BF16, F16 or F32 instead: {original}; or a GGUF of it",
    )


def _settings(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The key under which a config speaks of quantisation, and what it says."""
    for part in (config, config.get("text_config"), config.get("language_config")):
        for key in _KEYS:
            value = part.get(key) if isinstance(part, dict) else None
            if value:
                return key, value
    return None


def _method(key: str, settings: Mapping[str, Any]) -> str:
    """The name of a method, as transformers tells it."""
    if settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True:
        return "bitsandbytes"
    name = settings.get("quant_method") or settings.get("quant_algo")
    if name is None:
        return "mlx" if key == "quantization" else key
    return str(name)


def _described(key: str, settings: Mapping[str, Any]) -> str:
    """`gptq, 4 bits`, `mlx, 4 bits in groups of 64`, ..."""
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if bits is None:
        bits = next((n for n in (4, 8) if settings.get(f"load_in_{n}bit") is True), None)
    group = settings.get("group_size") if bits else None
    said = f"{_method(key, settings):.40}" + (f", {bits!s:.10} bits" if bits else "")
    return said + (f" in groups of {group}" if isinstance(group, int) and group > 0 else "")
