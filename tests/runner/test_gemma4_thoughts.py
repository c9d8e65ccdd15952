"""Gemma 4's thoughts: told apart from answers, and out of the cache when the next turn begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from litert_lm import ThinkingConfig

from converter.text.template_reference import TOOL_TURNS, as_parts
from converter.text.template_renderers import render_as_source
from runner.engine import Model
from tests.converter.text.test_published_shapes import open_box
from tests.edited_bundle import edited_bundle
from tests.family_templates import FAMILY_TEMPLATES
from tests.reciting import reciting_bundle

SMALL, LARGE = "Gemma 4 E2B and E4B", "Gemma 4 26B and 31B"
SAID = ["<|channel>", "thought\n", "It meows.", "<channel|>", "A cat."]
MARKS = ["<|channel>", "<channel|>", "<|turn>", "<turn|>"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gemma4")
    return {
        name: reciting_bundle(
            folder / name.split()[2],
            SAID,
            FAMILY_TEMPLATES[name],
            "gemma4_text-keys-are-values",
            MARKS,
        )
        for name in (SMALL, LARGE)
    }


def printed(name: str, messages: list[dict[str, str]], thinking: bool | None) -> str:
    """What the source prints, without its start token."""
    source = FAMILY_TEMPLATES[name]
    extra: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    tokens = {"bos_token": "", "eos_token": source.eos}
    return render_as_source(source.template, messages, extra=extra, **tokens)


@pytest.mark.parametrize(
    ("is_named", "thinking"), [(True, True), (True, False), (True, None), (False, None)]
)
def test_three_turns_leave_the_source_s_prompts_in_the_cache(
    is_named: bool, thinking: bool | None, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Whether the channel is called reasoning or not: the engine takes it out, and so its caches
    must be whole."""

    def edit(metadata: Any) -> None:
        metadata.channels[0].is_reasoning_channel = is_named

    history: list[dict[str, str]] = []
    with Model(edited_bundle(bundles[SMALL], tmp_path / "m.litertlm", edit)) as model:
        conversation = model.conversation(thinking=thinking)
        for question in ("Hello there.", "Why?", "And now?"):
            history.append({"role": "user", "content": question})
            prompt = printed(SMALL, history, thinking)
            pieces = [(piece.kind, piece.text) for piece in conversation.ask(question)]
            assert pieces == [("thought", "It meows."), ("answer", "A cat.")]
            assert conversation.finish == "stop"
            held = conversation._engine_turns.token_count
            assert held == 1 + len(model.tokenize(prompt)) + len(SAID) + 1  # what ends the turn
            history.append({"role": "assistant", "content": "A cat."})


def test_a_thought_that_the_prompt_closes_is_none(bundles: dict[str, Path]) -> None:
    """The larger models' prompts without thinking."""
    with Model(bundles[LARGE]) as model:
        question = {"role": "user", "content": "Hello there."}
        assert printed(LARGE, [question], None).endswith("<|channel>thought\n<channel|>")
        for thinking, kinds in ((True, ["thought", "answer"]), (False, ["answer"])):
            pieces = list(model.conversation(thinking=thinking).ask("Hello there."))
            assert [piece.kind for piece in pieces] == kinds
            assert pieces[-1].text == "A cat."


def test_a_thought_that_the_prompt_opens_is_read(tmp_path: Path) -> None:
    """Behind a tool's result, with thinking."""
    source = FAMILY_TEMPLATES[SMALL]
    bundle = reciting_bundle(tmp_path / "m", SAID[2:], source, "gemma4_text-keys-are-values", MARKS)
    *history, result = as_parts(TOOL_TURNS)
    with (
        Model(bundle) as model,
        model.engine.create_conversation(
            messages=history,
            tools=[open_box],
            automatic_tool_calling=False,
            thinking_config=ThinkingConfig(enable_thinking=True),
        ) as conversation,
    ):
        rendered = conversation.render_message_to_string(result)
        assert rendered.endswith("<tool_response|><|channel>thought\n")
        answer = conversation.send_message(result)
    assert answer["channels"] == {"thought": "It meows."}
    assert answer["content"] == [{"type": "text", "text": "A cat."}]
