"""What commands do to a chat, with the real engine."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.chat.session import Session
from converter.errors import LiteRTLMError, OptionError, SourceError
from runner.options import ChatOptions
from tests.conftest import SAID
from tests.edited_bundle import completes_text, edited_bundle

GREEDY = ChatOptions(temperature=0, max_tokens=6)


def path_of(name: str) -> Path:
    if name == "gone":
        raise SourceError(name, "there is no such model", "check the name")
    return Path(name)


class Chat:
    """A session, and what it wrote."""

    def __init__(self, model: Path, options: ChatOptions) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.session = Session(str(model), options, path_of, self.out, self.err)

    def answer(self) -> str:
        """The last one; it is forgotten."""
        said = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return said.strip("\n")

    def said(self, message: str) -> str:
        self.session.say(message)
        return self.answer()

    def retried(self) -> str:
        self.session.retry()
        return self.answer()


@pytest.fixture
def chat(smollm2_bundle: Path) -> Iterator[Chat]:
    chat = Chat(smollm2_bundle, GREEDY)
    with chat.session:
        yield chat


def test_a_greedy_retry_is_the_same(chat: Chat) -> None:
    chat.said("My name is Anna.")
    first = chat.said("Count to ten.")
    assert chat.retried() == first == chat.session.last_answer
    assert "so the answer stays the same" in chat.err.getvalue()
    assert "context: about " in chat.session.statistics


def test_a_drawn_retry_differs_and_can_be_repeated(smollm2_bundle: Path) -> None:
    drawn = ChatOptions(temperature=1.5, top_k=200, seed=7, max_tokens=8)
    answers = []
    for _ in range(2):
        chat = Chat(smollm2_bundle, drawn)
        with chat.session:
            answers.append([chat.said("Tell me a story."), chat.retried(), chat.retried()])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


def test_options_hold_from_the_next_message_and_the_history_stays(
    chat: Chat, tmp_path: Path
) -> None:
    chat.said("Say hi.")
    chat.session.change(system="Answer in French.", temperature=0.5)
    assert chat.session.options == replace(GREEDY, system="Answer in French.", temperature=0.5)
    chat.said("Say hi.")
    saved = json.loads(chat.session.save(str(tmp_path / "a")).read_text())
    roles = [message["role"] for message in saved["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert (saved["temperature"], saved["max_tokens"]) == (0.5, 6)


def test_drafts_follow_the_temperature(drafting_bundle: Path) -> None:
    chat = Chat(drafting_bundle, ChatOptions(temperature=0.7))
    with chat.session as session:
        for temperature, is_drafted in ((0.7, False), (0, True), (0.7, False)):
            session.change(temperature=temperature)
            chat.said(f"Say:{''.join(SAID)}.")
            assert session.statistics.endswith(" at a time with drafts") is is_drafted


def test_a_loaded_chat_goes_on_as_it_would_have(chat: Chat, tmp_path: Path) -> None:
    chat.session.change(system="You are a pirate.")
    chat.said("My name is Anna.")
    file = chat.session.save(str(tmp_path / "a"))
    assert file == tmp_path / "a.json"
    asked = "What is my name?"
    expected = chat.said(asked)

    chat.session.clear()
    chat.session.change(system=None)
    assert chat.said(asked) != expected
    chat.session.load(str(file))
    assert chat.session.last_answer
    assert chat.said(asked) == expected
    assert chat.session.options.system == "You are a pirate."
    assert chat.session.save(str(file)) == file  # its own file is replaced


def test_a_question_that_was_loaded_waits_for_retry(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "asked.json"
    messages = [{"role": "user", "content": "Say hi."}]
    file.write_text(json.dumps({"messages": messages, "temperature": 0, "max_tokens": 6}))
    expected = chat.said("Say hi.")
    chat.session.change(max_tokens=1)
    chat.session.load(str(file))
    assert chat.session.options == GREEDY  # what the file says
    assert chat.retried() == expected


def test_other_people_s_files_stay(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(OptionError, match="nothing has been said yet"):
        chat.session.save(str(tmp_path / "b.json"))
    chat.said("Say hi.")
    with pytest.raises(LiteRTLMError, match="it exists, and is not of this chat"):
        chat.session.save(str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == "mine"


def test_nothing_is_there_yet(chat: Chat) -> None:
    for do in (chat.session.retry, chat.session.copy):
        with pytest.raises(OptionError, match="ask something"):
            do()
    assert chat.session.statistics == "context: 0 of 1280 tokens\nno answer was measured yet"


def test_another_model_goes_on_with_the_history(
    chat: Chat, qwen3_bundle: Path, smollm2_bundle: Path, tmp_path: Path
) -> None:
    chat.said("My name is Anna.")
    chat.session.switch(str(qwen3_bundle))
    assert chat.session.name == str(qwen3_bundle)
    chat.said("Say hi.")
    with pytest.raises(SourceError, match="no such model"):
        chat.session.switch("gone")
    damaged = tmp_path / "damaged.litertlm"
    damaged.write_bytes(smollm2_bundle.read_bytes()[:100_000])
    with pytest.raises(LiteRTLMError, match="damaged"):
        chat.session.switch(str(damaged))
    chat.said("Say hi.")  # the one before is back
    saved = json.loads(chat.session.save(str(tmp_path / "a")).read_text())
    assert saved["model"] == str(qwen3_bundle)
    assert len(saved["messages"]) == 6


def test_a_base_model_has_no_history_to_save(smollm2_bundle: Path, tmp_path: Path) -> None:
    base = edited_bundle(smollm2_bundle, tmp_path / "base.litertlm", completes_text)
    chat = Chat(base, GREEDY)
    with chat.session:
        first = chat.said("The capital of France is")
        assert chat.retried() == first
        for do in (chat.session.save, chat.session.load):
            with pytest.raises(OptionError, match="each text stands alone here"):
                do(str(tmp_path / "a"))
        with pytest.raises(OptionError, match="base model without a chat template"):
            chat.session.change(system="Be brief.")
        assert chat.said("The capital of France is") == first
    assert "note: this model has no chat template" in chat.err.getvalue()
