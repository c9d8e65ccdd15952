"""Time and memory are those of the command, not of who measures it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import Run, in_turn, machine, medians, run

_MIB = 1 << 20


def test_peak_memory_is_the_commands_own() -> None:
    ours = np.ones(300 * _MIB, np.uint8)  # a child that is forked off would be charged for this
    small = run(["true"])
    large = run([sys.executable, "-S", "-c", f"bytearray(b'x') * {100 * _MIB}"])
    assert ours[-1] == 1
    assert small.peak_bytes < 40 * _MIB
    assert 100 * _MIB < large.peak_bytes < 150 * _MIB


def test_core_seconds_are_of_all_its_processes() -> None:
    spin = "import os, time\nwhile time.process_time() < 0.3: pass"
    fork = f"import os\nif os.fork() == 0:\n    exec({spin!r})\n    os._exit(0)\nos.wait()"
    assert run([sys.executable, "-S", "-c", fork]).core_seconds > 0.3
    assert run(["sleep", "0.3"]).core_seconds < 0.2


def test_what_a_command_says_and_how_it_fails() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2"]).said == "err\n"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(["sh", "-c", "echo why >&2; exit 3"])
    assert caught.value.returncode == 3
    assert caught.value.stderr == "why\n"


def test_a_machine_is_told_by_its_instruction_sets() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("avx2" in machine()["instruction_sets"]) == ("avx2" in flags)
    assert ("amx_int8" in machine()["instruction_sets"]) == ("amx_int8" in flags)


def test_a_missing_command_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run(["/no/such/command"])


def test_a_timeout_ends_the_command() -> None:
    begin = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sleep", "60"], timeout=0.2)
    assert time.monotonic() - begin < 30


def test_subjects_take_turns_after_a_warm_up() -> None:
    order: list[str] = []

    def subject(name: str) -> Run:
        order.append(name)
        return Run(float(len(order)), _MIB * len(order), core_seconds=2.0 * len(order))

    runs = in_turn({"a": lambda: subject("a"), "b": lambda: subject("b")}, rounds=3)
    assert order == ["a", "b", "b", "a"] * 2
    assert medians(runs["a"]) == {
        "rounds": 3,
        "seconds": 5.0,
        "seconds_min": 4.0,
        "seconds_max": 8.0,
        "core_seconds": 10.0,
        "peak_mib": 8.0,
    }
