"""How a source says that its model is sampled: generation_config.json, or a GGUF's keys for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import SourceError

_MOST = (1 << 31) - 1  # the runtime's k is an int32; more is no temperature either


def checked_sampling(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a generation_config.json says of sampling, in numbers that the runtime can hold.

    As in llama.cpp, a temperature below 0 is greedy, and a top_k below 1 no limit.

    Args:
        name: the model's, for messages.

    Returns:
        Those of do_sample, temperature, top_p and top_k that are set.

    Raises:
        SourceError: a value is not the number that transformers and llama.cpp want.
    """
    said = {"do_sample": config["do_sample"]} if "do_sample" in config else {}
    for key, kind, wanted in (
        ("temperature", float, "a number"),
        ("top_p", float, "a number"),
        ("top_k", int, "a whole number"),
    ):
        value = config.get(key)
        if value is None:
            continue
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if not (is_number and abs(value) <= _MOST):
            raise SourceError(
                f"{name}: sampling",
                f"{key}={value!r:.60} is not {wanted} that sampling can use",
                "correct generation_config.json (of a GGUF, its general.sampling keys)",
            )
        said[key] = max(kind(0), value)
    return said
