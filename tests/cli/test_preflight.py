"""`litert-lm-cli preflight`: what it prints, and the exit code that scripts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.tiny_models import make_adapter, make_checkpoint, make_model, write_tokenizer


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight") / "llama"
    make_checkpoint("llama", folder)
    return folder


def enlarged(folder: Path, module: str) -> Path:
    """A tiny model with one matrix that is far too large."""
    import torch

    model = make_model("llama")
    with torch.no_grad():
        model.get_submodule(module).weight.mul_(30_000)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int) -> tuple[Any, str]:
    capsys.readouterr()  # what transformers said
    assert main(["preflight", "--json", "--quiet", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_one_that_float16_carries(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value, error = said(capsys, llama, code=0)
    assert set(value) == {
        "model", "verdict", "reason", "fp16_scale", "float16_max", "safe_peak", "scaled", "others",
        "tokens", "is_chat", "notes", "peaks",
    }  # fmt: skip
    assert (value["model"], value["verdict"], value["fp16_scale"]) == ("llama", "fits", None)
    assert error == ""


def test_one_that_needs_a_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = enlarged(tmp_path / "large", "model.layers.1.mlp.down_proj")
    value, error = said(capsys, folder, code=1)
    scale = value["fp16_scale"]
    assert value["verdict"] == "fits_scaled"
    assert 25_000 < value["scaled"]["value"] * scale <= 50_000
    assert error == (
        f"error: large, {value['reason']}, and float16 ends at 65,504, convert it with "
        f"--fp16-scale auto, which is {scale}\n"
    )
    assert main(["preflight", "--quiet", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"large: float16 carries it with --fp16-scale {scale}"
    [residual] = [line.split() for line in lines if "the residual stream " in line][:1]
    layers = value["peaks"]["layers"]
    peak = max(layer["residual"] for layer in layers)
    assert residual[-2:] == [f"{peak:,.1f}", "1"]


def test_one_that_no_scale_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = enlarged(tmp_path / "large", "model.layers.1.self_attn.q_proj")
    value, error = said(capsys, folder, code=1)
    assert (value["verdict"], value["fp16_scale"]) == ("too_large", None)
    assert value["reason"].startswith("a score of the attention of layer 1 reaches ")
    assert error.endswith("no scale helps there: convert it without --target coreml\n")


def test_with_an_adapter(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(make_model("llama"), tmp_path / "adapter")
    alone, _ = said(capsys, llama, code=0)
    merged, _ = said(capsys, llama, "--lora", tmp_path / "adapter", code=0)
    assert merged["model"] == "llama-adapter"
    assert merged["peaks"]["layers"] != alone["peaks"]["layers"]


def test_what_is_converted_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.litertlm").touch()
    assert main(["preflight", str(tmp_path / "x.litertlm")]) == 2
    assert "it is converted already" in capsys.readouterr().err


def test_one_that_core_ml_does_not_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint("lfm2", tmp_path / "lfm2")
    capsys.readouterr()
    assert main(["preflight", "--json", "--quiet", str(tmp_path / "lfm2")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: a network with short convolutions, ")
