"""Weights on no grid are the same model, and importances are what llama.cpp's quantiser reads."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.anchors import write_importances, write_off_grid
from converter.base import ModelConverter
from converter.checkpoint.gguf import open_gguf
from converter.options import ConvertOptions
from runner.evaluation import graph_logits
from tests.gguf_models import write_model
from tests.tiny_models import make_checkpoint, make_model

TOKENS = [5, 28, 207, 12, 99]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_off_the_grid_is_the_same_function(family: str, tmp_path: Path) -> None:
    source = write_model(make_model(family), tmp_path / "source.gguf")
    write_off_grid(source, tmp_path / "off.gguf")
    logits = []
    for name in ("source", "off"):
        bundle = tmp_path / f"{name}.litertlm"
        with open_gguf(tmp_path / f"{name}.gguf") as checkpoint:
            converter = ModelConverter(checkpoint, name, ConvertOptions("fp32", cache_length=64))
            converter.write(converter.plan(), bundle)
        logits.append(np.stack(list(graph_logits(bundle, TOKENS))))
    np.testing.assert_allclose(*logits, atol=2e-4, rtol=1e-4)
    before, after = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("source", "off"))
    changed = {
        one.name.split(".")[2]
        for one, other in zip(before.tensors, after.tensors, strict=True)
        if not np.allclose(one.data, other.data, rtol=0.01)
    }
    assert changed >= {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down"}


def test_importances_are_sums_of_squared_inputs(tmp_path: Path) -> None:
    import torch

    make_checkpoint("llama", tmp_path / "folder")
    write_importances(tmp_path / "folder", [TOKENS, TOKENS[:3]], tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    with torch.no_grad():
        inputs = model.model.embed_tokens(torch.tensor([*TOKENS, *TOKENS[:3]]))
        inputs = model.model.layers[0].input_layernorm(inputs).numpy()
    for kind in ("attn_q", "attn_k", "attn_v"):
        sums = found[f"blk.0.{kind}.weight.in_sum2"]
        np.testing.assert_allclose(sums.ravel(), (inputs**2).sum(0), rtol=1e-4)
        assert found[f"blk.0.{kind}.weight.counts"].ravel() == [8]
    kinds = {name.split(".")[2] for name in found if name.startswith("blk.")}
    assert kinds == {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
