"""What the engine makes of sizes and of pre-tokenizers that a conversion can choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import converter.base
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import EngineError
from converter.options import ConvertOptions, is_placeholder
from converter.text.pre_tokenizers import PRE_TOKENIZERS
from converter.tflite.kv_cache import Target
from runner.engine import Model, Sampling
from tests.converter.text.test_gguf_tokenizer import CORPUS
from tests.small_tokenizers import SMALL_BPE, from_gguf, write_tokenizer_gguf
from tests.tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes") / "llama"
    make_checkpoint("llama", folder)
    return folder


def runs(source: Path, folder: Path, prompt: str, **options: Any) -> bool:
    """Whether a bundle with these sizes reads a prompt in the engine."""
    path = folder / "m.litertlm"
    with open_checkpoint(source) as checkpoint:
        ModelConverter(checkpoint, "m", ConvertOptions(quantize="fp32", **options)).convert(path)
    try:
        with Model(path) as model:
            list(model.completion(sampling=Sampling(temperature=0), max_tokens=2).ask(prompt))
    except EngineError:
        return False
    return True


@pytest.mark.parametrize("length", [7, 9, 10, 11, 12, 15, 127, 128, 131, 256, 257])
def test_the_engine_takes_prime_prefill_lengths_for_placeholders(
    llama: Path, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = not is_placeholder(length)
    monkeypatch.setattr(converter.base, "is_placeholder", lambda _: False)
    prompt = "x" * (length + 8)
    sizes = {"prefill_lengths": (length,), "cache_length": 512}
    assert runs(llama, tmp_path, prompt, **sizes) is expected


@pytest.mark.parametrize(
    ("cache_length", "target", "whole"),
    [(101, Target.CPU, True), (101, Target.GPU, False), (100, Target.GPU, True)],
)
def test_the_engine_shortens_a_gpu_s_prime_cache(
    llama: Path,
    tmp_path: Path,
    cache_length: int,
    target: Target,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (is_placeholder(cache_length) and target is Target.GPU) or whole
    monkeypatch.setattr(converter.base, "is_placeholder", lambda _: False)
    sizes: dict[str, Any] = {"prefill_lengths": (8,), "cache_length": cache_length}
    assert runs(llama, tmp_path, "x" * 80, target=target, **sizes) is whole


@pytest.mark.parametrize("pre", {kind: name for name, kind in PRE_TOKENIZERS.items()}.values())
def test_the_engine_cuts_as_the_tokenizers_library_does(
    llama: Path, tmp_path: Path, pre: str
) -> None:
    """The engine compiles patterns with another library."""
    merges = ["1 2", "12 3", "Ġ 1", "Ġ Ġ", "Ċ Ċ", "' S", "' s", "! ?", "a b", "Ġ x", "n '", "e Ġ"]
    keys = SMALL_BPE | {"ggml.pre": pre, "ggml.merges": merges}
    made = [merge.replace(" ", "") for merge in merges]
    keys["ggml.tokens"] = [*SMALL_BPE["ggml.tokens"][:256], *made, "<|bos|>", "<|im_end|>"]
    keys["ggml.token_type"] = [1] * (256 + len(made)) + [3, 3]
    keys["ggml.bos_token_id"] = 256 + len(made)
    rebuilt = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys))
    folder = tmp_path / "m"
    make_checkpoint("llama", folder)
    (folder / "tokenizer.json").write_bytes(rebuilt.data)
    path = tmp_path / "m.litertlm"
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions(prefill_lengths=(8,), cache_length=32)
        ModelConverter(checkpoint, "m", options).convert(path)
    with Model(path) as model:
        for text in CORPUS:
            if "\0" not in text:  # the interface ends a text there
                assert model.tokenize(text) == rebuilt.encode(text)
