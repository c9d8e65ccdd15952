"""Checkpoints whose weights are quantised already: told by the config, before weights are fetched.

Such numbers are no longer the model's own, and each method packs them in a layout of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.base import TensorInfo
from converter.errors import UnsupportedError

# Of a config.json, at its top or in the text part of a larger model: transformers, mlx, older
# compressed-tensors.
_KEYS = ("quantization_config", "quantization", "compression_config")
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
    r"|weight\.absmax|weight\.quant_map|weight\.quant_state\..*|weight\._data|weight_qdata|W_q"
    r"|trellis|input_scale|g_idx)$"
)
_FLOATS = ("F64", "F32", "F16", "BF16")
_BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*|\[\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)


def refuse_quantized(
    what: str,
    config: Mapping[str, Any],
    names: Collection[str],
    tensors: Iterable[TensorInfo] = (),
    base_model: str | None = None,
) -> None:
    """Raise where a folder or repository holds quantised weights.

    Args:
        what: the folder or repository, as the user knows it.
        config: its config.json.
        names: the names of the files in it.
        tensors: its tensors, where they are known yet.
        base_model: the model that it was made of, where somebody says so.

    Raises:
        UnsupportedError: it does.
    """
    method = _by_config(config) or _by_files(names) or _by_tensors(tensors)
    if method is None:
        return
    original = base_model or "the model that it was made of (base_model in its README names it)"
    raise UnsupportedError(
        what,
        f"its weights are quantised already ({method}) and no longer the model's own",
        f"convert the original in BF16, F16 or F32 instead: {original}; or a GGUF of it",
    )


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


def _by_config(config: Mapping[str, Any]) -> str | None:
    for part in (config, config.get("text_config"), config.get("language_config")):
        for key in _KEYS:
            value = part.get(key) if isinstance(part, dict) else None
            if isinstance(value, dict) and value:
                return _method(key, value)
            if value:
                return f"{key}={value!r:.40}"
    return None


def _method(key: str, settings: Mapping[str, Any]) -> str:
    """`gptq, 4 bits`, `mlx, 4 bits in groups of 64`, ..."""
    name = settings.get("quant_method") or settings.get("quant_algo")
    if name is None:
        name = "mlx" if key == "quantization" else key
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    if bits is None:
        bits = next((n for n in (4, 8) if settings.get(f"load_in_{n}bit") is True), None)
    group = settings.get("group_size") if bits else None
    said = f"{name!s:.40}" + (f", {bits!s:.10} bits" if bits else "")
    return said + (f" in groups of {group}" if isinstance(group, int) and group > 0 else "")


def _by_files(names: Collection[str]) -> str | None:
    return next((f"{_FILES[name]}: {name}" for name in _FILES if name in names), None)


def _by_tensors(tensors: Iterable[TensorInfo]) -> str | None:
    """Told by the name of a tensor, or by a weight whose type holds no plain numbers."""
    for tensor in tensors:
        if _TENSORS.search(tensor.name):
            return f"it holds a tensor {tensor.name}"
        if tensor.name.endswith("weight") and tensor.dtype not in _FLOATS:
            return f"tensor {tensor.name} is stored as {tensor.dtype}"
    return None
