"""Adapters in a GGUF file, as llama.cpp's convert_lora_to_gguf.py writes them from PEFT's.

NAME.lora_a and NAME.lora_b are the A and B of the base GGUF's tensor NAME, and lie as that does:
rows of q and k are reordered where those of the base are. Of `token_embd.weight` A is transposed,
(tokens, rank). Norms, which mergekit extracts, stand there whole.
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from converter.checkpoint.gguf import GGUFFile
from converter.checkpoint.gguf_config import architecture
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.families.base import Family
from converter.families.tensors import WeightSource
from converter.registry import family_class, is_variant
from converter.weights.lora_adapter import WHOLE, Adapter, damaged

_PART = re.compile(r"(?P<name>.+)\.lora_(?P<side>[ab])")
_EMBEDDING = "token_embd.weight"
_SIDES = {"a": "A", "b": "B"}
_SIDES_OF_EMBEDDING = {"a": "token_A", "b": "embedding_B"}
_ALPHA, _TYPE = "adapter.lora.alpha", "adapter.type"
_TOKENS = "adapter.alora.invocation_tokens"
# The others describe a task, for programs that choose among adapters.
_KNOWN = (_ALPHA, _TYPE, _TOKENS, "adapter.lora.task_name", "adapter.lora.prompt_prefix")


class GGUFAdapter(Adapter):
    """An open file.

    Attributes:
        metadata: its key-value pairs.

    Raises:
        SourceError: it is no GGUF, damaged, or a whole model.
        UnsupportedError: it is another kind of adapter than LoRA's, or not always active.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = GGUFFile(path)
        try:
            self.metadata = self.weights.metadata
            self._check_kind()
        except BaseException:
            self.weights.close()
            raise

    def _check_kind(self) -> None:
        what, metadata = str(self.path), self.metadata
        if metadata.get("general.type") != "adapter" and _TYPE not in metadata:
            raise SourceError(
                what,
                "it is a GGUF, and no adapter (general.type says so of one)",
                "pass a file that convert_lora_to_gguf.py made, or name it as MODEL",
            )
        if metadata.get(_TYPE) != "lora":
            raise UnsupportedError(
                what, f"{_TYPE}={metadata.get(_TYPE)!r:.80} is not lora", "pass a LoRA adapter"
            )
        if len(_listed(metadata.get(_TOKENS))):
            raise UnsupportedError(
                what,
                f"{_TOKENS} is set: it is active only after these tokens",
                "no file of one network can do that: take an adapter that is always active",
            )
        for key, value in metadata.items():
            if key.startswith("adapter.") and key not in _KNOWN:
                raise UnsupportedError(
                    what,
                    f"{key}={value!r:.80}: this key is not known here, and may change the numbers",
                    "pass the PEFT folder that it was made of",
                )
        alpha = metadata.get(_ALPHA, 0.0)
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise damaged(self.path, f"{_ALPHA}={alpha!r:.80} is not a number")

    def layout(self, family: Family) -> Family:
        """That of its architecture: in GGUFs, Mistral's models lie as Llama's do."""
        arch = architecture(str(self.path), self.metadata)
        kind = family_class(arch, "gguf", f"{self.path}: general.architecture")
        if kind is type(family) or is_variant(family.name, arch):
            return family
        shared = {field.name for field in dataclasses.fields(kind)} & vars(family).keys()
        with contextlib.suppress(LiteRTLMError):  # that family has no such networks
            found = kind(**{name: getattr(family, name) for name in shared})
            if dict(found.spec().weight_shapes()) == dict(family.spec().weight_shapes()):
                return found
        raise SourceError(
            str(self.path),
            f"it is for the architecture {arch}, and the model is {family.name}",
            f"take the model that the adapter was made for: {self.made_for}",
        )

    def share(self, found: dict[str, dict[str, str]], sources: dict[str, WeightSource]) -> None:
        """Each use of a table has tensors of its own."""

    @property
    def made_for(self) -> str:
        name = self.metadata.get("general.base_model.0.repo_url")
        return str(name or self.metadata.get("general.base_model.0.name") or super().made_for)

    def part_of(self, tensor: str) -> tuple[str, str]:
        match = _PART.fullmatch(tensor)
        if match is not None:
            sides = _SIDES_OF_EMBEDDING if match["name"] == _EMBEDDING else _SIDES
            return match["name"], sides[match["side"]]
        return (tensor, WHOLE) if tensor.endswith("_norm.weight") else ("", "")

    def scaling(self, tensor: str, rank: int) -> float:
        alpha = float(self.metadata.get(_ALPHA, 0.0))
        return alpha / rank if alpha else 1.0


def _listed(value: Any) -> Any:
    """An array of metadata; one value as an array of one."""
    return () if value is None else value if hasattr(value, "__len__") else (value,)
