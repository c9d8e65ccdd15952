"""The emitted graph against transformers: every family, through the whole pipeline, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.base import PREFILL_LADDER, ConvertOptions, ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.registry import FAMILIES
from tests.interpreter import GraphRunner
from tests.tiny_models import TINY_CONFIGS, make_checkpoint, text_logits

TOLERANCE = 1e-3  # of logits whose standard deviation is about 1
CACHE_LENGTH = 1280
DECODE_STEPS = 16


@pytest.fixture(scope="module", params=TINY_CONFIGS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int], np.ndarray]:
    """(bundle, tokens, transformers' logits of every position)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_checkpoint(request.param, folder / "checkpoint")
    bundle = folder / "model.litertlm"
    options = ConvertOptions(quantize="fp32", cache_length=CACHE_LENGTH)
    with open_folder(folder / "checkpoint") as checkpoint:
        ModelConverter(checkpoint, "tiny", options).convert(bundle)
    count = max(PREFILL_LADDER) + DECODE_STEPS
    tokens = np.random.default_rng(0).integers(0, 256, count).tolist()
    return bundle, tokens, text_logits(model, tokens)


def _compare(runner: GraphRunner, tokens: list[int], start: int, expected: np.ndarray) -> None:
    """Feed the true tokens one by one from `start` on, and compare all logits."""
    differences = []
    for position in range(start, start + DECODE_STEPS):
        logits = runner.decode(tokens[position], position)
        differences.append(np.abs(logits - expected[position]))
        assert logits.argmax() == expected[position].argmax(), f"position {position}"
    worst, mean = np.max(differences), np.mean(differences)
    print(f"max |difference| {worst:.2e}, mean {mean:.2e}")
    assert worst <= TOLERANCE


def test_every_registered_family_is_in_the_table() -> None:
    assert {model_type for model_type, _ in TINY_CONFIGS.values()} == set(FAMILIES)


def test_logits_have_a_scale_of_one(case: tuple[Path, list[int], np.ndarray]) -> None:
    """The tolerance means nothing otherwise."""
    assert 0.5 < case[2].std() < 2


@pytest.mark.parametrize("length", PREFILL_LADDER)
def test_prefill_then_decode(case: tuple[Path, list[int], np.ndarray], length: int) -> None:
    bundle, tokens, expected = case
    runner = GraphRunner(bundle)
    runner.prefill(length, tokens[:length])
    _compare(runner, tokens, length, expected)


@pytest.mark.parametrize(("first", "second"), [(64, 64), (128, 8), (64, 37)])
def test_prefill_in_two_chunks(
    case: tuple[Path, list[int], np.ndarray], first: int, second: int
) -> None:
    """The second chunk sees the first; one that does not fill its signature is padded."""
    bundle, tokens, expected = case
    runner = GraphRunner(bundle)
    runner.prefill(first, tokens[:first])
    length = min(n for n in runner.prefill_lengths if n >= second)
    runner.prefill(length, tokens[first : first + second], start=first)
    _compare(runner, tokens, first + second, expected)


def test_decode_alone(case: tuple[Path, list[int], np.ndarray]) -> None:
    bundle, tokens, expected = case
    _compare(GraphRunner(bundle), tokens, 0, expected)
