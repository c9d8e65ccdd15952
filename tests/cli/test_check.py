"""`litert-lm-cli check`: figures of the plan from headers alone, refusals that scripts read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cli.main import main
from converter.litertlm.inspection import read_bundle
from tests.hub_server import HubServer
from tests.quantized_checkpoints import PACK_QUANTIZED, bnb_4bit, pack_quantized, quantize
from tests.tiny_models import make_checkpoint

HEADER_BYTES = 1 << 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "llama"
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        yield server


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> Any:
    assert main(["check", "--json", *map(str, arguments)]) == code
    return json.loads(capsys.readouterr().out)


def changed_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_its_figures_are_those_of_the_result(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = said(capsys, llama)
    assert set(value) == {
        "model", "supported", "family", "parameters", "context_length", "scheme", "target",
        "kv_cache", "draft", "sizes", "memory", "memory_fit", "text_proved", "notes",
    }  # fmt: skip
    assert (value["model"], value["supported"], value["family"]) == ("llama", True, "llama")
    assert value["text_proved"]
    for scheme in ("dynamic_int8", "fp32"):
        out = tmp_path / scheme
        assert main(["convert", str(llama), "--quantize", scheme, "--output-dir", str(out)]) == 0
        capsys.readouterr()
        bundle = read_bundle(out / "llama.litertlm")
        network = bundle.section("TFLiteModel")
        assert network is not None
        [size] = [s["bytes"] for s in value["sizes"] if s["scheme"] == scheme]
        assert size == network.nbytes
        if scheme == value["scheme"]:
            [memory] = [m for m in value["memory"] if m["kv_cache_length"] == 1280]
            assert memory["run_memory"]["total_bytes"] == bundle.model.run_memory.total_bytes


def test_as_text(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kv-cache-max-len", "100", "--kv-cache", "int8", "--quantize", "dynamic_int8"]
    assert main(["check", str(llama), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["llama: can be converted", "  family: llama"]
    [memory] = [line.split() for line in lines if re.match(r"  \d", line)]
    assert memory[0] == "100"
    title = "Memory to run in dynamic_int8 for cpu with a cache in int8, beside the engine"
    assert title in lines
    assert main(["check", str(llama), "--kv-cache-max-len", "auto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if line.startswith("A KV cache of")]
    assert line.startswith("A KV cache of 4096 fits into 3.00 GB: about 17")  # MB


def test_a_scheme_that_does_not_fit_is_said(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {s["scheme"]: s for s in said(capsys, llama)["sizes"]}  # rows of 64 and 96
    assert sizes["dynamic_int4"]["bytes"] < sizes["dynamic_int8"]["bytes"]
    assert sizes["dynamic_int4_block128"]["bytes"] is None
    assert "which blocks of 128 do not divide" in sizes["dynamic_int4_block128"]["refusal"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_of_the_hub_no_more_than_headers(
    hub: HubServer,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    shards: int,
    knows_ranges: bool,
) -> None:
    hub.knows_ranges = knows_ranges
    folder = hub.root / "org" / "llama"
    make_checkpoint("llama", folder)
    if shards > 1:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="120kB")
    remote = said(capsys, "org/llama")
    assert remote == said(capsys, folder) | {"text_proved": False, "notes": []}
    names = hub.fetched()
    assert not [name for name in names if "token" in name]
    weights = [item for item in hub.seen if item.path.endswith(".safetensors")]
    assert len(weights) >= shards
    assert all(item.range is not None for item in weights)
    assert {item.range for item in weights} == {f"bytes=0-{HEADER_BYTES - 1}"}
    assert not models.exists()


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors"])
def test_of_quantised_weights_their_shapes_are_read_too(
    hub: HubServer, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """They stand among the weights."""
    folder = hub.root / "org" / "llama"
    settings, pack = {
        "bitsandbytes": ({"load_in_4bit": True}, bnb_4bit),
        "compressed-tensors": (PACK_QUANTIZED, pack_quantized),
    }[method]
    config = {"quantization_config": {"quant_method": method, **settings}}
    quantize(make_checkpoint("llama", folder), folder, config, pack)
    remote = said(capsys, "org/llama")
    assert remote == said(capsys, folder) | {"text_proved": False, "notes": []}
    ranges = [item.range for item in hub.seen if item.path.endswith(".safetensors")]
    lengths = [int(end) - int(start) for start, end in re.findall(r"(\d+)-(\d+)", str(ranges))]
    assert sum(lengths[1:]) < (folder / "model.safetensors").stat().st_size / 2


def test_a_long_header_is_read_to_its_end(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub.root / "org" / "llama"
    make_checkpoint("llama", folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].ljust(3 * HEADER_BYTES)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    assert said(capsys, "org/llama")["supported"]


def test_a_gguf_on_the_hub(
    hub: HubServer, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub.root / "org" / "SmolLM2-GGUF"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder / "SmolLM2-Q4_1.gguf")
    remote = said(capsys, "org/SmolLM2-GGUF:Q4_1")
    local = said(capsys, folder / "SmolLM2-Q4_1.gguf")
    assert remote["sizes"] == local["sizes"]
    assert remote["memory"] == local["memory"]
    ends = [item.range for item in hub.seen if item.path.endswith(".gguf")]
    assert ends
    assert all(int(str(end).rpartition("-")[2]) < smollm2_gguf.stat().st_size / 5 for end in ends)


def test_a_refusal_is_said_as_json_and_by_the_exit_code(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub.root / "org" / "llama"
    make_checkpoint("llama", folder)
    changed_config(folder, hidden_act="relu")
    capsys.readouterr()  # what transformers said
    assert main(["check", "--json", "org/llama"]) == 1
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert (value["model"], value["supported"]) == ("org/llama", False)
    refusal = value["refusal"]
    assert set(refusal) == {"what", "why", "fix"}
    assert "hidden_act" in refusal["what"]
    assert printed.err == f"error: {refusal['what']}, {refusal['why']}, {refusal['fix']}\n"
    assert hub.fetched() == ["config.json"]


def test_a_damaged_file_on_the_hub_is_named_as_the_user_knows_it(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub.root / "org" / "llama"
    make_checkpoint("llama", folder)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    refusal = said(capsys, "org/llama", code=1)["refusal"]
    assert refusal["what"] == "org/llama/model.safetensors"


def test_what_is_converted_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.litertlm").touch()
    assert main(["check", str(tmp_path / "x.litertlm")]) == 2
    assert "it is converted already" in capsys.readouterr().err
