"""Every layout gives the numbers that its tensors say, by any rows, to the last bit or two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converter.checkpoint.safetensors import open_folder
from converter.errors import SourceError, UnsupportedError
from tests import quantized_checkpoints as packers
from tests.quantized_checkpoints import Packer

MODULE = "model.layers.0.mlp.up_proj"


def weight_of(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * columns).normal(0, 0.1, (rows, columns)).astype(np.float32)


def folder(
    path: Path,
    settings: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> Path:
    path.mkdir()
    config = {"model_type": "llama", **settings}
    (path / "config.json").write_text(json.dumps(config))
    save_file(
        {"model.norm.weight": torch.ones(4)}
        | {f"{MODULE}.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        path / "model.safetensors",
        metadata,
    )
    return path


def by(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


def pack_config(bits: int, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return by("compressed-tensors", format="pack-quantized", config_groups=groups, **more)


CT = by("compressed-tensors", config_groups={})
MLX_BY_MODULE = {
    key: {"bits": 4, "group_size": 64, MODULE: {"bits": 8}}
    for key in ("quantization", "quantization_config")
}
BNB4 = by("bitsandbytes", load_in_4bit=True)
RNG = np.random.default_rng(1)

# What the config says, what packs a weight, its shape, what it is called, and its int4 blocks.
CASES: dict[str, tuple[dict[str, Any], Packer, tuple[int, int], str, int | None]] = {
    "gptq": (by("gptq", bits=4, sym=True), packers.gptq, (40, 96), "GPTQ 4-bit", 32),
    "gptq-row": (
        by("gptq", bits=4, group_size=-1, sym=True),
        partial(packers.gptq, group=-1), (40, 96), "GPTQ 4-bit", 96,
    ),
    "gptq-asymmetric": (
        by("gptq", bits=4, sym=False),
        partial(packers.gptq, symmetric=False), (72, 64), "GPTQ 4-bit", None,
    ),
    "gptq-desc_act": (
        by("gptq", bits=4, desc_act=True, sym=True),
        partial(packers.gptq, order=RNG), (40, 96), "GPTQ 4-bit", None,
    ),
    "gptq-v2": (
        by("gptq", bits=4, checkpoint_format="gptq_v2", sym=False),
        partial(packers.gptq, symmetric=False, less=0), (40, 96), "GPTQ 4-bit", None,
    ),
    "gptq-2": (
        by("gptq", bits=2), partial(packers.gptq, bits=2), (48, 96), "GPTQ 2-bit", None,
    ),
    "gptq-3": (
        by("gptq", bits=3, sym=False),
        partial(packers.gptq, bits=3, symmetric=False), (64, 96), "GPTQ 3-bit", None,
    ),
    "gptq-8-of-4": (  # a module of another width than the config says
        by("gptq", bits=4, sym=True),
        partial(packers.gptq, bits=8), (40, 96), "GPTQ 8-bit", None,
    ),
    "auto-round": (
        by("auto-round", bits=4, group_size=32, sym=False, packing_format="auto_round"),
        partial(packers.gptq, symmetric=False, less=0, has_index=False),
        (40, 96), "GPTQ 4-bit", None,
    ),
    "auto-round-gptq": (
        by("auto-round", bits=4, group_size=32, packing_format="auto_round:auto_gptq"),
        partial(packers.gptq, bits=8, has_index=False), (40, 96), "GPTQ 8-bit", None,
    ),
    "auto-round-awq": (
        by("auto-round", bits=4, group_size=32, packing_format="auto_round:auto_awq"),
        packers.awq, (40, 96), "AWQ 4-bit", None,
    ),
    "gptq-other-groups": (  # `dynamic`: a module in groups of another size than the config says
        by("gptq", bits=4, group_size=128),
        partial(packers.gptq, group=48, has_index=False), (40, 96), "GPTQ 4-bit", None,
    ),
    "auto-round-awq-symmetric": (
        by("auto-round", bits=4, group_size=32, sym=True, packing_format="auto_round:auto_awq"),
        partial(packers.awq, symmetric=True), (40, 96), "AWQ 4-bit", 32,
    ),
    "awq": (by("awq", bits=4, group_size=32), packers.awq, (40, 96), "AWQ 4-bit", None),
    "awq-symmetric": (
        by("awq", bits=4, group_size=32, zero_point=False, version="GEMM"),
        partial(packers.awq, symmetric=True), (88, 64), "AWQ 4-bit", 32,
    ),
    "ct-pack": (
        pack_config(4), packers.pack_quantized, (37, 96), "compressed-tensors 4-bit", 32,
    ),
    "ct-pack-bf16": (
        pack_config(4),
        partial(packers.pack_quantized, dtype=torch.bfloat16, group=-1),
        (37, 100), "compressed-tensors 4-bit", 100,
    ),
    "ct-pack-f32": (
        pack_config(4),
        partial(packers.pack_quantized, dtype=torch.float32),
        (37, 96), "compressed-tensors 4-bit", None,
    ),
    "ct-pack-zero": (
        pack_config(4),
        partial(packers.pack_quantized, symmetric=False),
        (37, 96), "compressed-tensors 4-bit", None,
    ),
    "ct-pack-actorder": (
        pack_config(4),
        partial(packers.pack_quantized, order=RNG),
        (37, 96), "compressed-tensors 4-bit", None,
    ),
    "ct-pack-8": (
        pack_config(8),
        partial(packers.pack_quantized, bits=8, symmetric=False),
        (37, 96), "compressed-tensors 8-bit", None,
    ),
    "ct-pack-3": (
        pack_config(3),
        partial(packers.pack_quantized, bits=3, symmetric=False),
        (37, 96), "compressed-tensors 3-bit", None,
    ),
    "ct-int8": (
        CT, partial(packers.scaled, dtype=torch.int8, block=(1, 96)),
        (37, 96), "compressed-tensors int8", None,
    ),
    "ct-int8-tensor": (
        CT, partial(packers.scaled, dtype=torch.int8, block=(37, 96), shape=(1,)),
        (37, 96), "compressed-tensors int8", None,
    ),
    "ct-float8": (
        CT, partial(packers.scaled, block=(1, 96), scale_dtype=torch.bfloat16),
        (37, 96), "compressed-tensors FP8", None,
    ),
    "ct-float8-group": (
        CT, partial(packers.scaled, block=(1, 32)), (37, 96), "compressed-tensors FP8", None,
    ),
    "ct-mxfp4": (
        CT, partial(packers.float4, group=32), (37, 96), "compressed-tensors MXFP4", None,
    ),
    "ct-nvfp4": (CT, packers.nvfp4, (37, 96), "compressed-tensors NVFP4", None),
    "fp8-blocks": (
        by("fp8", weight_block_size=[32, 32]),
        partial(packers.scaled, block=(32, 32), scale_name="weight_scale_inv"),
        (70, 100), "FP8", None,
    ),
    "fp8-tensor": (
        by("fp8"),
        partial(packers.scaled, block=(70, 100), scale_name="weight_scale_inv", shape=()),
        (70, 100), "FP8", None,
    ),
    "fbgemm": (
        by("fbgemm_fp8"), partial(packers.scaled, block=(1, 100)), (70, 100), "FBGEMM FP8", None,
    ),
    "bnb-int8": (
        by("bitsandbytes", load_in_8bit=True),
        packers.bnb_int8, (37, 50), "bitsandbytes int8", None,
    ),
    "bnb-nf4": (BNB4, packers.bnb_4bit, (301, 90), "bitsandbytes nf4", None),
    "bnb-nf4-odd": (BNB4, packers.bnb_4bit, (37, 51), "bitsandbytes nf4", None),
    "bnb-nf4-plain": (
        BNB4, partial(packers.bnb_4bit, nested=False), (37, 50), "bitsandbytes nf4", None,
    ),
    "bnb-fp4": (BNB4, partial(packers.bnb_4bit, kind="fp4"), (37, 50), "bitsandbytes fp4", None),
    "bnb-nf4-in-bf16": (
        BNB4, partial(packers.bnb_4bit, storage=torch.bfloat16),
        (38, 50), "bitsandbytes nf4", None,
    ),
    "mlx-by-module": (
        MLX_BY_MODULE, partial(packers.mlx, bits=8), (37, 128), "mlx 8-bit", None,
    ),
    "mlx-mxfp4": (
        {"quantization": {"mode": "mxfp4", "bits": 4, "group_size": 32}},
        packers.mlx_floats, (37, 128), "mlx mxfp4", None,
    ),
    "gemma-4": (by("gemma"), packers.gemma, (37, 100), "gemma 4-bit", None),
    "gemma-2": (
        by("gemma", module_quant_configs={"down": {"num_bits": 8}, "mlp.up": {"num_bits": 2}}),
        partial(packers.gemma, bits=2), (37, 100), "gemma 2-bit", None,
    ),
    "gemma-8": (by("gemma"), partial(packers.gemma, bits=8), (37, 99), "gemma 8-bit", None),
    "gemma-embedding": (
        by("gemma", quantize_embeddings=True),
        partial(packers.gemma, names=("embedding_quantized", "embedding_scale")),
        (37, 100), "gemma 4-bit", None,
    ),
    "metal": (
        by("metal", bits=4, group_size=64),
        partial(packers.mlx, bias_name="qbiases"), (37, 128), "metal 4-bit", None,
    ),
    **{
        f"mlx-{bits}": (
            {"quantization": {"bits": bits, "group_size": 32}},
            partial(packers.mlx, bits=bits, group=32), (37, 96), f"mlx {bits}-bit", None,
        )
        for bits in (2, 3, 4, 5, 6, 8)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_a_layout(tmp_path: Path, case: str) -> None:
    settings, pack, shape, called, block = CASES[case]
    tensors, expected = pack(weight_of(*shape))
    with open_folder(folder(tmp_path / "m", settings, tensors)) as checkpoint:
        assert set(checkpoint.tensors) == {"model.norm.weight", f"{MODULE}.weight"}
        info = checkpoint.tensors[f"{MODULE}.weight"]
        assert (info.shape, info.dtype, info.int4_block) == (shape, called, block)
        assert "quantization" not in json.dumps(checkpoint.config)
        for start, stop in ((0, shape[0]), (0, 1), (5, 23), (shape[0] - 1, shape[0]), (9, 9)):
            found = checkpoint.read_rows(info.name, start, stop)
            np.testing.assert_allclose(found, expected[start:stop], rtol=1e-6, atol=1e-7)


TORCHAO: dict[str, tuple[Packer, str, tuple[int, int], str, dict[str, Any]]] = {
    "int8": (packers.torchao, "Int8Tensor", (1, 96), "torchao int8", {}),
    "int4": (
        partial(packers.torchao, bits=4, group=32, symmetric=False),
        "IntxUnpackedToInt8Tensor",
        (1, 32),
        "torchao int4",
        {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}},
    ),
    "float8": (packers.torchao_float8, "Float8Tensor", (1, 96), "torchao FP8", {}),
}


@pytest.mark.parametrize("case", TORCHAO)
def test_torchao_describes_its_tensors_in_the_file(tmp_path: Path, case: str) -> None:
    pack, kind, block, called, more = TORCHAO[case]
    tensors, expected = pack(weight_of(37, 96))
    parts = [name.removeprefix("_weight_") for name in tensors]
    metadata = packers.torchao_metadata(f"{MODULE}.weight", kind, block, *parts, **more)
    with open_folder(folder(tmp_path / "m", by("torchao"), tensors, metadata)) as checkpoint:
        assert set(checkpoint.tensors) == {"model.norm.weight", f"{MODULE}.weight"}
        assert checkpoint.tensors[f"{MODULE}.weight"].dtype == called
        found = checkpoint.read_rows(f"{MODULE}.weight", 5, 23)
        np.testing.assert_allclose(found, expected[5:23], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "parts", "said"),
    [
        ("Int4TilePackedTo4dTensor", ["qdata", "scale_and_zero"], "Int4TilePackedTo4dTensor"),
        ("Int8Tensor", ["qdata", "scale", "act_pre_scale"], "act_pre_scale"),
    ],
)
def test_what_torchao_lays_out_for_hardware_is_refused(
    tmp_path: Path, kind: str, parts: list[str], said: str
) -> None:
    tensors = packers.torchao(weight_of(8, 96)).tensors
    metadata = packers.torchao_metadata(f"{MODULE}.weight", kind, (1, 96), *parts)
    with pytest.raises(UnsupportedError, match=said):
        open_folder(folder(tmp_path / "m", by("torchao"), tensors, metadata))


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Experts times outputs are rows; each row's groups are a dimension of their own."""
    weights = weight_of(3 * 10, 64)
    packed, expected = packers.float4(weights, 32, ("_blocks", "_scales"))
    tensors = {
        f"down_proj{name}": tensor.reshape(3, 10, 2, *([16] if name == "_blocks" else []))
        for name, tensor in packed.items()
    }
    with open_folder(folder(tmp_path / "m", by("mxfp4"), tensors)) as checkpoint:
        info = checkpoint.tensors[f"{MODULE}.down_proj.weight"]
        assert (info.shape, info.dtype) == ((3, 10, 64), "MXFP4")
        found = checkpoint.read_rows(info.name, 7, 23)
        np.testing.assert_array_equal(found, expected[7:23])


