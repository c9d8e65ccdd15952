"""Every family read from a GGUF, against transformers' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.base import ModelConverter
from converter.checkpoint.gguf import open_gguf
from converter.options import ConvertOptions
from converter.registry import FAMILIES
from runner.interpreter import GraphRunner
from tests.gguf_models import WRITTEN, write_model
from tests.tiny_models import TINY_CONFIGS, make_model, text_logits

TOKENS = np.random.default_rng(5).integers(0, 256, 64).tolist()
# What the config of a test says, and llama.cpp has no key for.
NOT_IN_A_GGUF = {
    "apertus", "exaone4-full", "gemma2", "gemma3", "gemma3_text-linear", "gemma3_text-yarn-llama3",
    "granitemoehybrid", "granitemoehybrid-nope", "helium", "llama-gelu-dynamic",
    "llama-rope-linear", "llama-rope-llama3", "llama-rope-longrope", "ministral", "mistral",
    "olmo3", "qwen2-rope-yarn", "qwen2-window", "qwen3-tied-bias", "smollm3-window", "starcoder2",
    "vaultgemma", "vaultgemma-full",
}  # fmt: skip


def test_every_family_that_llama_cpp_knows_is_written() -> None:
    types = {model_type for model_type, _ in TINY_CONFIGS.values()} - {"gemma3"}
    assert set(WRITTEN) <= types <= set(FAMILIES)


@pytest.mark.parametrize("test_id", [name for name in TINY_CONFIGS if name not in NOT_IN_A_GGUF])
def test_the_numbers_are_those_of_transformers(test_id: str, tmp_path: Path) -> None:
    model = make_model(test_id)
    path = write_model(model, tmp_path / "tiny.gguf", model_type=TINY_CONFIGS[test_id][0])
    options = ConvertOptions(quantize="fp32", prefill_lengths=(8,), cache_length=128)
    with open_gguf(path) as checkpoint:
        ModelConverter(checkpoint, "tiny", options).convert(tmp_path / "tiny.litertlm")
    runner = GraphRunner(tmp_path / "tiny.litertlm")
    got = np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(TOKENS)])
    np.testing.assert_allclose(got, text_logits(model, TOKENS), atol=1e-3, rtol=0)
