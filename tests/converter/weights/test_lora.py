"""Adapters: the merged bundle against peft's own merge, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from runner.interpreter import GraphRunner
from tests.converter.test_base import write_llama_gguf
from tests.tiny_models import make_adapter, make_checkpoint, text_logits


def convert(checkpoint: Path, adapter: Path, output: Path, **options: Any) -> Path:
    chosen = ConvertOptions(quantize="fp32", lora=adapter, prefill_lengths=(8, 64), **options)
    with open_checkpoint(checkpoint) as opened:
        ModelConverter(opened, "tiny", chosen).convert(output)
    return output


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen3", {"use_rslora": True}),
        ("gemma3_text", {"target_modules": ["q_proj", "down_proj"]}),
        ("qwen2", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 16}}),
    ],
)
def test_as_peft_merges(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    model = make_checkpoint(family, tmp_path / "base")
    tokens = np.random.default_rng(0).integers(0, 256, 40).tolist()
    before = text_logits(model, tokens)
    merged = make_adapter(model, tmp_path / "adapter", **options)
    expected = text_logits(merged, tokens)
    assert np.abs(expected - before).max() > 0.05  # it does something
    runner = GraphRunner(convert(tmp_path / "base", tmp_path / "adapter", tmp_path / "m"))
    runner.prefill(8, tokens[:8])
    for position in range(8, 40):
        logits = runner.decode(tokens[position], position)
        np.testing.assert_allclose(logits, expected[position], atol=1e-3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the tiny Llama, whose checkpoint lies beside it."""
    make_adapter(make_checkpoint("llama", tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(adapter: Path) -> LiteRTLMError:
    output = adapter.parent / "out" / "m"
    with pytest.raises(LiteRTLMError) as error:
        convert(adapter.parent / "base", adapter, output)
    assert not output.parent.exists()
    return error.value


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter: Path, changes: dict[str, np.ndarray], without: str = "nothing") -> None:
    path = adapter / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if without not in name}
    save_file(kept | changes, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True cannot be merged row by row"),
        ({"bias": "all"}, "bias='all' cannot"),
        ({"peft_type": "IA3"}, "peft_type='IA3' cannot"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] cannot"),
        ({"alpha_pattern": {"layers.[0-3].*": 3}}, "alpha_pattern holds the pattern"),
    ],
)
def test_what_is_more_than_an_update_is_refused(
    adapter: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(adapter, **changes)
    error = refusal(adapter)
    assert isinstance(error, UnsupportedError)
    assert message in str(error)
    assert "merge_and_unload" in str(error)


@pytest.mark.parametrize("module", ["embed_tokens", "layers.0.mlp.gate", "lm_head_2"])
def test_other_modules_are_refused_by_name(adapter: Path, module: str) -> None:
    name = f"base_model.model.model.{module}.lora_A.weight"
    edit_weights(adapter, {name: np.zeros((4, 64), np.float32)})
    error = refusal(adapter)
    assert isinstance(error, UnsupportedError)
    assert name in str(error)


def test_an_adapter_of_another_model_is_refused(adapter: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    edit_weights(adapter, {name: np.zeros((97, 4), np.float32)})
    assert "layers.1.mlp.up is [97, 4] x [4, 64], the model's is [96, 64]" in str(refusal(adapter))


def test_half_an_update_is_refused(adapter: Path) -> None:
    edit_weights(adapter, {}, without="layers.1.mlp.up_proj.lora_B")
    error = refusal(adapter)
    assert isinstance(error, SourceError)
    assert "up_proj.lora_A.weight has no counterpart" in str(error)


def test_a_folder_without_an_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "it has no adapter_model.safetensors" in str(refusal(adapter))


def test_a_gguf_gets_the_same_update(adapter: Path) -> None:
    """Its queries and keys stand in another order, and its names are others."""
    folder = adapter.parent
    gguf = write_llama_gguf(folder / "base", folder / "base.gguf")
    found = []
    for source in (folder / "base", gguf):
        bundle = convert(source, adapter, folder / f"{source.stem}{source.suffix}.litertlm")
        section = read_bundle(bundle).section("TFLiteModel")
        assert section is not None
        found.append(bundle.read_bytes()[section.offset : section.offset + section.nbytes])
    assert found[0] == found[1]


def test_on_the_command_line(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result has a name of its own, so that the plain model beside it stays what it is."""
    folder = adapter.parent
    options = ["--output-dir", str(folder / "out"), "--lora", str(adapter), "--quiet"]
    assert main(["convert", str(folder / "base"), *options]) == 0
    assert capsys.readouterr().out == f"{folder}/out/base-adapter.litertlm\n"
    assert main(["convert", str(folder / "base"), *options, "--dry-run"]) == 0
    assert "base-adapter.litertlm" in capsys.readouterr().out
    options[3] = str(folder / "nothing")
    assert main(["convert", str(folder / "base"), *options]) == 1
    assert capsys.readouterr().err == (
        f"error: --lora {folder}/nothing, it has no adapter_config.json and no "
        "adapter_model.safetensors, pass a PEFT adapter's folder, or its id on the hub\n"
    )
