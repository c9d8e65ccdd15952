"""`litert-lm-cli rm`: what it asks, what it frees, what it leaves alone."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("LITERT_LM_MODELS", str(folder))
    for name, nbytes in {
        "org/a/a.litertlm": 3000,
        "org/a/checkpoint/model.safetensors": 5000,
        "org/a/checkpoint/.download/lock": 0,
        "org/a/.a.litertlm.packed-0123/a.litertlm.xnnpack_cache": 2900,
        "org/b/b.litertlm": 100,
        "local/a/a.litertlm": 70,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(nbytes))
    return folder


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_goes_with_its_checkpoint(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "org/a", "--yes"]) == 0
    assert capsys.readouterr() == ("", "removed org/a: 10.9 kB are free again\n")
    assert tree(models) == {"org/b/b.litertlm", "local/a/a.litertlm"}
    assert not (models / "org" / "a").exists()
    assert main(["rm", "b", "--yes"]) == 0
    assert not (models / "org").exists()


def test_the_checkpoint_can_stay(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "org/a", "--yes", "--keep-checkpoint"]) == 0
    assert "removed org/a: 5.9 kB" in capsys.readouterr().err
    assert (models / "org/a/checkpoint/model.safetensors").is_file()
    assert not (models / "org/a/a.litertlm").exists()
    assert main(["rm", "org/a", "--yes", "--keep-checkpoint"]) == 0
    assert "nothing to remove" in capsys.readouterr().err
    assert main(["rm", "org/a", "--yes"]) == 0
    assert not (models / "org" / "a").exists()


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("", False)])
def test_it_asks_and_says_what_it_frees(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    gone: bool,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["rm", "org/a"]) == 0
    said = capsys.readouterr().err
    assert "org/a: this frees 10.9 kB\n" in said
    assert str(models / "org/a/checkpoint") in said
    assert "Remove it? [y/N]" in said
    assert (models / "org/a").exists() != gone


def test_without_anybody_to_ask_it_wants_yes(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["rm", "org/a"]) == EXIT_USAGE
    assert capsys.readouterr().err.endswith("nobody is there to be asked, add --yes\n")
    assert (models / "org/a/a.litertlm").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a", "it may be one of local/a, org/a, give the whole name"),
        ("org/aa", "there is no such model in {}, did you mean org/a"),
        ("../models", "there is no such model"),
        ("org", "there is no such model"),
        ("org/a/checkpoint", "there is no such model"),
        ("/", "there is no such model"),
        ("", "there is no such model"),
        ("demo", "there is no such model"),
    ],
)
def test_what_is_no_model_is_refused(
    models: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    before = tree(models)
    assert main(["rm", name, "--yes"]) == EXIT_FAILURE
    assert said.format(models) in capsys.readouterr().err
    assert tree(models) == before


def test_links_are_not_followed(models: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "weights").write_bytes(bytes(10))
    (models / "org/a/checkpoint/link").symlink_to(mine)
    (models / "org/a/other").symlink_to(mine)
    (models / "org/c").symlink_to(mine)
    assert main(["rm", "org/a", "--yes"]) == 0
    assert main(["rm", "org/c", "--yes"]) == EXIT_FAILURE
    assert (mine / "weights").is_file()


def test_a_second_name_frees_nothing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A downloaded .litertlm is linked to its place, not copied."""
    os.link(models / "org/a/a.litertlm", models / "org/a/checkpoint/a_q8.litertlm")
    assert main(["rm", "org/a", "--yes", "--keep-checkpoint"]) == 0
    assert "2.9 kB are free again" in capsys.readouterr().err
    os.link(models / "org/a/checkpoint/a_q8.litertlm", models / "org/a/a.litertlm")
    assert main(["rm", "org/a", "--yes"]) == 0
    assert "8.0 kB are free again" in capsys.readouterr().err
