"""`convert --target coreml --dry-run` and `check --target coreml`: figures of what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from tests.hub_server import HubServer
from tests.tiny_models import make_checkpoint

SMALL = ("--target", "coreml", "--context", "64", "--batch", "16")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml") / "llama"
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def nbytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "options",
    [(), ("--lut1", "8,4", "--lut2", "none", "--chunk", "auto"), ("--monolithic", "--argmax")],
    ids=["default", "others", "monolithic"],
)
def test_a_dry_run_tells_what_comes_out(
    options: tuple[str, ...], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["convert", llama, *SMALL, *options, "--output-dir", out]
    plan = said(capsys, *command, "--dry-run")
    assert not out.exists()
    assert main(["--debug", *map(str, command)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert plan["output"] == str(out)
    assert plan["output_exists"] is False
    assert plan["output_bytes"] == nbytes_of(out) - (out / "receipt.json").stat().st_size
    packages = {path.stem: nbytes_of(path) for path in out.glob("*.mlpackage")}
    assert {package["name"]: package["bytes"] for package in plan["packages"]} == packages
    assert said(capsys, *command, "--dry-run") == plan | {
        "output_exists": True,
        "disk_free_bytes": pytest.approx(plan["disk_free_bytes"], rel=0.5),
    }


def test_the_calculator_is_part_of_it(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", llama, *SMALL, "--dry-run"]
    plan = said(capsys, *command)
    [figure] = plan["chunk_figures"]  # one chunk is within the limit
    assert (figure["count"], figure["layers"]) == (1, 2)
    assert main([str(part) for part in command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Chunks of at most 950 MiB, as ANEMLL estimates them" in lines
    assert "  1 chunk: 2 layers, about 0 MiB" in lines
    assert "  layers: tables of 4 bits for 8 rows" in lines
    assert any(line.startswith("  model_model_kv_cache_0  [4, ") for line in lines)


def test_a_scale_that_is_measured_is_not_known_before(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", llama, *SMALL, "--dry-run", "--fp16-scale"]
    assert said(capsys, *command, "auto")["fp16_scale"] is None
    assert said(capsys, *command, "0.5")["fp16_scale"] == 0.5


def test_where_norms_stand_after_blocks_it_is_measured_unless_somebody_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint("gemma3_text", tmp_path / "m")
    sizes = ("--context", "32", "--batch", "16")  # no longer than its window
    command = ["convert", tmp_path / "m", "--target", "coreml", *sizes, "--dry-run"]
    assert said(capsys, *command)["fp16_scale"] is None
    for chosen, scale in (("none", 1), ("0.25", 0.25)):
        assert said(capsys, *command, "--fp16-scale", chosen)["fp16_scale"] == scale


def test_a_context_below_the_usual_batch(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = said(capsys, "convert", llama, "--target", "coreml", "--context", "32", "--dry-run")
    assert (plan["context"], plan["batch"]) == (32, 32)


def test_no_tables_at_all(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = said(capsys, "convert", llama, *SMALL, "--no-lut", "--dry-run")
    assert set(plan["lut"].values()) == {None}


def test_check_tells_the_size_of_palettes(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "check", llama, *SMALL)
    assert found["supported"] is True
    assert found["text_proved"] is True
    assert [size["lut"] for size in found["sizes"]] == [None, [8, 8], [6, 8], [4, 8]]
    nbytes = [size["bytes"] for size in found["sizes"]]
    assert nbytes[1] > nbytes[2] > nbytes[3]
    default = said(capsys, "convert", llama, *SMALL, "--dry-run")
    assert found["bytes"] == sum(package["bytes"] for package in default["packages"])
    plan = said(
        capsys, "convert", llama, *SMALL, "--dry-run", "--chunk", "auto",
        *("--lut1", "none", "--lut2", "none", "--lut3", "none"),
    )  # fmt: skip
    assert nbytes[0] == sum(package["bytes"] for package in plan["packages"])
    assert found["states_bytes"] == sum(state["bytes"] for state in plan["states"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        yield server


def test_check_of_a_model_on_the_hub_fetches_headers_alone(
    hub: HubServer, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint("qwen3", hub.root / "org" / "m")
    found = said(capsys, "check", "org/m", *SMALL)
    assert found["text_proved"] is False
    assert found["family"] == "qwen3"
    assert not models.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--quantize", "int8"), "--quantize, is not about --target coreml, choose tables with "),
        (("--kv-cache-max-len", "64"), "--kv-cache-max-len, is not about --target coreml, say "),
        (("--kv-cache", "int8"), "--kv-cache, is not about --target coreml, leave it out: it is "),
        (("--context", "65"), "--context 65, the Neural Engine takes caches in steps of 32"),
        (("--batch", "15"), "--batch 15, it is not 16, 32, 64, ..,"),
        (("--lut2", "5"), "--lut2 5, a palette of 5 bits is none that Core ML has, choose one of"),
        (("--lut2", "4,7"), "--lut2 4,7, groups of 7 do not divide the "),
        (("--chunk", "9"), "--chunk 9, the network has 2 layers, choose 2 or fewer"),
        (("--prefix", "x_chunk_"), "--prefix x_chunk_, runtimes look for chunk_ in names"),
        (("--prefix", ""), "--prefix '', it is no plain word, choose one of letters"),
        (("--no-lut", "--lut2", "4,8"), "--lut2, has no effect with --no-lut, leave one of them"),
        (("--restart", "x"), "{command}, argument --restart: 'x' is not a whole number from"),
        (("--only", "9"), "{command}, argument --only: '9' is not a whole number from 1 to 8, see"),
        (("--revision", "main"), "--revision main, {llama} is not on the hub, and has one version"),
        (("--monolithic", "--chunk", "2"), "--chunk, has no effect with --monolithic, leave one"),
        (("--fp16-scale", "1e9"), "--fp16-scale 1e9, it is not a number from 0.000976562 to 1: "),
        (("--fp16-scale", "1e-5"), "--fp16-scale 1e-5, it is not a number from 0.000976562 to 1"),
    ],
)  # fmt: skip
def test_refusals(
    options: tuple[str, ...], line: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["convert", "--dry-run"], ["check"]):
        assert main([*command, str(llama), *SMALL, *options]) == EXIT_USAGE
        line_here = line.format(command=f"litert-lm-cli {command[0]}", llama=llama)
        assert capsys.readouterr().err.startswith(f"error: {line_here}")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (("--prefix", "a.b"), "--prefix a.b, it is no plain word"),
        (("--context", "100"), "--context 100, the Neural Engine takes caches in steps of 32"),
        (
            ("--context", "65536"),
            "--context 65536, the Neural Engine takes tables of",
        ),
        (("--batch", "128"), "--batch 128, it is more than --context 64, choose 64"),
    ],
)
def test_what_no_model_could_have_is_refused_before_packages_are_kept(
    option: tuple[str, str],
    line: str,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "meta.yaml").write_bytes(b"")
    command = ["convert", str(llama), *SMALL, "--output-dir", str(tmp_path)]
    assert main(command) == 0
    assert "keeping" in capsys.readouterr().err
    assert main([*command, *option]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_what_runs_models_makes_no_packages(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "serve", "push"):
        assert main([command, "org/name", "--target", "coreml"]) == EXIT_USAGE
        assert capsys.readouterr().err == (
            f"error: litert-lm-cli {command}, argument --target: Core ML packages run on Apple's "
            "systems alone: convert MODEL --target coreml makes them (docs/coreml.md), see "
            f"litert-lm-cli {command} --help\n"
        )


def test_options_of_the_other_target(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["convert", "--dry-run"], ["check"]):
        assert main([*command, str(llama), "--context", "64"]) == EXIT_USAGE
        line = "error: --context, is about --target coreml, add that, or leave it out\n"
        assert capsys.readouterr().err == line


def test_what_cannot_be_packages_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint("lfm2", tmp_path / "m")
    for command in (["convert", "--dry-run"], ["check"]):
        assert main([*command, str(tmp_path / "m"), *SMALL]) == EXIT_FAILURE
        assert "short convolutions, is not written as a Core ML" in capsys.readouterr().err


def test_steps_that_there_are_not(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--restart", "3", "--only", "2", "--skip-check", "--skip-anemll-dedup"]
    assert main(["convert", "--dry-run", str(llama), *SMALL, *steps]) == 0
    err = capsys.readouterr().err
    for step in ("--restart", "--only", "--skip-check", "--skip-anemll-dedup"):
        assert f"litert-lm-cli: {step}: " in err
