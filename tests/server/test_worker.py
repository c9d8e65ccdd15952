"""A worker with a model that drafts: what it says of its answers, in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import zero_pages
from runner.engine import Model
from server import wire
from server.worker import Worker
from tests.conftest import SAID

QUESTION = {"role": "user", "content": f"Say:{''.join(SAID)}."}
GREEDY = wire.Sampler(temperature=0)
PLAIN = wire.Sampler(temperature=0, presence_penalty=1e-9)  # which drafts nothing


@pytest.fixture(scope="module")
def model(drafting_bundle: Path) -> Iterator[Model]:
    with Model(drafting_bundle) as opened:
        yield opened


class Asked:
    """All that a worker says of some questions."""

    def __init__(self, model: Model, *asks: wire.Ask, keep_bytes: int = 1 << 20) -> None:
        asked, said = io.BytesIO(b"".join(map(wire.packed, asks))), io.BytesIO()
        # The end of what is asked cancels what runs, so the worker hears the questions alone.
        worker = Worker(model, said, keep_bytes)
        while (ask := wire.read(asked)) is not None:
            assert isinstance(ask, wire.Ask)
            worker._answer(ask)
        worker._pool.clear()
        data, self.said = said.getvalue(), []
        while data:
            size = int.from_bytes(data[: wire.LENGTH_BYTES], "big")
            content, data = data[wire.LENGTH_BYTES :][:size], data[wire.LENGTH_BYTES + size :]
            self.said.append(wire.unpacked(content))

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.said if isinstance(one, kind)]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.of(wire.Piece))


def test_a_greedy_answer_is_drafted_and_kept_for_the_next_turn(model: Model) -> None:
    first = wire.Ask(1, [QUESTION], sampler=GREEDY)
    answer = {"role": "assistant", "content": "".join(SAID)}
    asked = Asked(model, first, wire.Ask(2, [QUESTION, answer, QUESTION], sampler=GREEDY))
    assert asked.text == "".join(SAID) * 2
    one, two = asked.of(wire.Done)
    assert one.completion_tokens == two.completion_tokens == len(SAID) + 1
    assert 0 < one.drafted_pieces < len(SAID) / 2
    begun, again = asked.of(wire.Started)
    assert again.cached_tokens == begun.prompt_tokens + one.completion_tokens


@pytest.mark.parametrize(("gives_back", "again"), [(True, [True, True]), (False, [False, False])])
def test_chats_are_kept_by_the_memory_that_they_take(
    gives_back: bool, again: list[bool], drafting_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two short ones are together less than one in full, where what is not in use is given back."""
    if not gives_back:
        monkeypatch.setattr(zero_pages, "give_back", lambda: None)
    questions = [{"role": "user", "content": f"{name}: say:{''.join(SAID)}."} for name in "AB"]
    with Model(drafting_bundle) as model:
        first = [wire.Ask(1 + i, [one], sampler=PLAIN) for i, one in enumerate(questions)]
        answers = [{"role": "assistant", "content": Asked(model, ask).text} for ask in first]
        second = [
            wire.Ask(3 + i, [questions[i], answers[i], QUESTION], sampler=PLAIN) for i in range(2)
        ]
        asked = Asked(model, *first, *second, keep_bytes=model.state_bytes)
        assert [one.cached_tokens > 0 for one in asked.of(wire.Started)[2:]] == again


@pytest.mark.parametrize("samplers", [(GREEDY, GREEDY), (GREEDY, PLAIN), (PLAIN, GREEDY)])
def test_chats_in_turns(samplers: tuple[wire.Sampler, ...], model: Model) -> None:
    """One that drafts is alone in the engine, so none of them is kept for the other's turn."""
    questions = [{"role": "user", "content": f"{name}: say:{''.join(SAID)}."} for name in "AB"]
    answer = {"role": "assistant", "content": "".join(SAID)}
    asks = [
        wire.Ask(2 * turn + i, [*[questions[i], answer] * turn, questions[i]], sampler=sampler)
        for turn in range(8)
        for i, sampler in enumerate(samplers)
    ]
    asked = Asked(model, *asks)
    assert asked.text == "".join(SAID) * len(asks)
    assert [one.drafted_pieces > 0 for one in asked.of(wire.Done)] == [
        sampler == GREEDY for sampler in samplers
    ] * 8
    assert not any(one.cached_tokens for one in asked.of(wire.Started))


@pytest.mark.parametrize("most", [1, 2, 5, 6, 7, len(SAID)])
def test_an_answer_has_max_tokens_and_no_more(most: int, model: Model) -> None:
    asked = Asked(model, wire.Ask(1, [QUESTION], sampler=GREEDY, max_tokens=most))
    assert asked.text == "".join(SAID[:most])
    [done] = asked.of(wire.Done)
    assert (done.finish, done.completion_tokens) == ("length", most)
    assert done.drafted_pieces > 0


def test_a_stop_string_in_the_middle_of_a_call(model: Model) -> None:
    asked = Asked(model, wire.Ask(1, [QUESTION], sampler=GREEDY, stop=["saw", "bed"]))
    assert asked.text == "".join(SAID).partition("saw")[0]
    assert asked.of(wire.Done)[0].finish == "stop_string"


def test_penalties_that_change_nothing_are_none(model: Model) -> None:
    sampler = wire.Sampler(
        temperature=0, repeat_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0
    )
    asked = Asked(model, wire.Ask(1, [QUESTION], sampler=sampler))
    assert asked.text == "".join(SAID)
    assert asked.of(wire.Done)[0].drafted_pieces > 0


@pytest.mark.parametrize(
    "free",
    [
        {"sampler": wire.Sampler(temperature=0.5, seed=3)},
        {"sampler": wire.Sampler(temperature=0, repeat_penalty=1.1)},
        {"sampler": wire.Sampler(temperature=0, presence_penalty=0.5)},
        {"sampler": wire.Sampler(temperature=0, frequency_penalty=-0.5)},
        {"sampler": GREEDY, "constraint": wire.Constraint("regex", "[ a-z]{5,40}")},
    ],
)
def test_what_drafts_would_change_or_end_is_not_drafted(free: Any, model: Model) -> None:
    """After a drafted answer, too: the engine then has its drafter."""
    asked = Asked(model, wire.Ask(1, [QUESTION], sampler=GREEDY), wire.Ask(2, [QUESTION], **free))
    assert not asked.of(wire.Failed)
    assert [done.drafted_pieces > 0 for done in asked.of(wire.Done)] == [True, False]
