"""GGUFs that Ollama's own converter wrote, in the words of llama.cpp's.

`ollama pull gemma3:4b` brings a file in which the vision part stands beside the language model,
some keys have other names, and others are missing. Source: what Ollama does to such files before
its copy of llama.cpp reads them (`llama/compat`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from converter.checkpoint.base import TensorInfo
from converter.families.tensors import GGUF_VISION

_VISION_KEYS = ("vision.", "mm.")  # after `{arch}.`
_RENAMED = {
    "rope.global.freq_base": "rope.freq_base",
    "rope.local.freq_base": "rope.freq_base_swa",
    "rope.scaling.beta_fast": "rope.scaling.yarn_beta_fast",
    "rope.scaling.beta_slow": "rope.scaling.yarn_beta_slow",
    "rope.scaling.extrapolation_factor": "rope.scaling.yarn_ext_factor",
}
_PER_TOKEN = ("tokens", "scores", "token_type")
# Gemma 3 from 4B on was trained with 16k positions and stretched to these; Ollama leaves out how.
_GEMMA3_POSITIONS, _GEMMA3_FACTOR = 131072, 8.0


def in_llama_cpp_words(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """The metadata with llama.cpp's names, without the vision part's; of other files, as it is."""
    arch = metadata.get("general.architecture")
    prefix = f"{arch}."
    words: dict[str, Any] = {}
    for key, value in metadata.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name in _RENAMED:
            words.setdefault(prefix + _RENAMED[name], value)
        elif not (key.startswith(prefix) and name.startswith(_VISION_KEYS)):
            words[key] = value
    if len(words) < len(metadata) or any(name.startswith(GGUF_VISION) for name in tensors):
        positions = words.get("gemma3.context_length")
        if isinstance(positions, int) and positions >= _GEMMA3_POSITIONS:
            words.setdefault("gemma3.rope.scaling.factor", _GEMMA3_FACTOR)
        _cut_tokens(words, tensors)
    return words


def _cut_tokens(words: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Leave out the tokens of images, which have no row in the embedding of the text part."""
    embedding = tensors.get("token_embd.weight")
    if embedding is not None:
        for name in _PER_TOKEN:
            values = words.get(f"tokenizer.ggml.{name}")
            if isinstance(values, list | np.ndarray):
                words[f"tokenizer.ggml.{name}"] = values[: embedding.shape[0]]
