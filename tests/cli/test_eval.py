"""`eval` and `convert --check` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from runner.evaluation import TEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:900], encoding="utf-8")
    return path


def test_json(smollm2_bundle: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(smollm2_bundle), "--text", str(text), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert 2 < found["perplexity"] < 200
    assert found["tokens"] > 100
    assert "kl_mean" not in found
    assert printed.err == ""


def test_against_the_source(
    smollm2_bundle: Path, smollm2_gguf: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--text", str(text), "--against", str(smollm2_gguf)]
    assert main(["eval", str(smollm2_bundle), *options, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["kl_mean"] < 0.2
    assert found["kl_mean"] < found["kl_max"]
    assert 0.7 < found["top1_agreement"] <= 1


def test_for_people(smollm2_bundle: Path, text: Path) -> None:
    options = ["--text", str(text), "--against", str(smollm2_bundle)]
    done = subprocess.run(  # as native code says some things once in a process
        [sys.executable, "-m", "cli", "eval", str(smollm2_bundle), *options],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout
    assert printed.startswith("perplexity  ")
    assert "KL divergence  0.0000 mean, 0.000 largest" in printed
    assert "same likeliest token  100.0%" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.litertlm"], "error: no.litertlm, there is no such file, convert a model first\n"),
        (["{bundle}", "--text", "no.txt"], "error: --text no.txt, No such file or directory, "),
        (["{bundle}", "--text", "{bundle}"], "is not UTF-8, give a text file in UTF-8\n"),
        (["{bundle}", "--against", "no.gguf"], "error: no.gguf, no such file or folder, "),
    ],
)
def test_bad_input_is_one_line(
    smollm2_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["eval", *(a.format(bundle=smollm2_bundle) for a in arguments)]) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_convert_check(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(smollm2_gguf), "--output-dir", str(tmp_path), "--check"]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.strip()).is_file()
    assert "of 8 easy questions answered rightly" in printed.err


def test_a_failed_check_keeps_the_file_and_says_so(
    qwen3_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qwen3_bundle.with_suffix("")  # random weights
    arguments = ["convert", str(folder), "--output-dir", str(tmp_path), "--check", "--quiet"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the check failed: it answers 0 of 8 easy questions rightly, the file is kept" in (
        printed.err
    )
    assert len(list(tmp_path.glob("*.litertlm"))) == 1
