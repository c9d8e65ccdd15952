"""What a Mamba2 layer alone can get wrong; the rest is in `test_recurrence`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.converter.tflite.test_words import (
    MAMBA,
    compare,
    mixers,
    random_weights,
    run,
    some_tokens,
)
from tests.numpy_decoder import logits


@pytest.mark.parametrize("step", [-200.0, -20.0, 20.0, 200.0])
def test_steps_of_any_size(step: float, tmp_path: Path) -> None:
    """float32 holds no exp(200); a memory that decays so fast keeps one token."""
    spec, tokens = mixers(MAMBA, MAMBA), some_tokens(80)
    weights = random_weights(spec)
    for i in range(2):
        weights[f"layers.{i}.mamba.step"][1:] = step
    runner = run(spec, weights, tmp_path / "m", lengths=(8, 70))
    compare(runner, tokens, [(70, 70)], logits(spec, weights, tokens))
