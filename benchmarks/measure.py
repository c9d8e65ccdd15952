"""Whole processes, measured from outside: wall time and peak memory as the kernel counts them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One finished process: wall time in seconds, and maximum resident set size in bytes."""

    seconds: float
    peak_bytes: int


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote is in the exception.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=None if environment is None else {**os.environ, **environment},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit)


def in_turn(subjects: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Each subject once as a warm-up, then all in turn, so that a noisy minute hits all alike."""
    for subject in subjects.values():
        subject()
    results: dict[str, list[Run]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            results[name].append(subject())
    return results


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """Median time, its extremes, and the largest memory."""
    seconds = [result.seconds for result in runs]
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "peak_mib": max(result.peak_bytes for result in runs) / 2**20,
    }


def machine(*packages: str) -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "system": platform.platform(),
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
