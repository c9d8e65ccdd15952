"""Branches of experts in the real engine, which sets them up otherwise than an interpreter does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from tests.tiny_models import TINY_CONFIGS, random_model, write_tokenizer

# Several calls of both lengths, the last of them padded; experts are taken by many tokens and few.
PROMPT = "Is it? " * 30 + "What is the capital of France"
TOKENS = 40


@pytest.mark.parametrize("test_id", ["gemma4_text-experts", "gpt_oss"])
def test_the_engine_says_what_transformers_says(test_id: str, tmp_path: Path) -> None:
    import litert_lm
    import torch
    from transformers import AutoTokenizer

    model_type, values = TINY_CONFIGS[test_id]
    model = random_model(model_type, {**values, "vocab_size": 258}, seed=2)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings |= {"chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with open_checkpoint(tmp_path) as checkpoint:
        options = ConvertOptions("fp32", prefill_lengths=(8, 128), cache_length=512)
        ModelConverter(checkpoint, "tiny", options).convert(tmp_path / "tiny.litertlm")

    ids = AutoTokenizer.from_pretrained(tmp_path).encode(PROMPT, return_tensors="pt")
    with torch.no_grad():
        said = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    expected = AutoTokenizer.from_pretrained(tmp_path).decode(
        said[0, ids.shape[1] :], skip_special_tokens=True
    )

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    sampler = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    with (
        litert_lm.Engine(str(tmp_path / "tiny.litertlm"), cache_dir=":nocache") as engine,
        engine.create_conversation(sampler_config=sampler) as chat,
    ):
        answer = str(chat.send_message(PROMPT, max_output_tokens=TOKENS))
    assert len(answer) > 5
    assert expected.startswith(answer.rstrip("\ufffd"))
