"""Reading the fields of a request's body: each has a type and bounds, or the request is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.errors import RequestError

_MOST_DEPTH = 64
_MOST_INT = 2**31 - 1


def decoded(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: it is none, or nested beyond reason.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("the body is not a JSON object")
    if _depth(found) > _MOST_DEPTH:
        raise RequestError("the body is nested too deeply")
    return found


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level and deepest <= _MOST_DEPTH:
        deepest += 1
        level = [
            child
            for item in level
            for child in (
                item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            )
        ]
    return deepest


def number(
    body: Mapping[str, Any], name: str, least: float, most: float, whole: bool = False
) -> Any:
    """A number within bounds; None where it is missing or null."""
    value = body.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and whole and isinstance(value, float) and not value.is_integer():
        is_number = False
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise RequestError(f"{name} is not {what} from {least:g} to {most:g}", name)
    return int(value) if whole else float(value)


def count(body: Mapping[str, Any], name: str, least: int = 1) -> int | None:
    """A whole number that the engine can take."""
    found: int | None = number(body, name, least, _MOST_INT, whole=True)
    return found


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"{name} is not true or false", name)
    return value


def text(body: Mapping[str, Any], name: str) -> str | None:
    """A text that the engine can take."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"{name} is not a text", name)
    return checked_text(value, name)


def checked_text(value: str, name: str) -> str:
    """The text itself, where it is UTF-8 without NUL."""
    if "\0" in value:
        raise RequestError(f"{name} holds a NUL character", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not UTF-8", name) from None
    return value


def texts(body: Mapping[str, Any], name: str, most: int) -> list[str]:
    """A text, or a list of some."""
    value = body.get(name)
    if value is None:
        return []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{name} is not a text or a list of texts", name)
    if len(value) > most:
        raise RequestError(f"{name} has more than {most} texts", name)
    return [checked_text(item, name) for item in value]


def refuse_unknown(
    body: Mapping[str, Any], known: Sequence[str], neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refuse fields that nobody here honours, unless they ask for what is done anyway.

    Args:
        neutral: fields, and the values that change nothing; () for all.
    """
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name in neutral and (not neutral[name] or value in neutral[name]):
            continue
        raise RequestError(f"{name} cannot be honoured here: leave it out", name)
