"""A memory that is not a cache: long calls, padding, and what it is when a conversation begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converter.decoder import DecoderSpec
from converter.tflite.delta_net import CHUNK
from converter.tflite.kv_cache import Target
from tests.converter.tflite.test_words import (
    ATTENTION,
    DELTA,
    compare,
    mixers,
    random_weights,
    run,
    some_tokens,
)
from tests.numpy_decoder import logits

SPEC = mixers(DELTA, ATTENTION, replace(DELTA, kernel=2))


@pytest.mark.parametrize(
    "prefills",
    [
        [(CHUNK + 1, CHUNK + 1), (CHUNK + 1, CHUNK), (8, 8)],
        [(200, 200), (8, 1), (200, CHUNK + 3), (CHUNK + 1, 2)],
        [(320, 320)],
        [(320, 1), (320, 319)],
    ],
)
@pytest.mark.parametrize("target", Target)
def test_calls_of_several_chunks(
    target: Target, prefills: list[tuple[int, int]], tmp_path: Path
) -> None:
    tokens = some_tokens(sum(count for _, count in prefills) + 9)
    weights = random_weights(SPEC)
    lengths = 8, CHUNK + 1, 200, 320
    runner = run(SPEC, weights, tmp_path / "m", target, cache_length=600, lengths=lengths)
    compare(runner, tokens, prefills, logits(SPEC, weights, tokens))


def remembering(spec: DecoderSpec) -> dict[str, np.ndarray]:
    """Weights of delta nets that forget nothing and write with all their strength."""
    weights = random_weights(spec)
    for path, values in weights.items():
        if path.endswith((".decay", ".delta.beta")):
            values[:] = -1e-4 if path.endswith(".decay") else 0
        if path.endswith(".delta.norm"):
            values[:] = 1
    for path in [path for path in weights if path.endswith(".delta.beta")]:
        weights[path][:] = weights["embedding"][7] * 30
    return weights


def test_equal_tokens(tmp_path: Path) -> None:
    """Keys that are all alike: of the powers of such a chunk's matrix, float32 would lose all."""
    spec = mixers(DELTA, DELTA)
    tokens, weights = [7] * 210, remembering(spec)
    runner = run(spec, weights, tmp_path / "m", lengths=(8, 200))
    compare(runner, tokens, [(200, 200)], logits(spec, weights, tokens))


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("begins", [[(8, 5)], [(200, 150), (8, 8)], []])
def test_a_conversation_begins_with_nothing(
    begins: list[tuple[int, int]], target: Target, tmp_path: Path
) -> None:
    """The engine hands over what the last conversation left. [] is a prompt of one token."""
    weights = random_weights(SPEC)
    runner = run(SPEC, weights, tmp_path / "m", target, lengths=(8, 200))
    compare(runner, [3] * 30, [(8, 8)], logits(SPEC, weights, [3] * 30))
    tokens = some_tokens(sum(count for _, count in begins) + 6)
    compare(runner, tokens, begins, logits(SPEC, weights, tokens))
