"""Work in a forked copy: its result, its failure, its end."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from converter.errors import SourceError, UnsupportedError
from converter.text import background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it runs when asked for")


def test_it_runs_beside_and_once(tmp_path: Path) -> None:
    def work() -> tuple[int, bytes]:
        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        return os.getpid(), bytes(10_000_000)  # more than a pipe holds

    result = background.start(work, "it")
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

    result = background.start(work, "it")
    with pytest.raises(ValueError, match=f"^{os.getpid()}$") as caught:
        result()
    assert caught.traceback[-1].name == "work"
    assert not multiprocessing.active_children()


def test_it_says_whether_it_is_done(tmp_path: Path) -> None:
    def work() -> str:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        raise UnsupportedError("this", "is refused", "try that")

    result = background.start(work, "it")
    assert not result.is_done()
    (tmp_path / "go").touch()
    assert result.is_done(within=30)
    for _ in range(2):  # every thread that asks is told
        with pytest.raises(UnsupportedError, match="is refused"):
            result()
        assert result.is_done()


def test_it_is_not_done_for_others_while_somebody_waits(tmp_path: Path) -> None:
    def work() -> str:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return "done"

    result = background.start(work, "it")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result)
        time.sleep(0.1)
        start = time.monotonic()
        assert not result.is_done(within=30)
        assert time.monotonic() - start < 10
        (tmp_path / "go").touch()
        assert waiting.result() == "done"
    assert result.is_done()


def test_an_error_of_ours_is_carried_over() -> None:
    parent = os.getpid()

    def work() -> None:
        assert os.getpid() != parent, "it must not run here, where nothing is bounded"
        raise UnsupportedError("this", "is refused", "try that")

    with pytest.raises(UnsupportedError, match=r"^this, is refused, try that$"):
        background.start(work, "it")()


class _PanicError(BaseException):
    """As Rust's comes to Python: no Exception."""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_panic_is_an_error(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)

    def work() -> None:
        raise _PanicError("byte index 4 is out of bounds")

    why = "their reader gave up (byte index 4 is out of bounds)"
    with pytest.raises(SourceError, match=f"^it, {re.escape(why)}, do not use these files$"):
        background.start(work, "it")()


def test_a_result_that_cannot_be_sent() -> None:
    value = background.start(lambda: lambda: 7, "it")()
    assert value() == 7


def test_a_copy_that_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    parent = os.getpid()

    def work() -> int:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return 7

    assert background.start(work, "it")() == 7
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "work",
    ["bytes(10_000_000)", "time.sleep(600)"],  # more than a pipe holds; busy with something else
)
def test_a_copy_that_nobody_waits_for_ends_with_us(work: str) -> None:
    script = (
        "import multiprocessing, os, time\n"
        "from converter.text import background\n"
        f"background.start(lambda: {work}, 'it')\n"
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


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("memory", "it, they take more than 1 GiB of memory, or crash"),
        ("time", "it, they take more than 1 s to read"),
        ("abort", "or crash what reads them"),
        ("crash", "their reader died"),
    ],
)
def test_what_strangers_wrote_is_bounded(
    monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    parent = os.getpid()

    def work() -> object:
        assert os.getpid() != parent, "it must not run here"
        if kind == "memory":
            return len(bytes(2 << 30))
        while kind == "time":
            pass
        faulthandler.disable()  # pytest's, which would print a traceback
        os.kill(os.getpid(), signal.SIGABRT if kind == "abort" else signal.SIGSEGV)
        return None

    monkeypatch.setattr(background, "_MOST_MEMORY", 1 << 30)
    if kind == "time":
        monkeypatch.setattr(background, "_MOST_SECONDS", 1)
    with pytest.raises(SourceError, match=said):
        background.start(work, "it")()


def test_work_without_bounds() -> None:
    limits = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)}
    found = background.start(
        lambda: {kind: resource.getrlimit(kind) for kind in limits}, "it", is_bounded=False
    )
    assert found() == limits


_ENDED_AT_BIRTH = """
import signal, sys, time
from converter.text import background

def end(number, frame):
    raise SystemExit(number)

signal.signal(signal.SIGTERM, end)
background.start(lambda: time.sleep(60), "it")
"""


def test_a_copy_that_is_ended_at_its_birth_says_nothing() -> None:
    """As where an interrupt comes right after its start: multiprocessing ends it at our exit."""
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", _ENDED_AT_BIRTH],
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
