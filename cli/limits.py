"""Numbers that options take: argparse types, which the interface for Python uses, too."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cli.request import flag
from converter.errors import OptionError

_INT32_MAX = 2**31 - 1  # what the engine's C interface takes
_MOST_THREADS = 256


def _positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _positive_or_auto(text: str) -> int | str:
    """An argparse type: a whole number above 0, or `auto`."""
    try:
        return text if text == "auto" else _positive(text)
    except argparse.ArgumentTypeError:
        message = f"{text!r} is neither a positive integer nor auto"
        raise argparse.ArgumentTypeError(message) from None


def _size(text: str) -> int:
    """An argparse type: an amount of memory, `3GB` or `1.5 GiB`, in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt])(i?)b", text.lower())
    if found is None or not (value := float(found[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory, as 3GB or 800MB is")
    return int(value * (1024 if found[3] else 1000) ** (1 + "kmgt".index(found[2])))


def _integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return parse


def _real(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number in a range, which `above` leaves open at its low end."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = math.isfinite(value) and low <= value <= high and not (above and value == low)
        if not inside:
            border = "more than" if above else "at least"
            limit = "" if math.isinf(high) else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {border} {low:g}{limit}")
        return value

    return parse


# The options' names in Python.
LIMITS: Mapping[str, Callable[[str], Any]] = {
    "kv_cache_max_len": _positive_or_auto,
    "memory": _size,
    "bits": _real(0, 32, above=True),
    "context": _positive,
    "batch": _positive,
    "max_chunk_mb": _positive,
    "restart": _integer(1, 8),  # ANEMLL's steps
    "only": _integer(1, 8),
    "tokens": _integer(64, _INT32_MAX),
    "max_tokens": _integer(1, _INT32_MAX),
    "temperature": _real(0, math.inf),
    "top_k": _integer(1, _INT32_MAX),
    "top_p": _real(0, 1, above=True),
    "seed": _integer(0, _INT32_MAX),
    "threads": _integer(1, _MOST_THREADS),
}


def parsed_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among `options` as the command line reads them: "64" and numpy's 64 are 64.

    Raises:
        OptionError: one is no number, or is out of its range. None is left out.
    """
    numbers = {}
    for name, value in options.items():
        if name in LIMITS and value is not None:
            try:
                numbers[name] = LIMITS[name](str(value))
            except argparse.ArgumentTypeError as error:
                raise OptionError(flag(name), str(error), "choose another one") from None
    return numbers
