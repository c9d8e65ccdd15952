"""`eval` and `convert --check` as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from runner.evaluation import TEXT
from runner.questions import read_questions
from tests.tiny_models import make_checkpoint

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
    assert 0 < found["kl_median"] < found["kl_mean"] < 0.2
    assert found["kl_mean"] < found["kl_99"] <= found["kl_max"]
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
    assert done.returncode == 0
    progress = re.compile(r"litert-lm-cli: (scoring|comparing): \d+ of \d+, \d+ s left")
    assert all(map(progress.fullmatch, done.stderr.splitlines())), done.stderr
    printed = done.stdout
    assert printed.startswith("perplexity  ")
    assert "KL divergence  0.0000 mean, 0.0000 median, 0.000 at 99 %, 0.000 largest" in printed
    assert "same likeliest token  100.0%" in printed


def test_two_bundles(
    qwen3_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """float is nearer to itself than int8 is, whichever is named first."""
    source = str(qwen3_bundle.with_suffix(""))
    command = ["convert", source, "--quantize", "fp32", "--output-dir", str(tmp_path), "--quiet"]
    assert main(command) == 0
    files = [str(qwen3_bundle), capsys.readouterr().out.strip()]
    asked = read_questions()[:2]
    monkeypatch.setattr("runner.questions.read_questions", lambda: asked)
    options = ["--questions", "--tokens", "64", "--against", files[1], "--quiet"]
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text(encoding="utf-8")[:400], encoding="utf-8")
    options += ["--text", str(text)]
    assert main(["eval", files[0], "--versus", files[1], *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    other = found["versus"]
    assert (found["positions"], other["kl_mean"], other["better"]) == (64, 0, "second")
    difference = other["kl_difference"]
    assert difference["low"] < difference["mean"] < difference["high"] < 0
    assert difference["mean"] == pytest.approx(-found["kl_mean"])
    likelihood = other["likelihood_difference"]
    assert likelihood["low"] < likelihood["mean"] < likelihood["high"]
    # Random weights know nothing.
    assert (found["asked"], found["right"], other["right"], other["p"]) == (2, 0, 0, 1)
    assert (found["right_by_kind"], other["right_alone"]) == ({"facts": 0}, [0, 0])

    assert main(["eval", files[1], "--versus", files[0], *options]) == 0
    printed = capsys.readouterr().out
    assert "questions   0 of 2 right: facts 0\n" in printed
    assert "  questions  0 right; 0 by FILE alone, 0 by this one alone (p = 1.00)\n" in printed
    assert printed.endswith(f"\nverdict     {files[1]} is better\n")

    assert main(["eval", files[0], "--versus", files[0], "--text", str(text)]) == 0
    printed = capsys.readouterr().out
    assert "KL divergence" not in printed
    assert "  log likelihood, its less FILE's at the same positions: +0.0000 " in printed
    assert printed.endswith("verdict     no difference that this text shows\n")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "qwen3"
    make_checkpoint("qwen3", folder)
    return folder


@pytest.fixture(scope="module")
def packages(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "coreml"
    options = ["--target", "coreml", "--context", "64", "--batch", "16", "--lut2", "8,4"]
    command = ["convert", str(checkpoint), *options, "--output-dir", str(folder), "--quiet"]
    assert main(command) == 0
    return folder


def test_packages(
    packages: Path, checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text.write_text(text.read_text(encoding="utf-8")[:120], encoding="utf-8")
    options = ["--text", str(text), "--against", str(checkpoint), "--quiet"]
    assert main(["eval", str(packages / "qwen_embeddings.mlpackage"), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 50 < found["perplexity"] < 1000  # random weights
    assert 100 < found["tokens"] < 120
    assert found["prefill_tokens_per_second"] is found["decode_tokens_per_second"] is None
    assert 0 < found["kl_mean"] < found["kl_max"] < 1e-3
    assert found["top1_agreement"] > 0.9
    assert 100 < found["positions"] <= 120  # in two passages, as the context holds 64

    assert main(["eval", str(packages), *options]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("perplexity  ")
    assert "speed       not measured: numpy ran it, each result rounded to float16" in printed.out
    assert (
        f"in float, {found['positions']} positions\n  KL divergence  0.0000 mean, " in printed.out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{packages}", "--threads", "1"], "error: --threads, is for the engine, which runs no "),
        (["{packages}", "--questions"], "error: --questions, is for the engine, which runs no p"),
        (["{packages}/no.mlpackage"], "no.mlpackage, there is no such file, pass a .litertlm"),
        (["{checkpoint}"], "meta.yaml, it is missing, pass a .mlpackage or a folder of them"),
    ],
)
def test_packages_that_cannot_be_measured(
    packages: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"packages": packages, "checkpoint": checkpoint}
    assert main(["eval", *(a.format(**places) for a in arguments)]) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.litertlm"], "error: no.litertlm, there is no such file, pass a .litertlm"),
        (["{bundle}", "--text", "no.txt"], "error: --text no.txt, No such file or directory, "),
        (["{bundle}", "--text", "{bundle}"], "is not UTF-8, give a text file in UTF-8\n"),
        (["{bundle}", "--tokens", "64"], "error: --tokens, has no effect, add --against or --ver"),
        (["{bundle}", "--versus", "no.litertlm"], "error: no.litertlm, there is no such file, "),
        (["{bundle}", "--versus", "{other}"], "its tokens of the text are others, compare models"),
        (["{bundle}", "--against", "no.gguf"], "error: no.gguf, no such file or folder, "),
    ],
)
def test_bad_input_is_one_line(
    smollm2_bundle: Path,
    qwen3_bundle: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    if "--text" not in arguments:
        arguments = [*arguments, "--text", str(text)]
    places = {"bundle": smollm2_bundle, "other": qwen3_bundle}
    assert main(["eval", *(a.format(**places) for a in arguments)]) != 0
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
