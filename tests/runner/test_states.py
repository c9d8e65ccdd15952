"""What the engine keeps between calls, in models that keep more than keys and values.

The engine empties no state when a conversation begins or goes back: whatever was said before, the
text must be that of an engine that has just been started.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from runner.engine import Model
from tests.edited_bundle import edited_bundle
from tests.tiny_models import TINY_CONFIGS, random_model, write_tokenizer

MODELS = ["lfm2", "lfm2-biases-untied", "lfm2_moe"]
QUESTIONS = ["What is the capital of France?", "Is it? " * 30, "And of Spain?"]
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: they say what depends on every state."""
    folder: Path = tmp_path_factory.mktemp("states")
    model_type, values = TINY_CONFIGS[request.param]
    special = ("<s>", "<|im_end|>", "<|im_start|>", "<unused>")
    values = {**values, "vocab_size": 256 + len(special)}
    random_model(model_type, values, seed=4).save_pretrained(folder)
    write_tokenizer(folder, special)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": _CHATML})
    )
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions("fp32", prefill_lengths=(8, 32, 128), cache_length=1024)
        ModelConverter(checkpoint, "tiny", options).convert(folder / "tiny.litertlm")
    return folder / "tiny.litertlm"


def test_what_is_taken_back_needs_no_new_conversation(bundle: Path) -> None:
    assert not Model(bundle).has_recurrent_state


class Chats:
    """An engine, and greedy conversations with it."""

    def __init__(self, bundle: Path) -> None:
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
        self.sampler = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
        self.stack = ExitStack()
        self.engine = self.stack.enter_context(litert_lm.Engine(str(bundle), cache_dir=":nocache"))

    def __enter__(self) -> Chats:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def begin(self, history: Sequence[dict[str, str]] = ()) -> Any:
        """A conversation, closed before the engine is."""
        return self.stack.enter_context(
            self.engine.create_conversation(messages=list(history), sampler_config=self.sampler)
        )


def ask(conversation: Any, question: str, tokens: int = 30) -> str:
    """The text of an answer and of its thoughts."""
    answer = conversation.send_message(question, max_output_tokens=tokens)
    return "".join(answer.channels.values()) + str(answer)


def fresh(
    bundle: Path, questions: Sequence[str], history: Sequence[dict[str, str]] = (), tokens: int = 30
) -> list[str]:
    """What an engine that has just been started answers."""
    with Chats(bundle) as chats:
        conversation = chats.begin(history)
        return [ask(conversation, question, tokens) for question in questions]


def test_conversations_one_after_another_and_by_turns(bundle: Path) -> None:
    one, other = QUESTIONS, QUESTIONS[::-1]
    with Chats(bundle) as chats:
        first = chats.begin()
        answers = [[ask(first, one[0])], []]
        second = chats.begin()  # while the first goes on
        for i in (1, 2):
            answers[1].append(ask(second, other[i - 1]))
            answers[0].append(ask(first, one[i]))
        answers[1].append(ask(second, other[2]))
        first.close()
        third = chats.begin()
        answers.append([ask(third, question) for question in one])
    expected = fresh(bundle, one)
    assert len(set(expected)) == len(expected)
    assert answers == [expected, fresh(bundle, other), expected]


def test_an_interrupted_answer(bundle: Path) -> None:
    with Chats(bundle) as chats:
        chat, said = chats.begin(), ""
        for piece in chat.send_message_async(QUESTIONS[0], max_output_tokens=200):
            said += str(piece)
            if len(said) > 20:
                chat.cancel_process()
        chat.close()
        history = [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": said},
        ]
        again = chats.begin(history)
        answers = [ask(again, question) for question in QUESTIONS[1:]]
    assert answers == fresh(bundle, QUESTIONS[1:], history)


@pytest.mark.parametrize("tokens", [40, 300])
def test_thoughts_that_are_taken_back(bundle: Path, tokens: int, tmp_path: Path) -> None:
    """However long they were."""

    def think(metadata: Any) -> None:
        metadata.jinja_prompt_template += (
            "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
        )
        metadata.channels.add(channel_name="thought", start="<think>\n", end="\ue000")

    thinker = edited_bundle(bundle, tmp_path / "thinker.litertlm", think)
    with Chats(thinker) as chats:
        chat, history = chats.begin(), []
        for question in QUESTIONS:
            before = chat.token_count
            answer = ask(chat, question, tokens)
            assert answer == fresh(thinker, [question], history, tokens)[0]
            history += [{"role": "user", "content": question}]
            history += [{"role": "assistant", "content": ""}]
        assert chat.token_count < before + tokens  # they are gone