DAMAGED: dict[str, tuple[str, dict[str, torch.Tensor | None], str]] = {
    "no scales": ("gptq", {"scales": None}, "scales is missing"),
    "no zeros": ("gptq", {"qzeros": None}, "qzeros is missing"),
    "scales of other groups": (
        "gptq", {"scales": torch.ones(2, 40).half()}, "qzeros is I32 [3, 5], not I32 [2, 5]",
    ),
    "scales of whole numbers": ("gptq", {"scales": torch.ones(3, 40).int()}, "not floats [groups"),
    "awq scales of whole numbers": ("awq", {"scales": torch.ones(3, 40).int()}, "not floats [3, 4"),
    "scales of other rows": ("gptq", {"scales": torch.ones(3, 32)}, "not floats [groups, 40]"),
    "codes that are no matrix": ("gptq", {"qweight": torch.ones(480).int()}, "qweight is I32"),
    "codes of another width": (
        "gptq", {"g_idx": torch.zeros(90).int()}, "not [90 * bits / 32, 40]",
    ),
    "wide codes": ("gptq", {"qweight": torch.ones(12, 40).long()}, "qweight is I64"),
    "awq without zeros": ("awq", {"qzeros": None}, "qzeros is missing"),
    "awq of another group": (
        "awq", {"scales": torch.ones(2, 40).half()}, "not one row for each group_size=32 of 96",
    ),
    "awq zeros": (
        "awq", {"qzeros": torch.ones(3, 4).int()}, "qzeros is I32 [3, 4], not I32 [3, 5]",
    ),
    "no shape": ("ct-pack", {"weight_shape": None}, "weight_shape is missing"),
    "another shape": (
        "ct-pack", {"weight_shape": torch.tensor([37, 200])}, "not [37, 200 * bits / 32]",
    ),
    "no scale": ("ct-int8", {"weight_scale": None}, "weight_scale is missing"),
    "scale of other blocks": (
        "ct-float8-group", {"weight_scale": torch.ones(37, 5)}, "one for each part of [37, 96]",
    ),
    "scale of no number": (
        "ct-float8-group", {"weight_scale": torch.ones(37, 3).int()}, "not floats",
    ),
    "zero points of others": (
        "ct-int8", {"weight_zero_point": torch.ones(36, 1, dtype=torch.int8)}, "not int8 [37, 1]",
    ),
    "no scale_inv": ("fp8-blocks", {"weight_scale_inv": None}, "weight_scale_inv is missing"),
    "no biases": ("mlx-4", {"biases": None}, "biases is missing"),
    "mlx of other groups": ("mlx-4", {"scales": torch.ones(37, 2)}, "[37, 3] of groups of 32"),
    "gemma without scales": ("gemma-4", {"weight_scale": None}, "weight_scale is missing"),
    "no SCB": ("bnb-int8", {"SCB": None}, "SCB is missing"),
    "an order of hardware": (
        "bnb-int8", {"weight_format": torch.tensor(1, dtype=torch.uint8)}, "weight_format is not 0",
    ),
    "no state": (
        "bnb-nf4", {"weight.quant_state.bitsandbytes__nf4": None}, "bitsandbytes__nf4 is missing",
    ),
    "a state of no JSON": (
        "bnb-nf4", {"weight.quant_state.bitsandbytes__nf4": torch.zeros(9).byte()}, "is not JSON",
    ),
    "a state of nothing": (
        "bnb-nf4",
        {"weight.quant_state.bitsandbytes__nf4": torch.tensor([*b"{}"], dtype=torch.uint8)},
        "states no shape or blocksize",
    ),
    "no absmax": ("bnb-nf4-plain", {"weight.absmax": None}, "absmax is missing"),
    "too few absmax": ("bnb-nf4-plain", {"weight.absmax": torch.ones(3)}, "absmax is F32 [3]"),
    "no nested_absmax": ("bnb-nf4", {"weight.nested_absmax": None}, "nested_absmax is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, case: str) -> None:
    of, changed, said = DAMAGED[case]
    settings, pack, shape, *_ = CASES[of]
    tensors = {**pack(weight_of(*shape)).tensors, **changed}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(SourceError) as caught:
        open_folder(folder(tmp_path / "m", settings, present))
    assert caught.value.what == f"{tmp_path / 'm'}: {MODULE}.weight"
    assert said in caught.value.why


@pytest.mark.parametrize("index", [-3, 3])
def test_an_index_beyond_the_groups_is_refused_when_it_is_read(tmp_path: Path, index: int) -> None:
    settings, pack, shape, *_ = CASES["gptq-desc_act"]
    tensors = pack(weight_of(*shape)).tensors
    tensors["g_idx"][7] = index
    path = folder(tmp_path / "m", settings, tensors)
    with open_folder(path) as checkpoint, pytest.raises(SourceError, match="names groups beyond 3"):
        checkpoint.read_rows(f"{MODULE}.weight", 0, 4)


def test_an_index_that_was_never_set_leaves_groups_in_order(tmp_path: Path) -> None:
    """As older versions of compressed-tensors saved it."""
    settings, pack, shape, *_ = CASES["ct-pack"]
    tensors, expected = pack(weight_of(*shape))
    tensors["weight_g_idx"] = torch.full((shape[1],), -1, dtype=torch.int32)
    with open_folder(folder(tmp_path / "m", settings, tensors)) as checkpoint:
        found = checkpoint.read_rows(f"{MODULE}.weight", 0, shape[0])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_weight_in_both_forms_is_refused(tmp_path: Path) -> None:
    settings, pack, shape, *_ = CASES["gptq"]
    tensors = {**pack(weight_of(*shape)).tensors, "weight": torch.ones(shape)}
    with pytest.raises(SourceError, match="it is there in plain numbers, too"):
        open_folder(folder(tmp_path / "m", settings, tensors))


def test_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    """What rounds the source's activations; the target rounds its own."""
    settings, pack, shape, *_ = CASES["ct-int8"]
    tensors, _ = pack(weight_of(*shape))
    tensors |= {"input_scale": torch.ones(1), "input_zero_point": torch.zeros(1).to(torch.int8)}
    with open_folder(folder(tmp_path / "m", settings, tensors)) as checkpoint:
        assert set(checkpoint.tensors) == {"model.norm.weight", f"{MODULE}.weight"}


def test_biases_of_zeros_that_autogptq_made_are_left_out(tmp_path: Path) -> None:
    """And no others."""
    settings, pack, shape, *_ = CASES["gptq"]
    tensors, _ = pack(weight_of(*shape))
    for value in (0.0, 0.5):
        bias = torch.full((shape[0],), value).half()
        path = folder(tmp_path / str(value), settings, tensors | {"bias": bias})
        with open_folder(path) as checkpoint:
            assert (f"{MODULE}.bias" in checkpoint.tensors) == (value != 0)


def test_bytes_of_another_method_are_refused(tmp_path: Path) -> None:
    """A config that says GPTQ, and a weight of int8."""
    tensors = CASES["ct-int8"][1](weight_of(8, 96)).tensors
    with pytest.raises(UnsupportedError, match="it holds a tensor"):
        open_folder(folder(tmp_path / "m", by("gptq"), tensors))
