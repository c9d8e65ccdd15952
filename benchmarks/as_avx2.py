"""A command as if the processor had AVX2 and nothing newer (no AVX-512, VNNI or AMX).

    venv/bin/python -m benchmarks.as_avx2 venv/bin/python -m benchmarks.run --only smollm2-135m

Many laptops and boards are such machines, and engines have other kernels for them. The libraries
that do the work ask the processor by its `cpuid` instruction what it has; here they are given
another answer (`as_avx2.c`), and llama.cpp is built without the rest. Clock, caches and memory are
those of the machine, so this shows how engines compare, not how fast an older processor is.

Needs Linux on x86-64, `cc` and `objdump`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import AS_AVX2

ROOT = Path(__file__).resolve().parent.parent
# Which choose kernels by the processor: the engine, ours, numpy's and the BLAS beside it.
_LIBRARIES = (
    "**/liblitert-lm.so",
    "kernels.so",
    "**/_multiarray_umath*.so",
    "**/libscipy_openblas*.so",
)
_NEAR = 1 << 15  # bytes between instructions of one module
_CPUID = re.compile(r"^\s*([0-9a-f]+):\s+cpuid", re.MULTILINE)


def main() -> None:
    """Run the command that the arguments are, and end as it does."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="litert-lm-as-avx2-") as folder:
        done = subprocess.run(
            sys.argv[1:], check=False, env={**os.environ, **environment(Path(folder))}
        )
    sys.exit(done.returncode)


def environment(folder: Path, libraries: Sequence[Path] | None = None) -> dict[str, str]:
    """Variables with which libraries (all that matter) see AVX2 alone; they need `folder`'s files.

    Raises:
        subprocess.CalledProcessError: `cc` or `objdump` fails.
    """
    audit = folder / "as_avx2.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", audit, source], check=True)
    entries = ";".join(_entry(library, audit) for library in libraries or _libraries())
    return {"LD_AUDIT": str(audit), AS_AVX2: entries}


def _libraries() -> list[Path]:
    venv = ROOT / "venv"
    return [library for pattern in _LIBRARIES for library in venv.glob(pattern)]


def _entry(library: Path, audit: Path) -> str:
    """Where a library asks the processor, as `as_avx2.c` takes it.

    BoringSSL, inside the engine, stops the process where its code is not what it was compiled to,
    so what keeps a library from being loaded is left as it is.
    """
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    modules: list[list[str]] = []
    for address in _CPUID.findall(listing):
        if not modules or int(address, 16) - int(modules[-1][-1], 16) > _NEAR:
            modules.append([])
        modules[-1].append(address)
    path = library.resolve()  # another environment may have other libraries of these names
    kept = [m for m in modules if _is_loaded(path, audit, f"{path}:{','.join(m)}")]
    return f"{path}:{','.join(address for module in kept for address in module)}"


def _is_loaded(library: Path, audit: Path, entry: str) -> bool:
    command = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"]
    variables = {**os.environ, "LD_AUDIT": str(audit), AS_AVX2: entry}
    return not subprocess.run(command, check=False, capture_output=True, env=variables).returncode


if __name__ == "__main__":
    main()
