"""`convert --target coreml`, and what the other commands make of the folder that it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from converter import report
from converter.output.atomic_folder import AtomicFolder
from tests.permissions import closed
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("--target", "coreml", "--context", "64", "--batch", "16", "--chunk", "1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml") / "llama"
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture(scope="module")
def converted(llama: Path) -> Path:
    """Its packages; not to be changed."""
    folder = llama.parent / "packages"
    assert main(["convert", str(llama), *SMALL, "--quiet", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def packages(converted: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(converted, tmp_path / "packages"))


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refusal(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = EXIT_FAILURE
) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# Receipts -----------------------------------------------------------------------------------------

WEIGHTS = "llama_lm_head_lut6.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (WEIGHTS, flip, "it holds something else than when it was written"),
        (WEIGHTS, lambda path: path.write_bytes(b"short"), "5 bytes instead of "),
        ("meta.yaml", Path.unlink, "it is missing"),
        ("compile.sh", flip, "it holds something else"),
    ],
    ids=["bytes", "size", "missing", "script"],
)
def test_what_verify_advises_makes_the_folder_again(
    name: str,
    change: Callable[[Path], Any],
    said: str,
    converted: Path,
    packages: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(packages / name)
    assert main(["verify", str(packages)]) == EXIT_FAILURE
    printed = capsys.readouterr()
    [line] = printed.out.splitlines()
    assert line.startswith(f"DIFFERS {name}: {said}")
    paper = packages / "receipt.json"
    assert printed.err.startswith(
        f"error: {packages}, it is not what {paper} says (1 of its files), make it again: "
    )
    advice = printed.err.partition("litert-lm-cli convert ")[2].split()
    assert main(["convert", *advice]) == 0
    assert content_of(packages) == content_of(converted)
    assert main(["verify", str(packages)]) == 0


def test_what_a_mac_puts_there_is_not_strange(
    packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """compile.sh makes `.mlmodelc`, and the Finder `.DS_Store`, where it was opened."""
    compiled = packages / "llama_lm_head_lut6.mlmodelc" / "weights"
    compiled.mkdir(parents=True)
    (compiled / "weight.bin").write_bytes(b"compiled")
    for folder in (packages, packages / "llama_lm_head_lut6.mlpackage"):
        (folder / ".DS_Store").write_bytes(b"icons")
    assert main(["verify", str(packages)]) == 0
    assert capsys.readouterr().out == "MATCH\n"
    assert main(["verify", str(packages / "receipt.json")]) == 0  # as its folder
    assert capsys.readouterr().out == "MATCH\n"


def test_strange_files_are_named_and_never_removed(
    llama: Path, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chunk too many leads runtimes astray; notes are somebody's."""
    stale = packages / "llama_FFN_PF_lut4_chunk_02of02.mlpackage" / "Manifest.json"
    stale.parent.mkdir()
    stale.write_bytes(b"{}")
    (packages / "notes.txt").write_bytes(b"mine")
    line = refusal(capsys, "verify", packages)
    assert line.endswith(f", move {stale.parent} and 1 more elsewhere")
    shutil.rmtree(stale.parent)
    (packages / "meta.yaml").unlink()
    line = refusal(capsys, "verify", packages)
    assert f", move {packages / 'notes.txt'} elsewhere, then make it again: litert" in line
    before = content_of(packages)
    for command in (
        ["convert", "--from-receipt", packages / "receipt.json"],
        ["convert", llama, *SMALL],
    ):
        line = refusal(capsys, *command, "--force", "--output-dir", packages)
        assert line == (
            f"{packages}, it is there, and no conversion wrote its notes.txt, "
            "choose a new or an empty folder with --output-dir"
        )
    assert content_of(packages) == before


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "there is no such file, pass a .litertlm file, a folder of Core ML packages, "
         "or a model's name in list"),
        (".", "receipt.json, no such file or directory, pass the .json beside a .litertlm file, "
              "or the receipt.json in a folder of packages"),
        ("packages/llama_lm_head_lut6.mlpackage", "it is a part of a folder that has one receipt, "
         "verify that: litert-lm-cli verify "),
        ("packages/meta.yaml", "it is a part of a folder that has one receipt, verify"),
    ],
)  # fmt: skip
def test_what_has_no_receipt_cannot_be_verified(
    path: str, said: str, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(capsys, "verify", packages.parent / path)


def test_a_receipt_elsewhere(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = (packages / "receipt.json").rename(tmp_path / "paper.json")
    assert main(["verify", str(packages), "--receipt", str(paper)]) == 0
    flip(packages / "config.json")
    assert f"convert --from-receipt {paper} --force --output-dir {packages}" in refusal(
        capsys, "verify", packages, "--receipt", paper
    )


def test_the_same_bytes_again(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again, paper = tmp_path / "again", converted / "receipt.json"
    assert main(["convert", "--from-receipt", str(paper), "--output-dir", str(again)]) == 0
    assert capsys.readouterr().out == f"{again}\n"
    assert content_of(again) == content_of(converted)
    command = ["convert", "--from-receipt", paper, "--output-dir", again]
    assert main([*map(str, command)]) == 0
    assert f"keeping {again}" in capsys.readouterr().err
    flip(again / "meta.yaml")
    assert "meta.yaml: it holds something else than when it was written" in refusal(
        capsys, *command
    )
    # A model of the same name that is another one.
    other = Path(shutil.copytree(json.loads(paper.read_text())["source"]["model"], tmp_path / "o"))
    with (other / "config.json").open("a") as file:
        file.write(" ")
    line = refusal(capsys, "convert", other, *command[1:], "--force")
    assert "config.json, it is not the file that the receipt names" in line


@pytest.mark.parametrize(
    "option",
    [["--context", "32"], ["--lut2", "none"], ["--argmax"], ["--monolithic"], ["--dry-run"],
     ["--chunk", "auto"], ["--target", "coreml"], ["--quantize", "fp16"], ["--clip", "max"],
     ["--prefill-seq-len", "8"], ["--engine", "direct"], ["--fp16-scale", "0.5"]],
    ids=lambda option: option[0],
)  # fmt: skip
def test_the_receipt_decides_alone(
    option: list[str], converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "--from-receipt", converted / "receipt.json", *option]
    line = refusal(capsys, *command, code=EXIT_USAGE)
    assert line == f"--from-receipt, the receipt decides, not {option[0]}, leave one of them out"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda options: options.pop("batch"), "its options are damaged ('batch')"),
        (lambda options: options.update(context="64"), "its options are damaged (context is '64')"),
        (lambda options: options.update(argmax=1), "its options are damaged (argmax is 1)"),
        (lambda options: options.update(lut_head=[5, 8]), "its options are damaged ("),
        (lambda options: options.update(lut_head=6), "its options are damaged ("),
        (lambda options: options.update(lut_layers=[4, "x"]), "its options are damaged ("),
        (lambda options: options.update(fp16_scale="auto"), "its options are damaged ("),
        (lambda options: options.update(context=48), "--context 48"),
        (lambda options: options.update(adapters=5), "its adapters are damaged"),
    ],
)
def test_damaged_receipts(
    change: Callable[[dict[str, Any]], Any],
    said: str,
    packages: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paper = packages / "receipt.json"
    receipt = json.loads(paper.read_text())
    change(receipt["options"])
    paper.write_text(json.dumps(receipt))
    capsys.readouterr()
    command = ["convert", "--from-receipt", paper, "--output-dir", tmp_path / "out", "--quiet"]
    assert main([*map(str, command)]) in (EXIT_FAILURE, EXIT_USAGE)
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


# What is there already ----------------------------------------------------------------------------


def test_packages_are_kept_unless_forced(
    llama: Path, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(llama, tmp_path / "llama"))
    before = content_of(packages)
    made = (packages / "compile.sh").stat().st_mtime_ns
    for path in source.iterdir():
        os.utime(path, ns=(made - 1, made - 1))
    command = ["convert", str(source), *SMALL, "--output-dir", str(packages)]
    assert main(command) == 0
    how = "in fp16/lut4/lut6 for context 64"
    kept = f"litert-lm-cli: keeping {packages}, which exists {how}"
    assert capsys.readouterr() == (f"{packages}\n", f"{kept} (convert --force replaces it)\n")
    # Older than its source, though compile.sh put something into it since.
    os.utime(source / "config.json", ns=(made + 10**9, made + 10**9))
    (packages / "x.mlmodelc").mkdir()
    os.utime(packages, ns=(made + 10**10, made + 10**10))
    assert main(command) == 0
    assert f"{kept}, older than what it was made of (conv" in capsys.readouterr().err
    assert main([*command, "--force", "--lut3", "none"]) == 0
    assert not (packages / "x.mlmodelc").exists()
    assert content_of(packages).keys() != before.keys()


def test_other_folders_are_not_taken_for_packages(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --force or without."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_bytes(b"mine")
    for force in ([], ["--force"]):
        line = refusal(capsys, "convert", llama, *SMALL, "--output-dir", out, *force)
        assert line == (
            f"{out}, it is there, and has no receipt of packages, "
            "choose a new or an empty folder with --output-dir"
        )
        line = refusal(capsys, "convert", llama, *SMALL, "--output-dir", out / "notes.txt", *force)
        assert line.startswith(f"{out / 'notes.txt'}, it is there, and is no folder, choose")
    assert content_of(tmp_path) == {"out/notes.txt": b"mine"}


# Inspect ------------------------------------------------------------------------------------------


def test_inspect_shows_a_folder(
    llama: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(converted)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{converted}  ")
    assert lines[1:4] == [
        "  name: anemll-llama-ctx64",
        f"  source: {llama}",
        "  scheme: fp16/lut4/lut6",
    ]
    assert "  context_length: 64" in lines
    assert [line.split()[0] for line in lines if ".mlpackage " in line] == [
        "llama_embeddings.mlpackage",
        "llama_FFN_PF_lut4_chunk_01of01.mlpackage",
        "llama_lm_head_lut6.mlpackage",
    ]
    for line in (
        "    in      input_ids               int32 [1, 1] or [1, 16]",
        "    out     hidden_states           float16 [1, ?, 64]",
        "    in      causal_mask             float16 [1, 1, 16, 64]",
        "    state   model_model_kv_cache_0  float16 [4, 2, 64, 16]",
    ):
        assert line in lines
    assert any(
        line.startswith("    matrices    tables of 4 bits, 8 rows each") and line.endswith("  x10")
        for line in lines
    )


def test_inspect_says_what_is_no_part_of_a_model(
    packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = packages / "llama_lm_head_lut6.mlpackage"
    shutil.copytree(head, packages / "llama_lm_head_lut4.mlpackage")
    assert main(["inspect", str(packages)]) == 0
    *before, last = capsys.readouterr().out.split("\n\n")
    assert last.startswith("llama_lm_head_lut4.mlpackage  ")
    said = "\n  no part of this model: meta.yaml does not name it\n"
    assert said in last
    assert not any(said in part for part in before)


def test_inspect_as_json(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(converted), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)
    assert folder["size"] == sum(map(len, content_of(converted).values()))
    assert folder["source"]["kind"] == "folder"
    assert folder["parameters"]["context_length"] == 64
    for package in folder["packages"]:
        path = converted / package["name"]
        assert main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"path": str(path), **package}


def test_inspect_of_what_is_damaged_or_none(
    packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packages / "receipt.json").unlink()
    assert main(["inspect", str(packages)]) == 0
    assert "  source: no receipt says it" in capsys.readouterr().out.splitlines()
    head = packages / "llama_lm_head_lut6.mlpackage"
    (head / "Manifest.json").write_bytes(b"[")
    for path in (packages, head):
        assert refusal(capsys, "inspect", path) == (
            f"{head}/Manifest.json, damaged: it names no model, convert the model again"
        )
    (packages / "meta.yaml").write_bytes(b"\xff")
    assert "meta.yaml, damaged: " in refusal(capsys, "inspect", packages, "--json")
    assert f"{packages.parent}/meta.yaml, it is missing, pass a .mlpackage or a folder" in refusal(
        capsys, "inspect", packages.parent
    )


def test_what_packages_say_cannot_drive_the_terminal(
    packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (packages / "meta.yaml").read_text().replace("anemll-llama-ctx64", '"\\e[2J\\nx"')
    (packages / "meta.yaml").write_text(text)
    for option in ([], ["--json"]):
        assert main(["inspect", str(packages), *option]) == 0
        printed = capsys.readouterr().out
        assert all(line.isprintable() for line in printed.split("\n"))
        assert "[2J" in printed


# The models folder --------------------------------------------------------------------------------


def test_a_models_own_folder_is_listed_and_removed(
    llama: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = models / "local" / "llama"
    elsewhere = tmp_path / "elsewhere"
    assert main(["convert", str(llama), *SMALL, "--output-dir", str(elsewhere)]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "no models yet" in capsys.readouterr().err
    assert main(["convert", str(llama), *SMALL, "--lut3", "none"]) == 0
    assert capsys.readouterr().out == f"{home}/coreml\n"
    nbytes = sum(map(len, content_of(home).values()))
    row = ["local/llama", f"{nbytes / 1000:.1f}", "kB", "coreml", "fp16/lut4/fp16", "64", "-"]
    assert main(["list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [row]
    # Beside a file of the same model.
    shape = ["--kv-cache-max-len", "32", "--prefill-seq-len", "8", "--quantize", "fp16"]
    assert main(["convert", str(llama), *shape]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["local/llama", *rows[0][1:3], "fp16", "32", "-"], row]
    # It asks as usual, and counts all of it.
    nbytes = sum(map(len, content_of(home).values()))
    assert main(["rm", "llama"]) == EXIT_USAGE
    asked = capsys.readouterr().err
    assert f"local/llama: this frees {nbytes / 1000:.1f} kB\n  {home}/coreml\n" in asked
    assert home.exists()
    assert main(["rm", "llama", "--yes"]) == 0
    assert f"removed local/llama: {nbytes / 1000:.1f} kB" in capsys.readouterr().err
    assert not models.exists() or not list(models.iterdir())
    assert (elsewhere / "meta.yaml").exists()


def test_a_model_that_has_packages_alone_is_removed(
    packages: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = models / "org" / "name"
    home.mkdir(parents=True)
    packages.rename(home / "coreml")
    assert main(["rm", "org/name", "--yes", "--keep-checkpoint"]) == 0
    assert not home.exists()


def test_names_of_models_that_have_packages_alone(
    llama: Path, packages: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What looks at results takes them; the others say what they are, and what to do."""
    home = models / "local" / "llama"
    home.mkdir(parents=True)
    packages = packages.rename(home / "coreml")
    assert main(["inspect", "local/llama"]) == 0
    assert capsys.readouterr().out.startswith(f"{packages}  ")
    assert main(["verify", "local/llama"]) == 0
    assert capsys.readouterr().out == "MATCH\n"
    for command in (
        ["run", "local/llama", "--prompt", "a"], ["serve", "local/llama"],
        ["check", "local/llama"], ["preflight", "local/llama"], ["convert", "local/llama"],
        ["convert", "local/llama", "--dry-run"],
        ["convert", "local/llama", "--target", "coreml", "--force"],
    ):  # fmt: skip
        assert refusal(capsys, *command) == (
            f"local/llama, it is here as Core ML packages alone ({packages}), for Apple's systems, "
            f"finish them on a Mac (docs/coreml.md), or convert {llama} without --target coreml"
        )
    assert "models/, holds no .litertlm file yet, name a model" in refusal(capsys, "serve")
    (packages / "receipt.json").unlink()
    assert "or convert what it was made of without --target coreml" in refusal(
        capsys, "run", "local/llama", "--prompt", "a"
    )
    # Of a model on the hub, another conversion is meant, where it can be had.
    home = home.rename(models / "local" / "name")
    home.parent.rename(models / "org")
    assert refusal(capsys, "run", "org/name", "--prompt", "a", "--offline").startswith(
        f"org/name, it is here as Core ML packages alone ({models}/org/name/coreml), and it is not "
        "complete on this disk, and --offline forbids to use the network, leave --offline out"
    )


def test_names_of_models_that_have_both(
    llama: Path, packages: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = models / "local" / "llama"
    home.mkdir(parents=True)
    packages.rename(home / "coreml")
    shape = ["--kv-cache-max-len", "32", "--prefill-seq-len", "8", "--quantize", "fp16"]
    assert main(["convert", str(llama), *shape, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["inspect", "llama"]) == 0
    assert capsys.readouterr().out.startswith(f"{home}/llama.litertlm  ")
    assert refusal(capsys, "check", "local/llama") == (
        f"local/llama, it is the result {home}/llama.litertlm, and this is about what that was "
        f"made of, name {llama}"
    )
    (models / "local" / "other").mkdir()
    (models / "local" / "other" / "checkpoint").mkdir()
    for name, said in (
        ("local/lama", "there is no such file, and there is no such model in "),
        ("other", "local/other, it is not converted yet, litert-lm-cli convert local/other"),
    ):
        for command in ("inspect", "verify", "eval"):
            assert said in refusal(capsys, command, name)


def test_damaged_packages_do_not_hide_other_models(
    packages: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/x", "b/y"):
        (models / name).mkdir(parents=True)
    shutil.copytree(packages, models / "b/y/coreml")
    (models / "a/x/coreml").mkdir()
    (models / "a/x/checkpoint").mkdir()
    (models / "a/x/checkpoint/config.json").write_bytes(bytes(1234))
    shutil.copytree(packages, models / "c/z/coreml")
    shutil.rmtree(models / "c/z/coreml/llama_embeddings.mlpackage")
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()[1:]]
    assert rows[0] == ["a/x", "damaged", "-", "-", "1.2", "kB"]
    assert rows[1][0] == "b/y"
    assert rows[2] == ["c/z", "damaged", "-", "-", "-"]
    assert len(rows) == 3
    assert printed.err == (
        f"litert-lm-cli: {models}/a/x/coreml/meta.yaml, it is missing, pass a .mlpackage or a "
        "folder of them, as convert --target coreml makes\n"
        f"litert-lm-cli: {models}/c/z/coreml/llama_embeddings.mlpackage, it is missing, and "
        "meta.yaml names it, convert the model again\n"
    )


# What cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["inspect", "packages"], ""),
        (["inspect", "packages"], "packages/llama_lm_head_lut6.mlpackage/Data"),
        (["inspect", "packages"], "packages/meta.yaml"),
        (["inspect", "packages/llama_lm_head_lut6.mlpackage"], f"packages/{WEIGHTS}"),
        (["verify", "packages"], ""),
        (["verify", "packages"], "packages/receipt.json"),
        (["verify", "packages"], "packages/llama_lm_head_lut6.mlpackage/Data"),
        (["eval", "packages", "--text", "odd"], "packages/meta.yaml"),
        (["eval", "packages", "--text", "odd"], f"packages/{WEIGHTS}"),
        (["run", "llama.gguf", "--prompt", "a"], ""),
        (["convert", "llama.gguf"], "llama.gguf"),
        (["convert", "odd"], "odd"),
        (["list"], "models"),
        (["list"], "models/local"),
    ],
)
def test_what_may_not_be_read_is_not_called_missing(
    command: list[str],
    what: str,
    converted: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are root's alone
        home = Path(name)
        place = home / "home"
        shutil.copytree(converted, place / "packages")
        (place / "models" / "local").mkdir(parents=True)
        for file in ("llama.gguf", "odd"):
            (place / file).write_bytes(b"GGUF")
        monkeypatch.setenv("LITERT_LM_MODELS", str(place / "models"))
        monkeypatch.chdir(place)
        words = [str(place / word) if (place / word).exists() else word for word in command]
        main(words)  # what is imported only now
        home.chmod(0o755)
        with closed(place / what):
            said = refusal(capsys, *words)
    assert said.startswith(str(place / what))
    assert ", permission denied, " in said


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "error: interrupted, at your request, run it again\n"),
        (signal.SIGTERM, 143, "error: interrupted, by SIGTERM, run it again\n"),
    ],
)
def test_an_interruption(
    smollm2_gguf: Path, tmp_path: Path, number: int, code: int, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "convert", str(smollm2_gguf), "--target", "coreml",
         "--quiet", "--output-dir", str(tmp_path / "new" / "out")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("new/.out.partial/*.mlpackage")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert (stdout, stderr) == ("", said)
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_without_room(llama: Path, packages: Path, tmp_path: Path) -> None:
    """What is there stays as it is."""
    before = content_of(tmp_path)
    for out, option in ((tmp_path / "new" / "out", "--quiet"), (packages, "--force")):
        done = subprocess.run(
            [sys.executable, "-c", _LIMITED, "convert", llama, *SMALL, "--output-dir", out,
             "--quiet", option],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"error: {out}, File too large, "
            "choose a writable folder with enough room with --output-dir\n"
        )
    assert content_of(tmp_path) == before
    assert list(tmp_path.iterdir()) == [packages]


def test_too_little_disk_is_seen_before_the_first_byte(
    llama: Path,
    converted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = sum(len(content) for name, content in content_of(converted).items() if "/" in name)
    monkeypatch.setattr(report, "disk_free", lambda _: needed - 1)
    command = ["convert", llama, *SMALL, "--output-dir", tmp_path / "out"]
    line = refusal(capsys, *command)
    assert line.startswith(f"{tmp_path / 'out'}, needs {needed / 1000:.1f} kB of disk, ")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(report, "disk_free", lambda _: needed)
    assert main([*map(str, command)]) == 0


def test_two_conversions_to_one_folder(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["convert", llama, *SMALL, "--quiet", "--output-dir", out]
    with AtomicFolder(out, lambda _: None) as other:
        other.write("meta.yaml", b"theirs")
        line = refusal(capsys, *command)
        assert line.startswith(f"{out}, another ")
        other.commit()
    assert content_of(out) == {"meta.yaml": b"theirs"}


def test_a_folder_that_cannot_be_made(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for below in ("file/below", "file/far/below"):
        line = refusal(
            capsys, "convert", llama, *SMALL, "--output-dir", tmp_path / below, "--quiet"
        )
        assert line.startswith(f"{tmp_path / below}, Not a directory, choose a writable folder")
    assert content_of(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(([command, *options], "") for command, *options in (
            ("run", "--prompt", "Hi"), ("serve",), ("package", "--to", "card"), ("convert",),
            ("convert", "--target", "coreml"), ("check",), ("preflight",))),
        (["run", "--prompt", "Hi"], "llama_lm_head_lut6.mlpackage"),
        (["convert"], "x.mlmodelc"),
    ],
    ids=lambda part: part if isinstance(part, str) else part[0],
)  # fmt: skip
def test_packages_are_no_model_to_run_or_convert(
    command: list[str],
    name: str,
    packages: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(packages.parent)
    (packages / "x.mlmodelc").mkdir()
    (packages / "x.mlmodelc" / "model.mil").write_bytes(b"")
    path = packages / name
    assert refusal(capsys, command[0], path, *command[1:]) == (
        f"{path}, it is a model as Core ML packages, for Apple's systems, which is neither run nor "
        "converted here, finish it on a Mac with the compile.sh in its folder, or name the model "
        "that it was made of"
    )
    assert not models.exists()
    assert {path.name for path in packages.parent.iterdir()} == {"packages"}
