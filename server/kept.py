"""Conversations of the engine that are kept for the request that goes on with them.

A chat arrives again with one more turn. Where its messages begin with all that a kept conversation
has heard and said, only what is new is read. The engine is known to do that exactly; cloning a
conversation and going back in one it does not (docs/runtime.md), so neither is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

_MOST = 32

Message = dict[str, Any]


@dataclass
class Kept:
    """A conversation of the engine that has nothing to do.

    Attributes:
        key: what cannot change in a conversation: sampler, tools, thinking, constraints.
        messages: all that it has heard, and its own last answer.
        nbytes: of memory that it takes.
    """

    conversation: Any
    key: bytes
    messages: list[Message]
    nbytes: int


class Pool:
    """Those that are kept, the latest last."""

    def __init__(self, most_bytes: int, close: Callable[[Any], None]) -> None:
        """
        Args:
            most_bytes: that they may take; the latest is kept in any case.
        """
        self._kept: list[Kept] = []
        self._most_bytes = most_bytes
        self._close = close

    def take(self, key: bytes, messages: Sequence[Message]) -> Kept | None:
        """The one that has most of these messages, all of its own among them; it is kept no more.

        At least one message is new.
        """
        fitting = [
            kept
            for kept in self._kept
            if kept.key == key
            and len(kept.messages) < len(messages)
            and kept.messages == list(messages[: len(kept.messages)])
        ]
        if not fitting:
            return None
        best = max(fitting, key=lambda kept: len(kept.messages))
        self._kept.remove(best)
        return best

    def put(self, kept: Kept) -> None:
        """Keep one; the one that has waited longest may have to go."""
        self._kept.append(kept)
        while len(self._kept) > 1 and self._is_too_much():
            self._close(self._kept.pop(0).conversation)

    def _is_too_much(self) -> bool:
        held = sum(kept.nbytes for kept in self._kept)
        return len(self._kept) > _MOST or held > self._most_bytes

    def clear(self) -> None:
        """Close all."""
        while self._kept:
            self._close(self._kept.pop().conversation)


def key_of(*parts: Any) -> bytes:
    """Equal for equal settings."""
    return msgspec.json.encode(parts, order="deterministic")
