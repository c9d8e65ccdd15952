"""The functions' numbers on Apple's reference semantics, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from converter.coreml import decoder_program
from converter.coreml.words import check_words
from converter.decoder import DecoderSpec, Placement
from converter.errors import UnsupportedError
from converter.weights.palettes import Palette
from tests.coreml_checks import check_package
from tests.coreml_models import (
    Parts,
    Runtime,
    Values,
    build,
    interface_of,
    palettized,
    read_checkpoint,
)
from tests.numpy_decoder import logits
from tests.tiny_models import TINY_CONFIGS, make_checkpoint, text_logits

CONTEXT, BATCH = 64, 10  # which divides the windows of 40 and 50 that tiny models have
FLOAT32, FLOAT16 = 8e-3, 3e-2  # greatest errors, of logits whose standard deviation is about 1
TOKENS = np.random.default_rng(0).integers(3, 250, CONTEXT).tolist()

# What families lack; all others are written.
REFUSED = {
    "apertus": "the activation xIELU",
    "granitemoe": "mixtures of experts",
    "granitemoehybrid-mamba": "Mamba layers",
    "olmoe": "mixtures of experts",
    "lfm2": "short convolutions",
    "lfm2_moe": "short convolutions, mixtures of experts",
    "mixtral": "mixtures of experts",
    "qwen2_moe": "mixtures of experts",
    "qwen3_moe": "mixtures of experts",
    "gpt_oss": "attention sinks, mixtures of experts",
    "gemma3n": "an embedding for each layer",
    "gemma3n_text": "an embedding for each layer",
    "gemma4": "an embedding for each layer",
    "gemma4_text": "an embedding for each layer",
    "gemma4_unified": "factors on layers, normalised values",
    "gemma4_unified_text": "factors on layers, normalised values",
    "falcon_h1": "two mixers in a layer",
    "qwen3_5": "a gated delta net",
    "qwen3_5_text": "a gated delta net",
}
_FIRST = {model_type: test_id for test_id, (model_type, _) in reversed(TINY_CONFIGS.items())}
TAKEN = [
    *(
        _FIRST[model_type]
        for model_type in _FIRST
        if not {model_type, _FIRST[model_type]} & set(REFUSED)
    ),
    "lfm2-attention",
    "llama-biases",
    "llama-rope-llama3",
    "llama-tied-mqa",
    "qwen2-rope-yarn",
    "qwen2-window",
]


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint's network, its weights as float16 has them, and what it says of `TOKENS`."""

    spec: DecoderSpec
    values: Values
    expected: np.ndarray


MakeModel = Callable[[str], Model]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """By test id."""

    @cache
    def make(test_id: str) -> Model:
        import torch

        folder = tmp_path_factory.mktemp(test_id)
        model = make_checkpoint(test_id, folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
        spec, values = read_checkpoint(folder, CONTEXT)
        return Model(spec, values, text_logits(model, TOKENS))

    return make


def parts_of(model: Model, folder: Path, **more: float | bool) -> Parts:
    """In two chunks."""
    return build(folder, model.spec, model.values, interface_of(model.spec, CONTEXT, BATCH, **more))


def compare(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """The logits of the last positions."""
    expected = expected[-len(found) :]
    worst = np.abs(found - expected).max()
    print(f"max |difference| {worst:.2e}, standard deviation {expected.std():.2f}")
    assert worst < tolerance * max(1, expected.std())


@pytest.mark.parametrize("test_id", TAKEN)
def test_a_family(test_id: str, model_of: MakeModel, tmp_path: Path) -> None:
    """Batches, past the window where there is one, then single tokens."""
    model = model_of(test_id)
    interface = interface_of(model.spec, CONTEXT, BATCH)
    parts = build(tmp_path, model.spec, model.values, interface, is_monolithic=True)
    check_package(parts.chunks[0])
    runtime = Runtime(parts)
    compare(runtime.run(TOKENS, prompt=60), model.expected, FLOAT32)
    compare(runtime.run(TOKENS, prompt=60, rounds=True), model.expected, FLOAT16)


@pytest.mark.parametrize("test_id", REFUSED)
def test_a_family_with_other_words_is_refused(test_id: str, model_of: MakeModel) -> None:
    spec = model_of(_FIRST.get(test_id, test_id)).spec
    with pytest.raises(UnsupportedError, match="--target cpu") as caught:
        check_words(spec, CONTEXT, BATCH)
    assert REFUSED[test_id] in str(caught.value)


def test_every_family_is_taken_or_refused() -> None:
    assert {
        TINY_CONFIGS[test_id][0] for test_id in (*TAKEN, *REFUSED) if test_id in TINY_CONFIGS
    } == {model_type for model_type, _ in TINY_CONFIGS.values()}
