"""What a delta net alone can get wrong; the rest is in `test_recurrence`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converter.decoder import DecoderSpec
from tests.converter.tflite.test_words import (
    DELTA,
    compare,
    mixers,
    random_weights,
    run,
)
from tests.numpy_decoder import logits


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
