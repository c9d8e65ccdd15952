"""A graph of which only some signatures are wanted says the same, to the bit.

To the bit, for XNNPACK's delegate gives up on a model that has become too odd for it, and then
TensorFlow Lite's own kernels compute, slower and with other last bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from runner.interpreter import GraphRunner
from tests.tiny_models import make_checkpoint


@pytest.mark.parametrize(
    "options", [(), ("--target", "gpu"), ("--kv-cache", "int8"), ("--draft", "lookup")]
)
def test_the_graphs_of_one_signature_are_enough(options: tuple[str, ...], tmp_path: Path) -> None:
    make_checkpoint("gemma3_text", tmp_path / "tiny")  # with rings: branches inside branches
    command = ["convert", str(tmp_path / "tiny"), "--output-dir", str(tmp_path), "--quiet"]
    assert main([*command, "--kv-cache-max-len", "320", *options]) == 0
    [bundle] = tmp_path.glob("*.litertlm")
    whole, part = GraphRunner(bundle), GraphRunner(bundle, {"decode"})
    for position, token in enumerate([5, 9, 2, 7, 11]):
        assert np.array_equal(part.decode(token, position), whole.decode(token, position))
