"""Whole models with quantised weights, against transformers on what these weights say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli.obtain import open_checkpoint
from converter.base import ModelConverter, Plan
from converter.check import check
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.weights.adapters import WeightedAdapter
from converter.weights.quantization import INT4_BLOCK32
from runner.interpreter import GraphRunner
from tests import quantized_checkpoints as packers
from tests.quantized_checkpoints import PACK_QUANTIZED, Packer, quantize
from tests.stored_weights import stored_matrix
from tests.tiny_models import make_adapter, make_checkpoint, text_logits

TOKENS = np.random.default_rng(0).integers(0, 256, 24).tolist()


def convert(folder: Path, bundle: Path, scheme: str, **options: Any) -> Plan:
    chosen = ConvertOptions(quantize=scheme, prefill_lengths=(8,), cache_length=64, **options)
    with open_checkpoint(folder) as opened:
        return ModelConverter(opened, "tiny", chosen).convert(bundle)


def differences(bundle: Path, expected: np.ndarray) -> np.ndarray:
    """Of logits, of tokens after the first eight."""
    runner = GraphRunner(bundle)
    runner.prefill(8, TOKENS[:8])
    steps = range(8, len(TOKENS))
    return np.stack([runner.decode(TOKENS[i], i) - expected[i] for i in steps])


def by(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


MLX = {"quantization": {"bits": 4, "group_size": 32}}
CASES: dict[str, tuple[str, dict[str, Any], Packer, tuple[str, ...]]] = {
    "gptq-desc_act": (
        "llama",
        by("gptq", bits=4, desc_act=True),
        partial(packers.gptq, order=np.random.default_rng(0)),
        ("lm_head",),
    ),
    "gptq-fused": ("phi3", by("gptq", bits=8), partial(packers.gptq, bits=8), ("lm_head",)),
    "awq": ("qwen2", by("awq", bits=4, group_size=32), packers.awq, ("lm_head", "0.mlp.up_proj")),
    "compressed-tensors": (
        "gemma3_text",
        by("compressed-tensors", **PACK_QUANTIZED),
        partial(packers.pack_quantized, symmetric=False),
        ("o_proj",),
    ),
    "fp8": (
        "qwen3",
        by("fp8", weight_block_size=[32, 32]),
        partial(packers.scaled, block=(32, 32), scale_name="weight_scale_inv"),
        ("lm_head",),
    ),
    "bitsandbytes": (
        "llama-tied-mqa",
        by("bitsandbytes", load_in_4bit=True),
        packers.bnb_4bit,
        (),
    ),
    "mlx": ("qwen3-tied-bias", MLX, partial(packers.mlx, group=32), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_dequantised_model(tmp_path: Path, case: str) -> None:
    family, settings, pack, kept = CASES[case]
    folder = tmp_path / "m"
    model = quantize(make_checkpoint(family, folder), folder, settings, pack, *kept)
    plan = convert(folder, tmp_path / "out", "fp32")
    weights, content = model.state_dict(), (tmp_path / "out").read_bytes()
    quantised = 0
    for weight in plan.weights:
        if len(weight.shape) > 1:
            first = weight.source.first_row
            expected = weights[weight.source.tensor].numpy()[first : first + weight.shape[0]]
            found = stored_matrix(content, plan, weight)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
            quantised += weight.stored_as != "F32"
    assert quantised >= 2 * 4
    found = differences(tmp_path / "out", text_logits(model, TOKENS))
    assert np.abs(found).max() < 1e-3


def test_experts_of_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    """Rows are outputs there, gates and ups in turn; in plain numbers they are columns."""
    folder = tmp_path / "m"
    model = make_checkpoint("gpt_oss", folder)
    state, stored = model.state_dict(), {}
    for name, tensor in state.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            matrix = tensor.transpose(1, 2).reshape(-1, columns).numpy()
            packed, expected = packers.float4(matrix, 32, ("_blocks", "_scales"))
            tensor.copy_(torch.from_numpy(expected).view(experts, rows, columns).transpose(1, 2))
            shape = experts, rows, columns // 32
            stored[f"{name}_blocks"] = packed["_blocks"].reshape(*shape, 16)
            stored[f"{name}_scales"] = packed["_scales"].reshape(shape)
        else:
            stored[name] = tensor.contiguous()
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **by("mxfp4")}))

    plan = convert(folder, tmp_path / "out", "fp32")
    assert {weight.stored_as for weight in plan.weights if ".experts." in weight.path} == {
        "MXFP4",
        "F32",  # biases
    }
    assert np.abs(differences(tmp_path / "out", text_logits(model, TOKENS))).max() < 1e-3
    plan = convert(folder, tmp_path / "int4", "dynamic_int4")
    assert {w.format for w in plan.weights if w.path.endswith(".down")} == {INT4_BLOCK32}


GRIDS: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "gptq": (by("gptq", bits=4, sym=True), packers.gptq, "GPTQ 4-bit"),
    "awq": (
        by("awq", bits=4, group_size=32, zero_point=False),
        partial(packers.awq, symmetric=True),
        "AWQ 4-bit",
    ),
    "compressed-tensors": (
        by("compressed-tensors", **PACK_QUANTIZED),
        partial(packers.pack_quantized, group=-1, dtype=torch.bfloat16),
        "compressed-tensors 4-bit",
    ),
}


@pytest.mark.parametrize("case", GRIDS)
def test_symmetric_codes_go_in_without_a_second_rounding(tmp_path: Path, case: str) -> None:
    settings, pack, called = GRIDS[case]
    folder = tmp_path / "m"
    model = quantize(make_checkpoint("llama", folder), folder, settings, pack)
    plan = convert(folder, tmp_path / "out", "dynamic_int4")
    content, weights = (tmp_path / "out").read_bytes(), model.state_dict()
    carried = [weight for weight in plan.weights if weight.format.takes_importance]
    assert len(carried) == 2 * 7 + 1
    for weight in carried:
        expected = weights[weight.source.tensor].numpy()
        np.testing.assert_array_equal(stored_matrix(content, plan, weight), expected)
    system = read_bundle(tmp_path / "out").system
    exactly = f"{called} -> int4, all blocks as they were"
    assert system["attention weights"] == system["head weights"] == exactly
    assert system["embedding weights"] == "F32 -> int8"


def test_the_file_says_what_was_rounded_again(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    settings = by("awq", bits=4, group_size=32)
    quantize(make_checkpoint("llama", folder), folder, settings, packers.awq, "lm_head")
    convert(folder, tmp_path / "out", "dynamic_int8")
    system = read_bundle(tmp_path / "out").system
    assert system["ffn weights"] == "AWQ 4-bit -> int8, rounded again"
    assert system["head weights"] == "F32 -> int8"


def test_an_adapter_is_merged_into_quantised_weights(tmp_path: Path) -> None:
    """As peft merges it into the dequantised model."""
    folder = tmp_path / "m"
    settings = by("bitsandbytes", load_in_4bit=True)
    model = quantize(make_checkpoint("llama", folder), folder, settings, packers.bnb_4bit)
    before = text_logits(model, TOKENS)
    merged = make_adapter(model, tmp_path / "adapter")
    expected = text_logits(merged, TOKENS)
    assert np.abs(expected - before).max() > 0.05
    convert(folder, tmp_path / "out", "fp32", lora=[WeightedAdapter(tmp_path / "adapter")])
    assert np.abs(differences(tmp_path / "out", expected)).max() < 1e-3


def test_check_needs_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    settings = by("gptq", bits=4, sym=True)
    quantize(make_checkpoint("llama", folder), folder, settings, packers.gptq, "lm_head")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:head] + bytes(len(content) - head))
    with open_checkpoint(folder) as opened:
        report = check(opened, "m", ConvertOptions(), has_text=True)
    assert report.parameters == sum(
        p.numel() for p in make_checkpoint("llama", tmp_path / "plain").parameters()
    )
