"""Memories that are no caches: long calls, padding, and the beginning of a conversation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from converter.decoder import DecoderSpec
from converter.tflite.kv_cache import Target
from converter.tflite.recurrence import CHUNK
from tests.converter.tflite.test_words import (
    ATTENTION,
    BESIDE,
    DELTA,
    MAMBA,
    compare,
    mixers,
    random_weights,
    run,
    some_tokens,
    spec_of,
)
from tests.numpy_decoder import logits

SPECS = {
    "delta net": mixers(DELTA, ATTENTION, replace(DELTA, kernel=2)),
    "mamba": mixers(MAMBA, ATTENTION, replace(MAMBA, kernel=2, groups=1)),
    "mamba beside attention": spec_of(BESIDE, BESIDE),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@each_spec
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
    spec: DecoderSpec, target: Target, prefills: list[tuple[int, int]], tmp_path: Path
) -> None:
    tokens = some_tokens(sum(count for _, count in prefills) + 9)
    weights = random_weights(spec)
    lengths = 8, CHUNK + 1, 200, 320
    runner = run(spec, weights, tmp_path / "m", target, cache_length=600, lengths=lengths)
    compare(runner, tokens, prefills, logits(spec, weights, tokens))


@each_spec
@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("begins", [[(8, 5)], [(200, 150), (8, 8)], []])
def test_a_conversation_begins_with_nothing(
    spec: DecoderSpec, begins: list[tuple[int, int]], target: Target, tmp_path: Path
) -> None:
    """The engine hands over what the last conversation left. [] is a prompt of one token."""
    weights = random_weights(spec)
    runner = run(spec, weights, tmp_path / "m", target, lengths=(8, 200))
    compare(runner, [3] * 30, [(8, 8)], logits(spec, weights, [3] * 30))
    tokens = some_tokens(sum(count for _, count in begins) + 6)
    compare(runner, tokens, begins, logits(spec, weights, tokens))
