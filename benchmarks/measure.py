"""Whole processes, measured from outside: wall time and peak memory as the kernel counts them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set where `benchmarks.as_avx2` hides what a processor has beyond AVX2.
AS_AVX2 = "AS_AVX2"
_NEWER_THAN_AVX2 = ("avx512", "avx_vnni", "amx", "gfni", "vaes", "vpclmulqdq")
# Those that engines have own products for, as Linux names them: x86's, then ARM's.
_INSTRUCTION_SETS = frozenset(
    ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
)
# Linux counts a process's peak from before its exec, when it still had its parent's memory. So a
# small interpreter of its own starts each command: 10 MiB is the least that can be seen.
_LAUNCHER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
begin = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - begin
core_seconds = usage.ru_utime + usage.ru_stime
code = os.waitstatus_to_exitcode(status)
print("[%r, %d, %d, %r]" % (seconds, code, usage.ru_maxrss, core_seconds))
"""


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: wall time.
        peak_bytes: largest resident set, of itself or of a process that it waited for.
        said: what it wrote to stderr.
        core_seconds: of processors, in it and in processes that it waited for; another load on the
            machine changes it less than the wall time.
    """

    seconds: float
    peak_bytes: int
    said: str = ""
    core_seconds: float = 0.0


def run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Run:
    """Run a command to its end; stdout is thrown away.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote is in the exception.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds and was stopped.
    """
    parts = [str(part) for part in command]
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *parts],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=None if environment is None else {**os.environ, **environment},
        start_new_session=True,
    )
    try:
        report, said = launcher.communicate(timeout=timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # the launcher and all that it started
        launcher.communicate()
        raise
    if launcher.returncode:
        raise subprocess.CalledProcessError(launcher.returncode, parts, stderr=said)
    seconds, code, peak, core_seconds = json.loads(report)
    if code:
        raise subprocess.CalledProcessError(code, parts, stderr=said)
    # Linux counts in KiB, macOS in bytes.
    peak_bytes = peak * (1 if platform.system() == "Darwin" else 1024)
    return Run(seconds, peak_bytes, said, core_seconds)


def in_turn(
    subjects: Mapping[str, Callable[[], Run]], rounds: int, warm_up: bool = True
) -> dict[str, list[Run]]:
    """Each subject once as a warm-up, then all in turn, so that a noisy minute hits all alike.

    Each round begins with another subject, so that none always follows the same one. What one
    leaves to be written to disk is written before the next one starts.
    """
    results: dict[str, list[Run]] = {name: [] for name in subjects}
    names = list(subjects)
    for round_number in range(rounds + warm_up):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            os.sync()
            results[name].append(subjects[name]())
    return {name: runs[warm_up:] for name, runs in results.items()}


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """Median time, its extremes, and the largest memory."""
    seconds = [result.seconds for result in runs]
    return {
        "rounds": len(runs),
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "core_seconds": statistics.median(result.core_seconds for result in runs),
        "peak_mib": max(result.peak_bytes for result in runs) / 2**20,
    }


def note(said: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {said}", file=sys.stderr, flush=True)


def guarded(main: Callable[[], None]) -> None:
    """Run a program; where a command that it measures fails, say what that one said."""
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr}")


def machine(*packages: str) -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    said = _cpuinfo()
    hides = ", what is newer than AVX2 hidden" if AS_AVX2 in os.environ else ""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "processor": (said.get("model name") or platform.processor()) + hides,
        "instruction_sets": [flag for flag in processor_flags() if flag in _INSTRUCTION_SETS],
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def processor_flags() -> list[str]:
    """What the processor has, as Linux names it, less what is hidden; empty on other systems."""
    said = _cpuinfo()
    flags = said.get("flags", said.get("Features", "")).split()
    hidden = _NEWER_THAN_AVX2 if AS_AVX2 in os.environ else ()
    return [flag for flag in flags if not flag.startswith(hidden)]


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}


def commit() -> str:
    """Which commit of this project is measured."""
    root = Path(__file__).resolve().parent.parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"
