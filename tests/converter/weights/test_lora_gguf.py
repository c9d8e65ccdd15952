"""Adapters in GGUF files: what becomes of them is what becomes of PEFT's that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.weights import planned_weight
from converter.weights.adapters import WeightedAdapter
from tests.gguf_files import Keys, write_gguf
from tests.gguf_models import write_adapter, write_model
from tests.tiny_models import make_adapter, make_checkpoint

LORA_A = "blk.0.attn_q.weight.lora_a"


def network(base: Path, adapter: Path | None) -> bytes:
    """The network of what a base and an adapter become."""
    output = base.parent / "out.litertlm"
    adapters = [] if adapter is None else [WeightedAdapter(adapter)]
    options = ConvertOptions(quantize="fp32", lora=adapters, prefill_lengths=(8,))
    with open_checkpoint(base) as opened:
        ModelConverter(opened, "tiny", options).convert(output)
    section = read_bundle(output).section("TFLiteModel")
    assert section is not None
    return output.read_bytes()[section.offset : section.offset + section.nbytes]


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", "all-linear"),
        ("mistral", "all-linear"),  # `llama` in a GGUF
        ("mixtral", ["q_proj", "k_proj"]),  # the same
        ("phi3", "all-linear"),  # qkv_proj and gate_up_proj
        ("glm", ["q_proj", "k_proj", "gate_up_proj"]),
        ("gemma3_text", "all-linear"),
        ("qwen2", ["embed_tokens", "lm_head", "q_proj"]),
    ],
)
@pytest.mark.parametrize("block", [planned_weight.BLOCK_VALUES, 700], ids=["whole", "blocks"])
def test_the_same_as_of_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, targets: Any, block: int
) -> None:
    monkeypatch.setattr(planned_weight, "BLOCK_VALUES", block)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model = make_checkpoint(family, base)
    gguf = write_model(model, tmp_path / "base.gguf")
    config, plain = model.config, network(base, None)
    make_adapter(model, folder, target_modules=targets)
    adapter = write_adapter(config, folder, tmp_path / "adapter.gguf", alpha=6.0)
    expected = network(base, folder)
    assert expected != plain
    np.testing.assert_array_equal(as_words(network(base, adapter)), as_words(expected))
    assert network(gguf, adapter) == network(gguf, folder)


def test_all_experts_at_once(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model = make_checkpoint("mixtral", base)
    make_adapter(model, folder, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    stack = np.ones((6, 4, 4), np.float32)
    module = "base_model.model.model.layers.0.mlp.experts.down_proj"
    save_file(load_file(path) | {f"{module}.lora_{s}.weight": stack for s in "AB"}, path)
    adapter = write_adapter(model.config, folder, tmp_path / "adapter.gguf", alpha=6.0)
    with pytest.raises(UnsupportedError, match=r"ffn_down_exps.*is of several experts at once"):
        network(base, adapter)


def as_words(network: bytes) -> np.ndarray:
    return np.frombuffer(network[: len(network) // 4 * 4], np.uint32)


def test_its_alpha(adapter: Path) -> None:
    """The factor is alpha / rank; llama.cpp takes 0 for none, and the product as it is."""
    base = adapter.parent / "base"
    config, folder = configuration(base), adapter.parent / "peft"
    found = {
        alpha: network(base, write_adapter(config, folder, adapter, alpha))
        for alpha in (0.0, 4.0, 6.0)
    }
    assert found[0.0] == found[4.0] != found[6.0]


def test_norms_that_mergekit_extracts(adapter: Path) -> None:
    base = adapter.parent / "base"
    norm = np.linspace(1, 2, 64, dtype=np.float32)
    write(adapter, {"output_norm.weight": norm})
    assert norm.tobytes() in network(base, adapter)
    assert norm.tobytes() not in network(base, None)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the tiny Llama, whose checkpoint lies beside it, and PEFT's."""
    model = make_checkpoint("llama", tmp_path / "base")
    config = model.config
    make_adapter(model, tmp_path / "peft", target_modules=["q_proj"])
    return write_adapter(config, tmp_path / "peft", tmp_path / "adapter.gguf", alpha=6.0)


def configuration(base: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base)


def write(
    path: Path, tensors: dict[str, np.ndarray], keys: Keys | None = None, arch: str = "llama"
) -> None:
    said = {":general.type": "adapter", ":adapter.type": "lora", ":adapter.lora.alpha": 6.0}
    write_gguf(path, said | (keys or {}), tensors, arch)


def refusal(adapter: Path) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as error:
        network(adapter.parent / "base", adapter)
    return error.value


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({":adapter.type": "control"}, UnsupportedError, "adapter.type='control' is not lora"),
        ({":adapter.alora.invocation_tokens": [5]}, UnsupportedError, "only after these tokens"),
        ({":adapter.lora.gate": 2.0}, UnsupportedError, "adapter.lora.gate=2.0: this key is not"),
        ({":adapter.lora.alpha": float("nan")}, SourceError, "adapter.lora.alpha=nan is not a num"),
        ({":adapter.lora.alpha": "6"}, SourceError, "adapter.lora.alpha='6' is not a number"),
        ({":adapter.lora.task_name": "sums"}, SourceError, "lora_a has no counterpart"),  # known
    ],
)
def test_keys_that_are_more_than_a_product(
    adapter: Path, keys: Keys, kind: type[LiteRTLMError], message: str
) -> None:
    write(adapter, {LORA_A: np.ones((4, 64), np.float32)}, keys)
    error = refusal(adapter)
    assert isinstance(error, kind)
    assert message in str(error)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3", "arcee"])
def test_one_for_another_architecture(adapter: Path, arch: str) -> None:
    write(adapter, {LORA_A: np.ones((4, 64), np.float32)}, arch=arch)
    assert f"it is for the architecture {arch}, and the model is llama" in str(refusal(adapter))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "blk.0.attn_q_norm.weight.lora_a",
            (4, 64),
            "this llama has not: blk.0.attn_q_norm.weight",
        ),
        ("blk.0.attn_q.bias", (64,), "changes what cannot be merged: blk.0.attn_q.bias"),
        (
            "blk.9.attn_q.weight.lora_a",
            (4, 64),
            "for a model of 10 layers or more, and this one has 2",
        ),
        ("blk.0.attn_q.weight.lora_b", (48, 4), "is [48, 4] x [4, 64], the model's is [64, 64]"),
    ],
)
def test_tensors_of_another_model(
    adapter: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    tensors = {LORA_A: np.ones((4, 64), np.float32), name: np.ones(shape, np.float32)}
    write(adapter, tensors)
    assert message in str(refusal(adapter))


def test_a_model_is_no_adapter(adapter: Path) -> None:
    write_gguf(adapter)
    assert "it is a GGUF, and no adapter" in str(refusal(adapter))
