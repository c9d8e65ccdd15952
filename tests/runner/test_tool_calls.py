"""Tool calls that the engine reads out of an answer, by the type that the metadata claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from runner.engine import Model
from tests.converter.text.test_published_shapes import SHAPES, open_box
from tests.reciting import recite
from tests.tiny_models import make_checkpoint

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


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_read(tmp_path: Path, name: str) -> None:
    said, type_name = CALLS[name]
    shape, folder = SHAPES[name], tmp_path / "m"
    make_checkpoint("llama", folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, special=False) for text in [*said, shape.eos]])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": shape.eos, "chat_template": shape.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    recite(folder, [tokenizer.token_to_id(text) for text in [*said, shape.eos]])
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=1024)
        ModelConverter(checkpoint, "m", options).convert(tmp_path / "m.litertlm")
    with Model(tmp_path / "m.litertlm") as model:
        assert model.metadata.llm_model_type.WhichOneof("model_type") == type_name
        assert model.metadata.supports_function_calling
        with model.engine.create_conversation(
            tools=[open_box], automatic_tool_calling=False
        ) as conversation:
            answer = conversation.send_message("Open the red box.")
    [call] = answer["tool_calls"]
    assert call["function"] == {"name": "open_box", "arguments": {"box": "red"}}
