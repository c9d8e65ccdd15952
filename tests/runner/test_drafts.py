"""Conversations with a file that drafts: where they do, and that nobody can tell by the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.litertlm.bundle import Section, lay_out
from converter.litertlm.inspection import read_bundle
from runner.chat import describe
from runner.conversation import Conversation
from runner.engine import Model, Sampling
from runner.options import ChatOptions
from tests.conftest import SAID
from tests.edited_bundle import always_thinks, edited_bundle

GREEDY = Sampling(temperature=0)
QUESTION = f"Say:{''.join(SAID)}."


@pytest.fixture(scope="module")
def model(drafting_bundle: Path) -> Iterator[Model]:
    with Model(drafting_bundle, benchmark=True) as opened:
        yield opened


def say(conversation: Conversation, question: str = QUESTION) -> str:
    return "".join(piece.text for piece in conversation.ask(question))


def drafted_pieces(conversation: Conversation) -> int:
    assert conversation.statistics is not None
    return conversation.statistics.drafted_pieces


def test_the_text_comes_in_fewer_pieces(model: Model) -> None:
    used = []
    for drafts in (True, False):
        conversation = model.conversation(sampling=GREEDY, drafts=drafts)
        for _ in range(2):
            assert say(conversation) == "".join(SAID)
            assert conversation.statistics is not None
            said = describe(conversation.statistics)
            assert said.endswith(" at a time with drafts") is drafts
            assert (0 < drafted_pieces(conversation) < len(SAID) / 2) is drafts
            used.append(conversation.used_tokens)
    assert used[:2] == used[2:]


@pytest.mark.parametrize("drafts", [(True, False), (True, True), (False, True, False)])
def test_conversations_in_turns(drafts: tuple[bool, ...], drafting_bundle: Path) -> None:
    """One is open at a time once one has drafted: the engine fails where it turns to another."""
    with Model(drafting_bundle, benchmark=True) as model:
        conversations = [model.conversation(sampling=GREEDY, drafts=one) for one in drafts]
        for _ in range(8):
            for conversation, is_drafted in zip(conversations, drafts, strict=True):
                assert say(conversation) == "".join(SAID)
                assert bool(drafted_pieces(conversation)) is is_drafted
                is_open = [one for one in conversations if one.used_tokens is not None]
                assert is_open == [conversation] or not model.has_drafted


def test_conversations_without_drafts_stay_open(drafting_bundle: Path) -> None:
    with Model(drafting_bundle) as model:
        conversations = [model.conversation(sampling=GREEDY, drafts=False) for _ in range(2)]
        for conversation in conversations * 2:
            assert say(conversation) == "".join(SAID)
        assert all(one.used_tokens is not None for one in conversations)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6, 7, len(SAID), len(SAID) + 1])
def test_an_answer_has_max_tokens_and_no_more(most: int, model: Model) -> None:
    for drafts in (False, True):
        conversation = model.conversation(sampling=GREEDY, max_tokens=most, drafts=drafts)
        assert say(conversation) == "".join(SAID[:most])
        assert conversation.finish == "length"
        assert conversation.statistics is not None
        assert conversation.statistics.decode_tokens == most
        assert bool(drafted_pieces(conversation)) is drafts
        assert conversation.history[-1]["content"] == "".join(SAID[:most])
        assert say(conversation, "Go on.") == "".join(SAID[:most])
        conversation.close()


def test_what_is_sampled_is_not_drafted(model: Model) -> None:
    """Even after a greedy answer in the same engine, which has the drafter from then on."""
    say(model.conversation(sampling=GREEDY))
    for sampling in (
        Sampling(temperature=0.5),
        Sampling(top_k=40),
        Sampling(temperature=2, seed=1),
    ):
        conversation = model.conversation(sampling=sampling)
        pieces = list(conversation.ask(QUESTION))
        assert drafted_pieces(conversation) == 0
        assert conversation.statistics is not None
        assert len(pieces) >= len("".join(p.text for p in pieces).split())  # one token each


def test_the_first_token_of_a_hot_answer_is_not_all_that_a_seed_changes(model: Model) -> None:
    say(model.conversation(sampling=GREEDY))
    hot = [Sampling(temperature=50, top_k=30, top_p=1, seed=seed) for seed in (1, 2)]
    said = [say(model.conversation(sampling=one, max_tokens=12)) for one in hot]
    assert said[0][-8:] != said[1][-8:]


def test_the_user_may_switch_it_off(drafting_bundle: Path, model: Model) -> None:
    for drafts in (True, False):
        for raw in (True, False):
            options = ChatOptions(temperature=0, drafts=drafts, raw=raw)
            conversation = options.start(model)
            assert say(conversation) == "".join(SAID)
            assert bool(drafted_pieces(conversation)) is drafts


def test_what_the_file_s_own_sampler_says(drafting_bundle: Path, tmp_path: Path) -> None:
    """Where nothing is chosen, or a seed alone."""
    for k in (1, 40):

        def samples(metadata: Any, k: int = k) -> None:
            sampler = metadata.sampler_params
            sampler.type, sampler.k, sampler.p, sampler.temperature = sampler.TOP_P, k, 0.9, 0.7

        with Model(edited_bundle(drafting_bundle, tmp_path / f"{k}.litertlm", samples)) as model:
            assert model.may_draft(None) is (k == 1)
            assert model.may_draft(Sampling(seed=5)) is (k == 1)
            assert not model.may_draft(Sampling(top_p=0.9))
            assert model.may_draft(GREEDY)


def test_a_file_without_a_drafter(qwen3_bundle: Path) -> None:
    with Model(qwen3_bundle) as model:
        assert not model.may_draft(GREEDY)
        assert not model.drafts_stops


@pytest.mark.parametrize("drafts", [False, True])
def test_thoughts_are_told_from_the_answer(
    drafts: bool, drafting_bundle: Path, tmp_path: Path
) -> None:
    """The mark that ends them stands in the middle of what a call says."""

    def thinks(metadata: Any) -> None:
        always_thinks(metadata)
        metadata.channels[0].end = SAID[6]

    path = edited_bundle(drafting_bundle, tmp_path / "m.litertlm", thinks)
    with Model(path, benchmark=True) as model:
        conversation = model.conversation(sampling=GREEDY, max_tokens=4, drafts=drafts)
        pieces = list(conversation.ask(QUESTION))
        assert bool(drafted_pieces(conversation)) is drafts
        texts = {
            kind: "".join(piece.text for piece in pieces if piece.kind == kind)
            for kind in ("thought", "answer")
        }
        assert texts == {"thought": "".join(SAID[:6]), "answer": "".join(SAID[7:11])}
        assert conversation.finish == "length"


def test_the_end_of_the_context(model: Model, drafting_bundle: Path, tmp_path: Path) -> None:
    whole = model.conversation(sampling=GREEDY)
    say(whole)
    assert whole.used_tokens is not None
    length = whole.used_tokens - 6

    def short(metadata: Any) -> None:
        metadata.max_num_tokens = length

    path = edited_bundle(drafting_bundle, tmp_path / "m.litertlm", short)
    with Model(path) as short_model:
        for drafts in (False, True):
            conversation = short_model.conversation(sampling=GREEDY, drafts=drafts)
            assert say(conversation) == "".join(SAID[:-5])  # one of the six is the end mark
            assert conversation.finish == "context"


def test_a_foreign_drafter_may_lose_the_end_of_an_answer(
    drafting_bundle: Path, tmp_path: Path
) -> None:
    """Where the engine's cache may lack it, the next turn begins anew; here nothing is lost."""
    bundle, data = read_bundle(drafting_bundle), drafting_bundle.read_bytes()
    foreign = {key: value for key, value in bundle.system.items() if key != "draft"}
    layout = lay_out([Section(s.kind, s.nbytes, s.items) for s in bundle.sections], foreign)
    path = tmp_path / "m.litertlm"
    with path.open("wb") as file:
        file.write(layout.header)
        for section, offset in zip(bundle.sections, layout.offsets, strict=True):
            file.seek(offset)
            file.write(data[section.offset : section.offset + section.nbytes])
    edited_bundle(path, tmp_path / "thinker.litertlm", always_thinks)
    for name, is_kept in (("m", True), ("thinker", False)):
        with Model(tmp_path / f"{name}.litertlm") as model:
            assert model.drafts_stops
            conversation = model.conversation(sampling=GREEDY)
            say(conversation)
            assert (conversation.used_tokens is not None) is is_kept
            assert say(conversation)
