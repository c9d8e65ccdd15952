"""Published tokenizers and chat templates with random weights: three turns in the engine.

Those of Qwen3 and Gemma 3 stand in `test_real_models`. Gemma 2's package comes without its
template, which is added as published.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from tests.conftest import real_model
from tests.test_real_models import engine
from tests.tiny_models import random_model

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_GEMMA2_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@pytest.mark.parametrize(
    ("name", "model_type", "config", "stops"),
    [
        ("llama3.2-tokenizer", "llama", {"vocab_size": 128256}, {128009}),
        ("qwen2.5-tokenizer", "qwen2", {"vocab_size": 151936}, {151645}),
        (
            "gemma2-tokenizer",
            "gemma2",
            {"vocab_size": 256000, "head_dim": 16, "sliding_window": 32},
            {1, 107},
        ),
    ],
)
def test_three_turns_are_those_of_transformers(
    name: str, model_type: str, config: dict[str, Any], stops: set[int], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    random_model(model_type, {**_SMALL, **config}).bfloat16().save_pretrained(folder)
    for file in real_model(name).iterdir():
        shutil.copy(file, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    if model_type == "gemma2":
        settings["chat_template"] = _GEMMA2_TEMPLATE
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    bundle = tmp_path / "m.litertlm"
    with open_checkpoint(folder) as checkpoint:
        ModelConverter(checkpoint, "m", ConvertOptions(prefill_lengths=(8,))).convert(bundle)
    metadata = read_bundle(bundle).metadata
    assert stops <= {token.token_ids.ids[0] for token in metadata.stop_tokens}
    source = AutoTokenizer.from_pretrained(folder)
    start = list(metadata.start_token.token_ids.ids)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    with engine(bundle) as opened:
        for turns in range(3):
            history = said * turns
            prompt = source.apply_chat_template(
                [*history, {"role": "user", "content": "What is the capital of France?"}],
                add_generation_prompt=True,
                return_dict=False,
            )
            with opened.create_conversation(messages=history) as conversation:
                rendered = conversation.render_message_to_string("What is the capital of France?")
            assert [*start, *opened.tokenize(rendered)] == prompt
        with opened.create_conversation(max_output_tokens=4) as conversation:
            conversation.send_message("Hi")
            assert conversation.token_count > len(said)
