"""The one place that knows which families there are.

Keys are `model_type` of a config.json and `general.architecture` of a GGUF; they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import SourceError, UnsupportedError
from converter.families.base import Family
from converter.families.gemma3 import Gemma3
from converter.families.llama import Llama
from converter.families.qwen2 import Qwen2
from converter.families.qwen3 import Qwen3

FAMILIES: dict[str, type[Family]] = {
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config, read and validated.

    Raises:
        SourceError: the config has no `model_type`, or values that make no sense.
        UnsupportedError: no family here covers it, or it asks for something that its family lacks.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError("config.json", "has no model_type", "is this a language model's folder?")
    return family_class(model_type).from_config(config)


def family_class(architecture: str, key: str = "model_type") -> type[Family]:
    """The family of an architecture; `key` is what named it, for the message.

    Raises:
        UnsupportedError: no family here covers it.
    """
    if architecture not in FAMILIES:
        raise UnsupportedError(
            f"{key} {architecture}",
            "not a supported architecture",
            f"supported are: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[architecture]
