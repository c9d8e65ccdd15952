"""What `--calibrate` takes for a text, and the passages that are made of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from cli.obtain import open_checkpoint
from converter.errors import OptionError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.network import read_network
from converter.receipt import read_receipt
from converter.text.tokenizer import load_tokenizer
from converter.weights.passages import (
    LENGTH,
    MOST,
    CalibrationText,
    check_calibration,
    read_calibration,
    read_passages,
)
from tests.tiny_models import make_checkpoint

SHORT = ("--kv-cache-max-len", "32", "--prefill-seq-len", "8,16")
TEXT = "A text of some pages, in which a line is like the others; this is number {}.\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "tiny"
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Of 200 lines, behind the mark that Windows writes."""
    file = tmp_path / "text.txt"
    content = "".join(TEXT.format(i) for i in range(200))
    file.write_text(content, encoding="utf-8-sig")
    return file


def passages(model: Path, text: CalibrationText) -> np.ndarray:
    with open_checkpoint(model) as checkpoint:
        spec = read_network(checkpoint, "tiny").spec(512)
        return read_passages(checkpoint, "tiny", spec, text)


def test_passages_are_spread_over_a_text(llama: Path, text: Path) -> None:
    read = read_calibration(str(text))
    assert read is not None
    assert (read.file, read.text[:6]) == (str(text), "A text")
    found = passages(llama, read)
    assert found.shape == (MOST, LENGTH)
    with open_checkpoint(llama) as checkpoint:
        tokens = load_tokenizer(checkpoint).encode(read.text)
    assert (found[0] == tokens[:LENGTH]).all()
    assert (found[-1] == tokens[-LENGTH:]).all()
    assert len(np.unique(found, axis=0)) == MOST


def test_each_begins_as_a_text_does(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    make_checkpoint("gemma3_text", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    read = read_calibration(str(text))
    assert read is not None
    found = passages(folder, read)
    assert found.shape == (MOST, LENGTH)
    assert (found[:, 0] == 256).all()  # <s>
    assert (found[:, 1:] < 256).all()


def test_the_one_that_is_part_of_this_program(llama: Path) -> None:
    read = read_calibration("self")
    assert read is not None
    assert read.file is None
    assert passages(llama, read).shape == (MOST, LENGTH)
    assert read_calibration("none") is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"", "it is empty"),
        (b" \n\t", "it is empty"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"x" * (4 << 20) + b"y", "it is larger than 4 MiB"),
    ],
)
def test_files_that_are_no_text(content: bytes | None, why: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OptionError, match=why):
        read_calibration(str(file))


def test_a_text_that_is_too_short(llama: Path) -> None:
    with pytest.raises(OptionError, match="has 1023 tokens, and 1024 are the least"):
        passages(llama, CalibrationText("x" * 1023, "text.txt"))
    assert len(passages(llama, CalibrationText("x" * 1024))) == 4


@pytest.mark.parametrize(
    ("test_id", "why"),
    [
        ("lfm2", "short convolutions"),
        ("qwen3_moe", "mixtures of experts"),
        ("gemma3n_text", "several residual streams"),
        ("gpt_oss", "attention sinks"),
        ("falcon_h1", "two mixers in a layer"),
        ("apertus", "the activation xIELU"),
    ],
)
def test_networks_that_no_text_is_sent_through(test_id: str, why: str, tmp_path: Path) -> None:
    make_checkpoint(test_id, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        spec = read_network(checkpoint, "tiny").spec(512)
    with pytest.raises(UnsupportedError, match=why):
        check_calibration(spec, "tiny")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--quantize", "int8"), "is about int4 and rounded activations, and int8 has neither"),
        (("--quantize", "dynamic_int4", "--clip", "max"), "is the contrary of --clip max"),
        (("--target", "coreml"), "it is about int4 and rounded activations"),
    ],
)
def test_options_that_it_does_not_go_with(
    options: tuple[str, ...], why: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(llama), "--calibrate", "self", "--quiet", *options]) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert why in printed
    assert printed.count("\n") == 1


def test_the_receipt_says_by_what(
    llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["convert", str(llama), "--quantize", "dynamic_int4", *SHORT]
    command += ["--calibrate", str(text), "--output-dir", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert "  calibration: a text, 2048 tokens\n" in capsys.readouterr().out
    assert main([*command, "--quiet"]) == 0
    output = out / "tiny.litertlm"
    assert read_bundle(output).system["calibration"] == "a text, 2048 tokens"
    said = read_receipt(output.with_suffix(".json"))["options"]["calibrate"]
    assert (said["file"], said["tokens"]) == (str(text), 2048)

    paper = str(output.with_suffix(".json"))
    again = ["convert", "--from-receipt", paper, "--quiet", "--output-dir"]
    assert main([*again, str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / output.name).read_bytes() == output.read_bytes()
    text.write_text("another one" * 1000)
    capsys.readouterr()
    assert main([*again, str(tmp_path / "third")]) == EXIT_FAILURE
    assert "it is not the text that the receipt names" in capsys.readouterr().err
    assert main(["convert", "--from-receipt", paper, "--calibrate", "self"]) == EXIT_USAGE


def test_check_says_all_sizes_beside_it(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", str(llama), "--calibrate", "self", "--json", "--quantize"]
    assert main([*command, "dynamic_int4"]) == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    refused = {size["scheme"] for size in sizes if size["bytes"] is None}
    assert refused == {"dynamic_int4_block128"}  # which does not divide its rows
    assert main([*command, "fp16"]) == EXIT_USAGE
