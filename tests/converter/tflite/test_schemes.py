"""Every scheme in the real interpreter, against transformers with the weights that were stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.decoder import PER_LAYER_TABLE
from converter.options import ConvertOptions
from converter.weights.quantization import SCHEMES
from runner.interpreter import GraphRunner
from tests.stored_weights import stored_matrix
from tests.tiny_models import make_checkpoint, text_logits, write_tokenizer

_PER_LAYER = {"gemma3n_text": (PER_LAYER_TABLE,)}
TOKENS = np.random.default_rng(0).integers(0, 256, 40).tolist()
MIXED = (
    "dynamic_int8,ffn=dynamic_int4,layers.1-1.attention=fp16,head=int8,embedding=dynamic_int4",
    "dynamic_int8,ffn=dynamic_int8_a16,head=dynamic_int8_a16,layers.0.attention=dynamic_int8_a16",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Llama with biases whose rows blocks of 128 divide, and its model in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.08,
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("schemes") / "checkpoint"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


@pytest.mark.parametrize("scheme", [*SCHEMES, *MIXED])
def test_as_transformers_with_the_stored_weights(
    checkpoint: tuple[Path, Any], tmp_path: Path, scheme: str
) -> None:
    import copy

    import torch

    folder, model = checkpoint
    options = ConvertOptions(quantize=scheme, prefill_lengths=(8, 32), cache_length=64)
    with open_checkpoint(folder) as opened:
        plan = ModelConverter(opened, "tiny", options).convert(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for weight in plan.weights:
        if len(weight.shape) > 1:
            values = stored_matrix(content, plan, weight)
        else:  # calibration may have divided it
            values = np.frombuffer(content, np.float32, weight.shape[0], weight.offset).copy()
        parameters[weight.source.tensor].data = torch.tensor(values)
    expected = text_logits(twin, TOKENS)
    runner = GraphRunner(tmp_path / "m")
    runner.prefill(32, TOKENS[:32])
    logits = np.stack([runner.decode(TOKENS[at], at) for at in range(32, 40)])
    difference = np.abs(logits - expected[32:40])
    print(f"{scheme}: max {difference.max():.2e}, mean {difference.mean():.2e}")
    # Where activations are rounded to int8 the logits, of standard deviation 1, move a little.
    is_exact = scheme in ("fp32", "fp16", "int8", "dynamic_int8_a16", "dynamic_int6_a16")
    assert difference.max() < (1e-3 if is_exact else 0.2)
    assert difference.mean() < (1e-4 if is_exact else 0.03)
    assert 0.5 < expected.std() < 3


@pytest.mark.parametrize(
    ("test_id", "parts"),
    [
        ("qwen2-tied", "embedding=dynamic_int6_a16"),
        ("gemma3n_text", "embedding=dynamic_int6_a16,per_layer=dynamic_int6_a16"),
    ],
)
def test_tables_in_six_bits(test_id: str, parts: str, tmp_path: Path) -> None:
    """One whose rows are looked up and multiplied by, and one for the layers: two parts of each."""
    import torch

    model = make_checkpoint(test_id, tmp_path / "checkpoint")
    options = ConvertOptions(quantize=f"fp32,{parts}", prefill_lengths=(8, 32), cache_length=64)
    with open_checkpoint(tmp_path / "checkpoint") as opened:
        plan = ModelConverter(opened, "tiny", options).convert(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    parameters = dict(model.named_parameters())
    in_six = [weight for weight in plan.weights if weight.rest is not None]
    assert {weight.path for weight in in_six} >= {"embedding", *_PER_LAYER.get(test_id, ())}
    for weight in in_six:
        first = weight.source.first_row
        rows = parameters[weight.source.tensor].data[first : first + weight.shape[0]]
        values = torch.tensor(stored_matrix(content, plan, weight))
        assert not torch.equal(rows, values)
        rows[:] = values
    expected = text_logits(model, TOKENS)
    runner = GraphRunner(tmp_path / "m")
    runner.prefill(32, TOKENS[:32])
    logits = np.stack([runner.decode(TOKENS[at], at) for at in range(32, 40)])
    assert np.abs(logits - expected[32:40]).max() < 1e-3
