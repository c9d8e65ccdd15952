"""What pip installs: one package of ours, which converts and chats in a fresh environment."""

from __future__ import annotations

import ast
import email
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from converter.litertlm.inspection import read_bundle
from converter.version import __version__
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
ISOLATED = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheel_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wheel_setup = load_setup()
MODULES = sorted(path for name in wheel_setup.MOVED for path in (ROOT / name).rglob("*.py"))
DATA = sorted(
    path.relative_to(ROOT).as_posix()
    for name in wheel_setup.MOVED
    for path in (ROOT / name).rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)


def run(*command: str | Path, **options: object) -> str:
    """What a command prints to stdout."""
    environment = ISOLATED | dict(options.pop("env", {}))  # type: ignore[call-overload]
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=environment,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return str(done.stdout)


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from converter.errors import X\n", "from litert_lm_cli.converter.errors import X\n"),
        ("from converter import home\n", "from litert_lm_cli.converter import home\n"),
        ("from cli import (\n    run,\n)\n", "from litert_lm_cli.cli import (\n    run,\n)\n"),
        ("import runner.engine as e", "import litert_lm_cli.runner.engine as e"),
        ("import os, cli.run as r", "import os, litert_lm_cli.cli.run as r"),
        ("def f():\n    from cli import run", "def f():\n    from litert_lm_cli.cli import run"),
        ("'é'; from cli import run", "'é'; from litert_lm_cli.cli import run"),
        ("run([p, '-m', 'cli', x])", "run([p, '-m', 'litert_lm_cli.cli', x])"),
        ('import_module("cli.run")', 'import_module("litert_lm_cli.cli.run")'),
        ("importlib.util.find_spec('cli')", "importlib.util.find_spec('litert_lm_cli.cli')"),
    ],
)
def test_imports_are_renamed(source: str, expected: str) -> None:
    assert wheel_setup.renamed(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from .converter import x",
        "from clients import x",
        "import converters as c",
        "from my.converter import x",
        '"""from converter.errors import X"""  # see cli.main\ncli = converter = "runner"\n',
        "run([p, '-m', 'pip'])",
        "text = 'a\x0cb'  # a form feed ends no line of Python's\n",
    ],
)
def test_everything_else_stays(source: str) -> None:
    assert wheel_setup.renamed(source) == source


@pytest.mark.parametrize("source", ["import converter.errors", "import_module(f'cli.{name}')"])
def test_what_cannot_be_renamed_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        wheel_setup.renamed(source)


def test_no_module_needs_what_a_wheel_lacks() -> None:
    stay = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"litert_lm_cli"}
    left = []
    for path in [*MODULES, *(ROOT / "litert_lm_cli").glob("*.py")]:
        for node in ast.walk(ast.parse(wheel_setup.renamed(path.read_text("utf-8")))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            left += [(path, name) for name in names if name.partition(".")[0] in stay]
    assert not left


# Wheels -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built: a build leaves folders beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("litert_lm_cli", *wheel_setup.MOVED):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Made of a source distribution, as `python -m build` does."""
    dist = source / "dist"
    run(sys.executable, "-m", "build", "--outdir", dist, source)
    assert [path.name for path in dist.glob("*.tar.gz")] == [f"litert_lm_cli-{__version__}.tar.gz"]
    [wheel] = dist.glob("*.whl")
    return wheel


def test_a_wheel_holds_one_package_with_all_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"litert_lm_cli", f"litert_lm_cli-{__version__}.dist-info"}
    modules = [path.relative_to(ROOT).as_posix() for path in MODULES]
    assert [name for name in [*modules, *DATA] if f"litert_lm_cli/{name}" not in names] == []


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        about = email.message_from_bytes(
            archive.read(f"litert_lm_cli-{__version__}.dist-info/METADATA")
        )
    wanted = re.findall(r"^([\w-]+==\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert about.get_all("Requires-Dist") == wanted
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"


def test_without_a_compiler_it_is_for_every_platform(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("dist"))
    dist = tmp_path / "dist"
    run(
        sys.executable, "-m", "build", "--wheel", "--outdir", dist, tmp_path / "source",
        env={"CC": "no-such-compiler"},
    )  # fmt: skip
    assert [path.name for path in dist.iterdir()] == [
        f"litert_lm_cli-{__version__}-py3-none-any.whl"
    ]


def test_with_a_compiler_it_is_for_this_platform(wheel: Path) -> None:
    assert re.fullmatch(rf"litert_lm_cli-{__version__}-py3-none-(?!any)\w+", wheel.stem)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment in which pip installed the wheel."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    run(home / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    return home / "bin"


def test_it_converts_and_chats(installed: Path, tmp_path: Path) -> None:
    program, work = installed / "litert-lm-cli", tmp_path / "work"
    make_checkpoint("llama", work / "tiny")
    # The user's own folders, and names of ours that must not be taken for ours.
    there = {"cwd": work, "env": {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}}
    for name in ("cli", "converter", "runner"):
        (work / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    for command in ([program], [installed / "python", "-m", "litert_lm_cli"]):
        assert run(*command, "--version", **there) == f"litert-lm-cli {__version__}\n"
    plan = json.loads(run(program, "convert", "tiny", "--json", "--dry-run", **there))
    models = tmp_path / "data/litert-lm-cli/models"
    assert plan["output"] == str(models / "local/tiny/tiny.litertlm")

    path = Path(run(program, "convert", "tiny", **there).strip())
    assert str(path) == plan["output"]
    assert path.stat().st_size == plan["output_bytes"]
    assert read_bundle(path).system["producer"].startswith(f"litert-lm-cli {__version__}")
    assert run(program, "verify", path, **there) == "MATCH\n"
    said = run(program, "run", "tiny", "--prompt", "a b", "--max-tokens", "4", **there)

    code = f"""
from litert_lm_cli import chat, convert, plan
from litert_lm_cli.converter import kernels
assert kernels._compiled() is not None
assert convert("tiny") == __import__("pathlib").Path({str(path)!r})
with chat("tiny", max_tokens=4) as model:
    print(model.ask("a b"))
"""
    assert run(installed / "python", "-c", code, **there) == said


def test_google_s_client_is_no_hindrance(installed: Path) -> None:
    """It keeps its modules in a folder `litert_lm_cli`, too."""
    requirements = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    [official] = re.findall(r"^litert-lm==\S+", requirements, re.MULTILINE)
    run(installed / "python", "-m", "pip", "install", "--quiet", official)
    assert run(installed / "litert-lm", "--version").startswith("litert-lm, version")
    assert run(installed / "litert-lm-cli", "--version") == f"litert-lm-cli {__version__}\n"
    run(installed / "python", "-c", "from litert_lm_cli import chat, convert, plan")


def test_what_needs_a_checkout_says_so(installed: Path, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "tiny")
    done = subprocess.run(
        [installed / "litert-lm-cli", "convert", tmp_path / "tiny", "--engine", "torch"],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=ISOLATED | {"LITERT_LM_MODELS": str(tmp_path / "models")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --engine torch, PyTorch and litert-torch are not installed, "
        "get the source of litert-lm-cli and run ./setup --reference there\n"
    )


def test_an_editable_installation_is_the_checkout(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("dist"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    install = ("install", "--quiet", "--no-deps", "--editable", tmp_path / "source")
    run(python, "-m", "pip", *install)
    (tmp_path / "source/converter/version.py").write_text('__version__ = "9.9"\n')
    said = run(tmp_path / "venv/bin/litert-lm-cli", "--version", cwd=tmp_path)
    assert said == "litert-lm-cli 9.9\n"
