"""Folders of packages answer as ANEMLL asks: transformers' tokens, and no silent mistake."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.safetensors import open_folder
from converter.coreml_options import CoreMLOptions
from converter.coreml_pipeline import CoreMLConverter
from reliability import anemll_chat
from tests import anemll_rules
from tests.tiny_models import TINY_CONFIGS, random_model, write_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
PROMPT = "Hello, are you?"  # the template adds 2 tokens to 15
WINDOWS = {
    "sliding_window": 32,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}


def converted(folder: Path, test_id: str, values: dict[str, Any], **options: Any) -> Path:
    """A random model, and in `coreml` the packages that were made of it."""
    model_type, config = TINY_CONFIGS[test_id]
    random_model(model_type, config | values).save_pretrained(folder)
    write_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps(said | {"chat_template": TEMPLATE}))
    out = folder / "coreml"
    chosen = {"context": 64, "batch": 16, "lut_layers": None, "lut_head": None} | options
    with open_folder(folder) as checkpoint:
        CoreMLConverter(checkpoint, "org/tiny", CoreMLOptions(**chosen)).convert(out)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("plain"), "llama", {})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands where a checkout has its chats: ANEMLL's rules, restated."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "tests").mkdir()
    for name in anemll_chat.CHATS:
        shutil.copy(anemll_rules.__file__, folder / "tests" / f"{name}.py")
    return folder


def run(checkout: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, *more: str) -> int:
    arguments = [str(checkout), str(out), "--prompt", PROMPT, "--tokens", str(tokens), *more]
    monkeypatch.setattr(sys, "argv", ["anemll_chat", *arguments])
    return anemll_chat.main()


def test_both_chats_give_the_tokens_of_transformers(
    plain: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, plain, monkeypatch, 3, "--source", str(plain.parent)) == 0

    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["chat"] for result in results] == ["chat", "chat_full"]
    for result in results:
        assert len(result["answer"]) == 3
        assert result["answer"] == result["transformers"]
        # One batch of 16, then a token, and 3 are answered.
        assert {file: n for file, n in result["calls"].items() if "chunk_02of02" in file} == {
            "llama_FFN_PF_chunk_02of02.mlpackage: prefill": 1,
            "llama_FFN_PF_chunk_02of02.mlpackage: infer": 4,
        }


def test_an_answer_goes_on_behind_a_window(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = converted(tmp_path, "gemma3_text", WINDOWS, argmax=True, chunks=1, batch=32)
    monkeypatch.setattr(anemll_chat, "CHATS", ("chat",))

    # The prompt fills the window with one batch.
    more = ("--source", str(tmp_path), "--prompt", PROMPT * 2)
    assert run(checkout, out, monkeypatch, 5, *more) == 0

    [result] = json.loads(capsys.readouterr().out.splitlines()[-1])
    layers = "gemma3_FFN_PF_chunk_01of01.mlpackage"
    assert {file: n for file, n in result["calls"].items() if layers in file} == {
        f"{layers}: prefill": 1, f"{layers}: infer": 1, f"{layers}: infer_rotate": 4,
    }  # fmt: skip


def test_a_missing_chunk_fails_the_chat(
    plain: Path, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(plain, tmp_path / "out")
    shutil.rmtree(out / "llama_FFN_PF_chunk_02of02.mlpackage")

    with pytest.raises(AssertionError):
        run(checkout, out, monkeypatch, 1)


def test_what_the_engine_would_refuse_is_refused(plain: Path) -> None:
    model = anemll_chat.model_class(anemll_chat.Asked())
    head = model(str(plain / "llama_lm_head.mlpackage"))

    with pytest.raises(KeyError, match="hidden_states"):
        head.predict({})
    with pytest.raises(TypeError, match="hidden_states is float32, not"):
        head.predict({"hidden_states": np.zeros((1, 1, 64), np.float32)})
    with pytest.raises(ValueError, match="infer_rotate not found"):
        model(str(plain / "llama_FFN_PF_chunk_01of02.mlpackage"), function_name="infer_rotate")
