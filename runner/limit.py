"""The end of an answer, where one call of the engine says several tokens.

With drafts the engine looks at its limits between two calls, each of which says one token and all
drafts that came true. So its last call may say more than there is room for, and a stop token in the
middle of a call is not in its cache afterwards (docs/drafts.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

# What the last call says comes in two pieces where a thought ends in it, and half a character that
# was held back is one more.
_OF_LAST_CALL = 3
# What the engine says in place of a character that is cut, and of how many tokens, at most, an
# answer's text does not tell: of such a character three bytes.
_CUT = "\ufffd"
_MOST_UNSPOKEN = 3

Kind = Literal["answer", "thought", "call"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as soon as it is generated.

    A call is a tool's, in words, right before it is run.
    """

    text: str
    kind: Kind

    def __str__(self) -> str:
        return self.text


class Tokenizer(Protocol):
    """Between texts and token ids."""

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: list[int]) -> str: ...


class Limit:
    """Lets the pieces of an answer through, but for what its last call says too much.

    How many tokens there were the engine tells when the answer has ended, and not before. So once
    the limit may be near, the last pieces are held back.

    Args:
        told: the prompt as the engine reads it.
        room: tokens that the answer may have; None where the engine itself keeps to that.
    """

    def __init__(self, tokenizer: Tokenizer, told: str, room: int | None) -> None:
        self._tokenizer = tokenizer
        self._told = told
        self._room = room
        self._held: list[Piece] = []
        self._heard: dict[Kind, str] = {"answer": "", "thought": ""}
        self._most = 0  # bytes, of which a token has one at least; marks have none

    def feed(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """What can be let through, now that these are there."""
        for piece in filter(str, pieces):
            self._held.append(piece)
            self._heard[piece.kind] += piece.text
            self._most += len(piece.text.encode("utf-8", "replace"))
        is_far = self._room is None or self._most < self._room // 2
        kept = 0 if is_far else _OF_LAST_CALL
        while len(self._held) > kept:
            yield self._held.pop(0)

    def rest(self, made: int) -> Iterator[Piece]:
        """What is left of an answer that has ended.

        Args:
            made: tokens that it has, a stop token too.
        """
        over = 0
        if self._room is not None and made > self._room and self._held:
            last = self._held.pop()
            self._heard[last.kind] = self._heard[last.kind].rstrip(_CUT)
            self._held.append(Piece(last.text.rstrip(_CUT), last.kind))
            over = self._spoken(made) - self._room
        while over > 0 and self._held:
            last = self._held.pop()
            heard = self._heard[last.kind]
            before = heard[: len(heard) - len(last.text)]
            kept = without_last(self._tokenizer, heard, over)
            if len(kept) > len(before):
                self._held.append(Piece(kept[len(before) :], last.kind))
                break
            tokenize = self._tokenizer.tokenize
            over -= len(tokenize(heard)) - len(tokenize(before))
            self._heard[last.kind] = before
        yield from self._held
        self._held.clear()

    def _spoken(self, made: int) -> int:
        """How many of the tokens the text has: not a stop token, nor a character that is cut."""
        spoken = _count(self._tokenizer, self._told, self._heard["answer"])
        is_known = not self._heard["thought"] and made - _MOST_UNSPOKEN <= spoken <= made
        return spoken if is_known else made  # a model may spell it otherwise


def without_last(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """A text without its last tokens; a character that is cut goes with them."""
    ids = tokenizer.tokenize(text)
    kept = tokenizer.detokenize(ids[:-tokens]).rstrip(_CUT)
    # A tokenizer may drop a blank at the beginning, of both alike.
    return text[: len(text) - (len(tokenizer.detokenize(ids)) - len(kept))]


def reads_back(tokenizer: Tokenizer, told: str, said: str, made: int) -> bool:
    """Whether an answer that is told again has as many tokens as were made, its end mark too.

    A model may spell a text in other tokens than the tokenizer would, or in part of a character. A
    conversation that goes on with those would part from one that is told anew.

    Args:
        told: what the answer follows.
    """
    return _count(tokenizer, told, said) + 1 == made


def _count(tokenizer: Tokenizer, told: str, said: str) -> int:
    """Tokens of an answer behind its prompt."""
    return len(tokenizer.tokenize(told + said)) - len(tokenizer.tokenize(told))
