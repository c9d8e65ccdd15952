"""A library that asks the processor what it has hears of AVX2, and of nothing newer."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.as_avx2 import environment
from benchmarks.measure import AS_AVX2, machine

_ASKS = """
#include <cpuid.h>
unsigned registers(int which) {
  unsigned said[4];
  __cpuid_count(7, 0, said[0], said[1], said[2], said[3]);
  return said[which];
}
static unsigned early;
__attribute__((constructor)) static void ask(void) { early = registers(1); }
unsigned when_loaded(void) { return early; }
"""
_AVX2, _AVX512F, _VNNI, _AMX = 1 << 5, 1 << 16, 1 << 11, 1 << 24


@pytest.mark.skipif(
    (platform.machine(), sys.platform) != ("x86_64", "linux")
    or not (shutil.which("cc") and shutil.which("objdump")),
    reason="overwrites x86's instructions, found by objdump, by Linux's linker",
)
def test_what_is_newer_than_avx2_is_hidden(tmp_path: Path) -> None:
    library = tmp_path / "libasks.so"
    (tmp_path / "asks.c").write_text(_ASKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "asks.c"], check=True)
    asks = ctypes.CDLL(str(library))
    has = [asks.registers(which) & 0xFFFFFFFF for which in (1, 2, 3)]

    ask = (
        f"import ctypes; asks = ctypes.CDLL({str(library)!r})\n"
        "print(*(asks.registers(which) & 0xFFFFFFFF for which in (1, 2, 3)), asks.when_loaded())"
    )
    other = tmp_path / "other"  # as in another environment: the same name, and other code
    other.mkdir()
    (other / "asks.c").write_text(
        _ASKS.replace("static unsigned early", "unsigned early, more[99]")
    )
    command = ["cc", "-O3", "-shared", "-fPIC", "-o", other / library.name, other / "asks.c"]
    subprocess.run(command, check=True)
    hidden = {**os.environ, **environment(tmp_path, [library])}
    said = subprocess.run(
        [sys.executable, "-I", "-c", ask], env=hidden, check=True, capture_output=True, text=True
    ).stdout
    ebx, ecx, edx, early = map(int, said.split())
    assert ebx & _AVX2 == has[0] & _AVX2
    assert not ebx & _AVX512F
    assert not early & _AVX512F
    assert not ecx & _VNNI
    assert not edx & _AMX
    load = f"import ctypes; ctypes.CDLL({str(other / library.name)!r})"
    subprocess.run([sys.executable, "-I", "-c", load], env=hidden, check=True)


def test_a_machine_says_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AS_AVX2, "")
    assert not {"avx512f", "avx512_vnni", "avx_vnni"} & set(machine()["instruction_sets"])
    assert machine()["processor"].endswith("hidden")
