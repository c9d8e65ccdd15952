"""Tool calls that the engine reads out of an answer, by the type that the metadata claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from litert_lm import ThinkingConfig

from converter.text.template_reference import TOOL_TURNS, as_parts
from runner.engine import Model
from tests.converter.text.test_published_shapes import SHAPES, open_box
from tests.family_templates import FAMILY_TEMPLATES, Template
from tests.reciting import reciting_bundle

CALLS = {
    "FunctionGemma: calls in its own words": (
        ["<start_function_call>", "call:open_box{box:<escape>red<escape>}", "<end_function_call>"],
        "function_gemma",
    ),
    "MiniCPM5: calls in XML": (
        ['<function name="open_box">', '<param name="box">red</param>', "</function>"],
        "minicpm5",
    ),
    "Hermes: a template for tools by name": (
        ["<tool_call>", '{"name": "open_box", "arguments": {"box": "red"}}', "</tool_call>"],
        "qwen2p5",
    ),
}


GEMMA4_MARKS = ["<|tool_call>", "<tool_call|>", "<|tool_response>"]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_read(tmp_path: Path, name: str) -> None:
    said, type_name = CALLS[name]
    shape = SHAPES[name]
    source = Template(shape.family, shape.template, "<s>", shape.eos)
    with Model(reciting_bundle(tmp_path / "m", said, source)) as model:
        assert_reads_a_call(model, type_name)


def test_a_call_of_gemma_4_is_read(tmp_path: Path) -> None:
    """It ends with the mark that begins a result, where the next turn goes on."""
    source = FAMILY_TEMPLATES["Gemma 4 E2B and E4B"]
    said = ["<|tool_call>", 'call:open_box{box:<|"|>red<|"|>}', "<tool_call|>", "<|tool_response>"]
    bundle = reciting_bundle(
        tmp_path / "m", said, source, "gemma4_text-keys-are-values", GEMMA4_MARKS
    )
    with Model(bundle) as model:
        assert_reads_a_call(model, "gemma4")
        stops = {token.token_ids.ids[0] for token in model.metadata.stop_tokens}
        assert set(model.tokenize("<|tool_response><turn|>")) <= stops
        for thinking, opened in ((False, ""), (True, "<|channel>thought\n")):
            with model.engine.create_conversation(
                tools=[open_box],
                automatic_tool_calling=False,
                thinking_config=ThinkingConfig(enable_thinking=thinking),
            ) as conversation:
                prompt = conversation.render_message_to_string("Open the red box.")
                conversation.send_message("Open the red box.")
                # The start token, the prompt, and all that was said.
                assert conversation.token_count == 1 + len(model.tokenize(prompt)) + len(said)
                assert conversation.render_message_to_string(as_parts(TOOL_TURNS)[-1]) == (
                    'response:open_box{value:<|"|>a cat<|"|>}<tool_response|>' + opened
                )


def assert_reads_a_call(model: Model, type_name: str) -> None:
    assert model.metadata.llm_model_type.WhichOneof("model_type") == type_name
    assert model.metadata.supports_function_calling
    with model.engine.create_conversation(
        tools=[open_box], automatic_tool_calling=False
    ) as conversation:
        answer = conversation.send_message("Open the red box.")
    [call] = answer["tool_calls"]
    assert call["function"] == {"name": "open_box", "arguments": {"box": "red"}}
