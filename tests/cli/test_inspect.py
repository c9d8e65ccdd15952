"""`litert-lm-cli inspect`: text for people, JSON for programs, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.inspect import size
from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from tests.edited_bundle import edited_bundle
from tests.tiny_models import make_checkpoint

DRAFTING = ConvertOptions(prefill_lengths=(8, 16), cache_length=32, drafts=2)
HOSTILE = "\x1b[2Jboo\x9b31m\x07\u202e"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    make_checkpoint("llama", folder / "llama")
    path = folder / "tiny.litertlm"
    options = ConvertOptions(prefill_lengths=(8, 16), cache_length=32)
    with open_checkpoint(folder / "llama") as checkpoint:
        ModelConverter(checkpoint, "tiny", options).convert(path)
    return path


def printed_by(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed_by(capsys, bundle)
    kilobytes = f"{bundle.stat().st_size / 1000:.1f} kB"
    assert text.startswith(
        f"{bundle}  {kilobytes}, format 1.7.0\n"
        "  producer: litert-lm-cli 0.1.0\n"
        "  model: tiny\n"
        "  family: llama\n"
        "  quantization: dynamic_int8_a16\n"
        "  target: cpu\n"
        "    every call reads no more of the KV cache than is in use; branches, so not for GPUs\n"
        "  KV cache: fp32\n"
        "  chat template: none, the source has none\n"
        "  embedding weights: F32 -> int8\n"
        "  attention weights: F32 -> int8\n"
        "  ffn weights: F32 -> int8\n"
        "  head weights: F32 -> int8\n"
        "\nSections\n  TFLiteModel "
    )
    for line in (
        "  prefill_8",
        "    in      tokens          int32 [1, 8]",
        "    in      input_pos       int32 [8]",
        "    in+out  kv_cache_k_*    float32 [1, 2, 32, 16]  x2",
        "    in+out  kv_cache_v_*    float32 [1, 2, 32, 16]  x2",
        "    out     logits          float32 [1, 1, 320]",
        "  max_num_tokens: 32",
        '  min_runtime_version: "0.11.0"',
        "Chat template",
    ):
        assert f"\n{line}\n" in text
    assert "TFLiteModel" in text
    assert "model_type=tf_lite_prefill_decode\n" in text
    assert f"  int8  {size(2 * 320 * 64 + 2 * 30720):>28}\n" in text
    assert "jinja_prompt_template" not in text  # it has a part of its own


def test_int6_is_said_where_its_halves_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine's types are int4 and int2; nobody asked for the latter."""
    make_checkpoint("llama", tmp_path / "tiny")
    command = ["convert", str(tmp_path / "tiny"), "--quiet", "--output-dir", str(tmp_path)]
    assert main([*command, "--quantize", "dynamic_int6"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "tiny.litertlm")]) == 0
    weights = capsys.readouterr().out.partition("Weights\n")[2].partition("\n\n")[0]
    noted = [line.split()[0] for line in weights.splitlines() if "of int6" in line]
    assert noted == ["int2"]


def test_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an app must know: how many, and that they want greedy sampling."""
    make_checkpoint("llama", tmp_path / "llama")
    path = tmp_path / "tiny.litertlm"
    with open_checkpoint(tmp_path / "llama") as checkpoint:
        ModelConverter(checkpoint, "tiny", DRAFTING).convert(path)
    capsys.readouterr()
    text = printed_by(capsys, path)
    assert "\n  draft: lookup, at most 2 tokens at once; " in text
    assert "samples greedily, whatever temperature it is given\n" in text
    for line in (
        "    in      embeddings      float32 [1, 3, 2]",
        "    out     logits          float32 [1, 3, 321]",
        "    in+out  kv_cache_k_*    float32 [1, 2, 35, 16]  x2",
        "  max_num_tokens: 32",
        '  min_runtime_version: "0.18.1"',
    ):
        assert f"\n{line}\n" in text
    assert re.search(r"\n  TFLiteModel +\d+ B  model_type=tf_lite_embedder\n", text)
    assert re.search(r"\n  TFLiteModel +\d+\.\d kB  model_type=tf_lite_mtp_drafter\n", text)
    assert read_bundle(path).drafts == 2
    assert json.loads(printed_by(capsys, path, "--json"))["drafts"] == 2


def test_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = json.loads(printed_by(capsys, bundle, "--json"))
    assert set(value) == {
        "path", "size", "format_version", "system", "sections", "metadata", "signatures",
        "weight_bytes", "run_memory", "drafts",
    }  # fmt: skip
    assert value["path"] == str(bundle)
    assert value["size"] == bundle.stat().st_size
    assert value["system"]["quantization"] == "dynamic_int8_a16"
    assert [section["type"] for section in value["sections"]] == [
        "TFLiteModel", "LlmMetadataProto", "ExecutorMetadataProto", "HF_Tokenizer_Zlib",
    ]  # fmt: skip
    assert all(set(s) == {"type", "offset", "size", "items"} for s in value["sections"])
    assert value["sections"][0]["items"] == {"model_type": "tf_lite_prefill_decode"}
    assert value["metadata"]["max_num_tokens"] == 32
    assert value["metadata"]["jinja_prompt_template"]
    assert [signature["name"] for signature in value["signatures"]] == [
        "prefill_8", "prefill_16", "decode",
    ]  # fmt: skip
    [tokens] = [t for t in value["signatures"][0]["inputs"] if t["name"] == "tokens"]
    assert tokens == {"name": "tokens", "shape": [1, 8], "dtype": "int32"}
    assert value["weight_bytes"]["int8"] == 2 * 320 * 64 + 2 * 30720
    assert value["run_memory"]["kv_cache_bytes"] == 2 * 2 * 32 * 2 * 16 * 4


def test_what_a_model_says_cannot_drive_the_terminal(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(metadata: Any) -> None:
        metadata.jinja_prompt_template = f"line\n{HOSTILE}größe"
        metadata.stop_tokens.add().token_str = HOSTILE

    path = edited_bundle(bundle, tmp_path / f"m{HOSTILE}\n.litertlm", edit)
    text = printed_by(capsys, path)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\n  ?[2Jboo?31m??größe\n" in text
    output = printed_by(capsys, path, "--json")
    assert all(line.isprintable() for line in output.split("\n"))
    value = json.loads(output)
    assert value["path"] == str(path)
    assert value["metadata"]["jinja_prompt_template"] == f"line\n{HOSTILE}größe"


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_damaged_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    content = bundle.read_bytes()
    path = tmp_path / "x.litertlm"
    model = content.index(b"TFL3") - 4
    found = read_bundle(bundle).section("LlmMetadataProto")
    assert found is not None
    text = found.offset
    for data, why in (
        (b"GGUF" + content[4:], "not a .litertlm file"),
        (content[:30], "not a .litertlm file"),
        (content[:40000], "damaged: section "),
        (content[:33] + b"\xff" * 99 + content[132:], "damaged: its header cannot be parsed"),
        (content[:model] + bytes(99) + content[model + 99 :], "damaged: its TFLite model cannot"),
        (
            content[:text] + b"\xff" * 99 + content[text + 99 :],
            "damaged: its LlmMetadata cannot be",
        ),
    ):
        path.write_bytes(data)
        assert main(["inspect", str(path), *option]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {path}, {why}")
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234567, "1.2 MB"),
        (999_900_000, "999.9 MB"),
        (1_500_000_000, "1.50 GB"),
        (10**13, "10000.00 GB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
