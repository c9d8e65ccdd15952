"""Outputs that exist already: what `convert` says of them where something else is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.main import main
from converter.receipt import read_receipt
from converter.weights.quantization import SCHEMES
from tests.tiny_models import make_adapter, make_checkpoint

TEXT = Path(__file__).parents[2] / "README_MODELS.md"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a chat template and an adapter in one folder."""
    folder = tmp_path_factory.mktemp("kept")
    model = make_checkpoint("qwen3", folder / "tiny")
    make_adapter(model, folder / "adapter", target_modules=["q_proj"])
    (folder / "t.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    (folder / "u.jinja").write_text("-{{ messages[0].content }}", encoding="utf-8")
    return folder


def said_of_kept(
    source: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    """The part of the line that says that an output is kept which is about how it was made."""
    command = ["convert", str(source / "tiny"), "--output-dir", str(folder), *options]
    assert main(command) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "keeping" in line]
    return line.partition("which exists")[2].removesuffix(" (convert --force replaces it)")


# Options that a file is made with, others that it is then asked for with, and which of them are not
# what it was made with.
ASKED = [
    ([], ["--calibrate", "self"], "--calibrate self"),
    (["--calibrate", "self"], ["--calibrate", "self"], ""),
    (["--calibrate", "self"], ["--calibrate", str(TEXT)], f"--calibrate {TEXT}"),
    (["--calibrate", str(TEXT)], ["--calibrate", "none"], "--calibrate none"),
    (["--calibrate", "self"], [], ""),  # nobody says that there should be none
    (["--calibrate", "self"], ["--quantize", "dynamic_int4", "--calibrate", "self", "--bits", "6"],
     "--bits 6.0"),
    (["--calibrate", "self", "--bits", "6"], ["--bits", "6", "--calibrate", "self"], ""),
    ([], ["--quantize", "dynamic_int8", "--clip", "max"],
     "--quantize dynamic_int8 --clip max"),
    (["--kv-cache-max-len", "64"], ["--kv-cache-max-len", "64"], ""),
    ([], ["--kv-cache-max-len", "64", "--prefill-seq-len", "8,16"],
     "--prefill-seq-len 8,16 --kv-cache-max-len 64"),
    (["--prefill-seq-len", "16"], ["--prefill-seq-len", "8,16"], ""),
    ([], ["--kv-cache", "fp32", "--target", "cpu"], ""),
    (["--kv-cache", "int8"], ["--kv-cache", "fp16"], "--kv-cache fp16"),
    (["--draft", "lookup"], ["--draft", "lookup:3"], ""),
    ([], ["--draft", "none"], ""),
    ([], ["--draft", "lookup:2"], "--draft lookup:2"),
    (["--chat-template", "{}/t.jinja"], ["--chat-template", "{}/t.jinja"], ""),
    (["--chat-template", "{}/t.jinja"], ["--chat-template", "{}/u.jinja"],
     "--chat-template {}/u.jinja"),
    ([], ["--chat-template", "none"], "--chat-template none"),
    ([], ["--memory", "3GB"], ""),  # a receipt has what came of it
]  # fmt: skip


@pytest.mark.parametrize(("made", "asked", "otherwise"), ASKED)
def test_what_is_not_as_asked(
    made: list[str],
    asked: list[str],
    otherwise: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = [*(["--quantize", "dynamic_int4"] if "--quantize" not in made else []), *made]
    assert main(["convert", str(source / "tiny"), "--output-dir", str(tmp_path),
                 *(option.format(source) for option in here)]) == 0  # fmt: skip
    capsys.readouterr()
    said = said_of_kept(source, tmp_path, capsys, *(option.format(source) for option in asked))
    _, not_as_asked, options = said.partition(", and not as asked, with ")
    assert options == otherwise.format(source)
    assert bool(not_as_asked) is bool(otherwise)
    # A gate lets through what was made as asked alone.
    gate = ["--accept", "kl<=100", *(option.format(source) for option in asked)]
    command = ["convert", str(source / "tiny"), "--output-dir", str(tmp_path), *gate]
    assert main(command) == (1 if otherwise else 0)
    printed = capsys.readouterr()
    *_, last = printed.err.splitlines()
    if otherwise:
        assert printed.out == ""
        assert last.endswith(
            f", and not as asked, with {options}, add --force to convert anew, or --output-dir to "
            "keep it"
        )
        assert main([*command, "--force"]) == 0
        assert main(command) == 0


# No row of the small model has 128 columns.
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "dynamic_int4_block128"])
def test_a_scheme_is_its_own(
    scheme: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spelled = f"{scheme},embedding=int8"
    options = ["--quantize", spelled]
    assert main(["convert", str(source / "tiny"), "--output-dir", str(tmp_path), *options]) == 0
    capsys.readouterr()
    assert "not as asked" not in said_of_kept(source, tmp_path, capsys, *options)
    other = said_of_kept(source, tmp_path, capsys, "--quantize", f"{scheme},embedding=fp16")
    assert other.endswith(f", and not as asked, with --quantize {scheme},embedding=fp16")


def test_the_text_of_this_program_has_its_name_in_the_receipt(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Receipts from before that have no name for it."""
    options = ["--quantize", "dynamic_int4", "--calibrate", "self"]
    assert main(["convert", str(source / "tiny"), "--output-dir", str(tmp_path), *options]) == 0
    output, paper = tmp_path / "tiny.litertlm", tmp_path / "tiny.json"
    receipt = read_receipt(paper)
    assert receipt["options"]["calibrate"]["file"] == "self"
    receipt["options"]["calibrate"]["file"] = None
    older = tmp_path / "older.json"
    older.write_text(json.dumps(receipt), encoding="utf-8")
    for i, one in enumerate((paper, older)):
        again = tmp_path / str(i)
        command = ["convert", "--from-receipt", str(one), "--output-dir", str(again)]
        assert main(command) == 0
        assert (again / output.name).read_bytes() == output.read_bytes()


def test_an_older_receipt_says_nothing_of_the_cache(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was float32 before there was a choice."""
    assert main(["convert", str(source / "tiny"), "--output-dir", str(tmp_path)]) == 0
    paper = tmp_path / "tiny.json"
    receipt = read_receipt(paper)
    del receipt["options"]["kv_cache"]
    paper.write_text(json.dumps(receipt), encoding="utf-8")
    for cache, is_other in (("fp32", False), ("int8", True)):
        capsys.readouterr()
        said = said_of_kept(source, tmp_path, capsys, "--kv-cache", cache)
        assert (", and not as asked, with --kv-cache int8" in said) is is_other


def test_adapters(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = str(source / "adapter")
    command = ["convert", str(source / "tiny"), "--output-dir", str(tmp_path), "--lora", adapter]
    assert main(command) == 0
    capsys.readouterr()
    assert "not as asked" not in said_of_kept(source, tmp_path, capsys, "--lora", adapter)
    other = str(shutil.copytree(adapter, tmp_path / "other" / "adapter"))  # of the same name
    said = said_of_kept(source, tmp_path, capsys, "--lora", other)
    assert said.endswith(f", and not as asked, with --lora {other}")


def test_without_its_receipt_nothing_says(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gone, or that of another file."""
    command = ["convert", str(source / "tiny"), "--output-dir", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "tiny.json"
    other = path.read_text(encoding="utf-8").replace('"size": ', '"size": 1')
    for remove in (lambda: path.write_text(other, encoding="utf-8"), path.unlink):
        remove()
        capsys.readouterr()
        assert "made with" not in said_of_kept(source, tmp_path, capsys)
        said = said_of_kept(source, tmp_path, capsys, "--clip", "mse")
        assert ", and nothing says that it was made with --clip mse" in said
        assert main([*command, "--clip", "mse", "--accept", "kl<=100"]) == 1
        assert main([*command, "--accept", "kl<=100"]) == 0


@pytest.mark.parametrize(
    ("asked", "otherwise"),
    [
        (["--lut3", "none"], "--lut3 none"),
        (["--no-lut"], "--no-lut"),
        (["--lut2", "4,8", "--lut3", "6,8", "--chunk", "2", "--context", "64"], ""),
        (["--context", "32", "--argmax"], "--context 32 --argmax"),
        (["--chunk", "1", "--fp16-scale", "0.5"], "--chunk 1 --fp16-scale 0.5"),
        (["--fp16-scale", "none", "--prefix", "own"], "--prefix own"),
    ],
)
def test_packages(
    asked: list[str],
    otherwise: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = ["--target", "coreml", "--context", "64"]
    command = ["convert", str(source / "tiny"), "--output-dir", str(tmp_path / "out")]
    assert main([*command, *made]) == 0
    capsys.readouterr()
    said = said_of_kept(source, tmp_path / "out", capsys, "--target", "coreml", *asked)
    assert said.partition(", and not as asked, with ")[2] == otherwise
