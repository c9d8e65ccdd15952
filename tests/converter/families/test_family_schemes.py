"""Every family with quantised weights: near transformers' logits, as float is equal to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from runner.interpreter import GraphRunner
from tests.tiny_models import TINY_CONFIGS, WITH_EXPERTS, make_checkpoint, text_logits

TOKENS = np.random.default_rng(0).integers(0, 256, 24).tolist()
# The least correlation of logits. Random weights have no spare precision: 4 bits cost them a lot,
# and a scale or a column in the wrong place would cost them all.
LEAST = {"fp16": 0.999, "dynamic_int8": 0.99, "int8": 0.99, "dynamic_int4": 0.7}
# What a router is fed with is rounded, too, and now and then another expert is chosen.
OFF_BY_EXPERTS = 0.03
ONE_OF_EACH = {model_type: test_id for test_id, (model_type, _) in TINY_CONFIGS.items()}


@pytest.mark.parametrize("test_id", ONE_OF_EACH.values())
def test_it_is_near_in_every_scheme(test_id: str, tmp_path: Path) -> None:
    folder, bundle = tmp_path / "m", tmp_path / "m.litertlm"
    expected = text_logits(make_checkpoint(test_id, folder), TOKENS)[8:]
    for scheme, least in LEAST.items():
        options = ConvertOptions(quantize=scheme, prefill_lengths=(8,), cache_length=64)
        with open_checkpoint(folder) as checkpoint:
            ModelConverter(checkpoint, "m", options).convert(bundle)
        runner = GraphRunner(bundle)
        runner.prefill(8, TOKENS[:8])
        found = [np.ravel(runner.decode(TOKENS[i], i)) for i in range(8, len(TOKENS))]
        least -= OFF_BY_EXPERTS if test_id in WITH_EXPERTS else 0
        assert np.corrcoef(np.ravel(found), expected.ravel())[0, 1] > least, scheme
