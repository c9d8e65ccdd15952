"""What the last call of the engine says too much is cut where the limit is, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.engine import Model
from runner.limit import Limit, Piece, reads_back, without_last

TOLD = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(smollm2_bundle: Path) -> Iterator[Model]:
    with Model(smollm2_bundle) as opened:
        yield opened


def said(limit: Limit, parts: list[str], made: int) -> str:
    """All that is let through of these parts, a call each."""
    through = [piece for part in parts for piece in limit.feed([Piece(part, "answer")])]
    return "".join(piece.text for piece in [*through, *limit.rest(made)])


@pytest.mark.parametrize("room", range(1, 13))
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_text_ends_with_its_last_token(room: int, at_once: int, model: Model) -> None:
    tokens = model.tokenize(" Once upon a time, a dog found 42 keys.")
    calls = [tokens[i : i + at_once] for i in range(0, len(tokens), at_once)]
    made, parts = 0, []
    for call in calls:
        if made < room:
            made += len(call)
            parts.append(model.detokenize(call))
    assert said(Limit(model, TOLD, room), parts, made) == model.detokenize(tokens[:room])


def test_a_stop_token_has_no_text(model: Model) -> None:
    """Of four tokens that the last call says, the last one ends the answer."""
    parts = ["One", " two three four"]
    assert said(Limit(model, TOLD, 3), parts, 5) == "One two three"
    assert said(Limit(model, TOLD, 4), parts, 5) == "One two three four"
    assert said(Limit(model, TOLD, 5), parts, 5) == "One two three four"


def test_a_character_that_is_cut_is_left_out(model: Model) -> None:
    whole = model.tokenize("One 😀")
    assert len(whole) == 3  # the face is two of them, with the blank
    assert said(Limit(model, TOLD, 2), ["One", " 😀"], 3) in ("One", "One ")
    # Of a second face the engine has said a part.
    for room, text in ((1, "One"), (3, "One 😀")):
        parts = ["One", " 😀", "\ufffd"]
        assert said(Limit(model, TOLD, room), parts, 4) == text


def test_a_limit_may_be_in_the_thoughts(model: Model) -> None:
    one, two, three = (
        Piece("One", "thought"), Piece(" two three", "thought"), Piece(" four", "answer"),
    )  # fmt: skip
    for room, expected in ((3, [one, two]), (2, [one, Piece(" two", "thought")]), (1, [one])):
        limit = Limit(model, TOLD, room)
        assert [*limit.feed([one, two, three]), *limit.rest(4)] == expected


def test_far_from_the_limit_nothing_is_held(model: Model) -> None:
    for room in (None, 1000):
        limit = Limit(model, TOLD, room)
        assert list(limit.feed([Piece("One", "answer")])) == [Piece("One", "answer")]
    near = Limit(model, TOLD, 8)
    assert list(near.feed([Piece("One two three", "answer")])) == []
    assert list(near.rest(3)) == [Piece("One two three", "answer")]


def test_an_answer_that_reads_back(model: Model) -> None:
    assert reads_back(model, TOLD, "One two", 3)
    assert not reads_back(model, TOLD, "One two", 2)


def test_without_the_last_tokens(model: Model) -> None:
    assert without_last(model, "One two three", 1) == "One two"
    assert without_last(model, " One two", 1) == " One"
    assert without_last(model, "One", 1) == ""
