"""Work in a forked copy: its result, its failure, its end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter import background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it runs when asked for")


def test_it_runs_beside_and_once(tmp_path: Path) -> None:
    def work() -> tuple[int, bytes]:
        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        return os.getpid(), bytes(10_000_000)  # more than a pipe holds

    result = background.start(work)
    deadline = time.monotonic() + 30
    while not (tmp_path / "runs").exists():  # without being asked for
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid, content = result()
    assert pid != os.getpid()
    assert content == bytes(10_000_000)
    assert result() == (pid, content)
    assert (tmp_path / "runs").read_text() == "x"
    assert not multiprocessing.active_children()


def test_a_failure_is_raised_here() -> None:
    def work() -> None:
        raise ValueError(os.getpid())

    result = background.start(work)
    with pytest.raises(ValueError, match=f"^{os.getpid()}$") as caught:
        result()
    assert caught.traceback[-1].name == "work"
    assert not multiprocessing.active_children()


def test_a_result_that_cannot_be_sent() -> None:
    value = background.start(lambda: lambda: 7)()
    assert value() == 7


def test_a_copy_that_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    parent = os.getpid()

    def work() -> int:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return 7

    assert background.start(work)() == 7
    assert capfd.readouterr() == ("", "")


def test_a_copy_that_nobody_waits_for_ends_with_us() -> None:
    script = (
        "import multiprocessing, os\n"
        "from converter import background\n"
        "background.start(lambda: bytes(10_000_000))\n"  # more than a pipe holds
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    status = Path(f"/proc/{result.stdout.strip()}/status")
    deadline = time.monotonic() + 30
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
