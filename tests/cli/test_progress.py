"""Progress of a conversion: what a line says, when there is one, and a bar on a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cli.progress
from cli.progress import Lines, byte_progress, progress_line, step_progress
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress") / "llama"
    make_checkpoint("llama", folder)
    return folder


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (1_200_000_000, 4_000_000_000, 1.5, "1.2 of 4.0 GB, 800 MB/s, 4 s left"),
        (300_000_000, 4_000_000_000, 3, "0.3 of 4.0 GB, 100 MB/s, 37 s left"),
        (3_000_000_000, 4_000_000_000, 2, "3.0 of 4.0 GB, 1.5 GB/s, 1 s left"),
        (1_000_000, 121_000_000, 1, "1.0 of 121.0 MB, 1 MB/s, 2 min left"),
        (5_000, 10_000, 2.5, "5.0 of 10.0 kB, 2 kB/s, 3 s left"),
        (1, 2, 4, "1.0 of 2.0 B, 0 B/s, 4 s left"),
        (70_000_000_000, 70_000_000_000, 70, "70.0 of 70.0 GB, 1.0 GB/s, 0 s left"),
        (10_000_000, 70_000_000_000, 10, "0.0 of 70.0 GB, 1 MB/s, 1167 min left"),
        (204, 1_000_000_000, 2, "0.0 of 1.0 GB"),
    ],
)
def test_what_a_line_says(done: int, total: int, seconds: float, line: str) -> None:
    assert progress_line(done, total, seconds) == line


def test_lines_get_rarer(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    lines = Lines(1600, "Converting", clock=lambda: now)
    for _ in range(320):
        now += 1 / 16
        lines.advance(1)
    assert capsys.readouterr() == (
        "",
        "litert-lm-cli: converting: 0.0 of 1.6 kB, 16 B/s, 98 s left\n"
        "litert-lm-cli: converting: 0.1 of 1.6 kB, 16 B/s, 96 s left\n"
        "litert-lm-cli: converting: 0.1 of 1.6 kB, 16 B/s, 92 s left\n"
        "litert-lm-cli: converting: 0.3 of 1.6 kB, 16 B/s, 84 s left\n",
    )


def test_an_hour_has_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(3600, "Measuring", clock=lambda: now)
    for _ in range(3600):
        now += 1
        lines.advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 6 + (3600 - 64) // 60


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress(100, quiet=False) as progress:
        progress(60)
        progress(40)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_steps_print_a_line_now_and_then(
    quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.progress, "_SECONDS_TO_A_LINE", 0)
    tell = step_progress("scoring", quiet)
    for done in range(3):
        tell(done, 3)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert bool(lines) is not quiet
    assert all(re.fullmatch(r"litert-lm-cli: scoring: [12] of 3, \d s left", one) for one in lines)


def test_quiet_prints_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.progress, "_SECONDS_TO_A_LINE", 0)
    with byte_progress(100, quiet=True) as progress:
        progress(100)
    assert capsys.readouterr() == ("", "")
    with byte_progress(100, quiet=False) as progress:
        progress(100)
    assert capsys.readouterr().err.startswith("litert-lm-cli: converting: 100.0 of 100.0 B, ")


def on_a_terminal(command: list[str | Path], **environment: str) -> tuple[bytes, bytes]:
    """What a command prints to stdout, and what it shows on the terminal that is its stderr."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "COLUMNS": "120", **environment},
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(parent)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    return stdout, shown


@pytest.mark.parametrize(
    ("term", "options", "check"),
    [
        ("xterm", [], lambda shown: b"Converting" in shown and b"103.7/103.7 kB" in shown),
        ("xterm", ["--quiet"], lambda shown: shown == b""),
        ("dumb", [], lambda shown: b"Converting" not in shown and b"\x1b" not in shown),
    ],
    ids=["bar", "quiet", "dumb"],
)
def test_on_a_terminal(
    llama: Path, tmp_path: Path, term: str, options: list[str], check: Callable[[bytes], bool]
) -> None:
    command = ["-m", "cli", "convert", llama, "--output-dir", tmp_path, *options]
    stdout, shown = on_a_terminal(command, TERM=term)
    assert stdout == f"{tmp_path}/llama.litertlm\n".encode()
    assert check(shown), shown
