"""Quantised checkpoints that are not read are refused by what they are, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint.safetensors import open_folder
from converter.errors import UnsupportedError

MLX = {"group_size": 64, "bits": 4}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
CT = {"quant_method": "compressed-tensors"}


def folder(path: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    tensors = tensors or {"model.norm.weight": torch.ones(4)}
    save_file(tensors, path / "model.safetensors")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        open_folder(path)
    assert caught.value.what == str(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"compression_config": {"quant_method": "sparseml"}}, "(sparseml)"),
        ({"quantization_config": {"quant_method": "hqq"}}, "(hqq)"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "(aqlm)"),
        ({"quantization_config": {"quant_method": "quip"}}, "(quip)"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "(bitnet)"),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.25}}, "(exl2, 4.25 bits)"),
        ({"quantization_config": {"quant_method": "exl3", "bits": 3.0}}, "(exl3, 3.0 bits)"),
        (
            {"quantization_config": {**GPTQ, "checkpoint_format": "marlin"}},
            "(gptq, 4 bits in groups of 128, checkpoint_format='marlin')",
        ),
        (
            {"text_config": {"quantization_config": {**GPTQ, "checkpoint_format": "bitblas"}}},
            "checkpoint_format='bitblas'",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "w_bit": 4, "version": "gemv"}},
            "(awq, 4 bits, version='gemv')",
        ),
        ({"quantization_config": {**GPTQ, "is_marlin_format": True}}, "checkpoint_format='marlin'"),
        ({"quantization_config": {"quant_method": "awq", "bits": 8}}, "(awq, 8 bits, bits=8)"),
        (
            {"quantization_config": {**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}},
            "(compressed-tensors, sparsity_config.format='sparse-24-bitmask')",
        ),
        ({"quantization_config": {**CT, "format": "marlin-24"}}, "format='marlin-24'"),
        ({"quantization_config": {**CT, "transform_config": {"u": 1}}}, "transform_config"),
        ({"quantization": {**MLX, "bits": 7}}, "(mlx, 7 bits in groups of 64, bits=7)"),
        ({"quantization": {**MLX, "model.x": {"mode": "odd"}}}, "mode='odd'"),
        (
            {"quantization_config": {"quant_method": "gemma", "module_quant_configs": {"(": {}}}},
            "(gemma, module_quant_configs: ",
        ),
        (
            {"quantization_config": {"quant_method": "auto-round", "packing_format": "odd"}},
            "(auto-round, packing_format='odd')",
        ),
        ({"quantization": "q4f16_1"}, "(quantization='q4f16_1')"),
    ],
)
def test_a_config_of_what_is_not_read(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    message = refusal(folder(tmp_path / "m", config))
    assert said in message
    assert "base_model in its README names it" in message


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {}, "quantization": None},
        {"compression_config": {}, "text_config": {"quantization_config": None}},
    ],
)
def test_a_config_that_says_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    with open_folder(folder(tmp_path / "m", config)) as checkpoint:
        assert list(checkpoint.tensors) == ["model.norm.weight"]


@pytest.mark.parametrize(
    "name",
    ["quantize_config.json", "quant_config.json", "hf_quant_config.json", "quanto_qmap.json"],
)
def test_a_file_beside_the_config_says_so(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "m", {})
    (path / name).write_text("{}")
    assert name in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "scales",
        "qweight",
        "qzeros",
        "weight_packed",
        "weight_scale",
        "weight_scale_inv",
        "weight.absmax",
        "weight.quant_state.bitsandbytes__nf4",
        "SCB",
        "trellis",
        "W_q",
    ],
)
def test_a_tensor_says_so(tmp_path: Path, name: str) -> None:
    tensor = f"model.layers.0.mlp.up_proj.{name}"
    path = folder(tmp_path / "m", {}, **{tensor: torch.ones(4)})
    assert f"it holds a tensor {tensor}" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
def test_a_weight_of_another_type_says_so(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.ones(4, 4).to(dtype)
    assert "is stored as" in refusal(folder(tmp_path / "m", {}, **{"model.x.weight": weight}))


def test_buffers_are_no_weights(tmp_path: Path) -> None:
    buffers = {
        "model.position_ids": torch.arange(4)[None],
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
    }
    with open_folder(folder(tmp_path / "m", {}, **buffers)) as checkpoint:
        assert len(checkpoint.tensors) == 3


@pytest.mark.parametrize(
    "card",
    ["base_model: org/original", "base_model:\n- org/original", "base_model: [org/original]"],
)
def test_the_original_is_named_where_the_readme_names_it(tmp_path: Path, card: str) -> None:
    path = folder(tmp_path / "m", {"quantization_config": {"quant_method": "hqq"}})
    (path / "README.md").write_text(f"---\nlicense: mit\n{card}\n---\nbase_model: a/b\n")
    assert "F32 instead: org/original; or a GGUF of it" in refusal(path)


def test_plain_numbers_of_every_kind_are_read(tmp_path: Path) -> None:
    values = torch.randn(3, 4, dtype=torch.float64)
    tensors = {
        f"{dtype}.weight".removeprefix("torch."): values.to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    with open_folder(folder(tmp_path / "m", {}, **tensors)) as checkpoint:
        for name, tensor in tensors.items():
            assert np.array_equal(checkpoint.read_rows(name, 0, 3), tensor.float().numpy())
