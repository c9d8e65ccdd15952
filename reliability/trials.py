"""A conversion over an older file of the same name, to be disturbed and judged again and again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import commit, machine
from converter.receipt import hash_parts
from converter.version import __version__

ROOT = Path(__file__).resolve().parent.parent
LOSSES = ("mixture", "wrong receipt", "left behind", "no error line", "wrong exit code")


class Trial:
    """A source that was converted undisturbed, and an older output with its receipt.

    Args:
        prepare: called before each conversion.

    Attributes:
        seconds: what an undisturbed conversion takes.
        new: digests that a complete output may have.
    """

    def __init__(
        self,
        source: str | Path,
        out: Path,
        scheme: str | None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.out, self.scheme = source, out, scheme
        self._prepare = prepare
        self.seconds = statistics.median(self._undisturbed() for _ in range(3))
        [self.output] = out.glob("*.litertlm")
        self.receipt = self.output.with_suffix(".json")
        self.new = {digest(self.output)}
        # An older file of the same name, with its receipt.
        changed = bytearray(self.output.read_bytes())
        changed[-1] ^= 1
        self.output.write_bytes(changed)
        self.old = digest(self.output)
        paper = json.loads(self.receipt.read_text())
        paper["output"]["parts"] = hash_parts(self.output)
        self._older = bytes(changed), json.dumps(paper).encode()

    def restore(self) -> None:
        """Put the older file and its receipt back."""
        self._prepare()
        for path, content in zip((self.output, self.receipt), self._older, strict=True):
            path.unlink(missing_ok=True)  # it may be a link into a checkpoint
            path.write_bytes(content)

    @property
    def command(self) -> list[str]:
        """The conversion."""
        scheme = ["--quantize", self.scheme] if self.scheme else []
        options = ["--force", "--quiet", "--output-dir", str(self.out), *scheme]
        return command("convert", str(self.source), *options)

    def start(self, wrapper: Sequence[str] = (), **options: Any) -> subprocess.Popen[Any]:
        """A conversion that has just begun, in a process group of its own."""
        return start([*wrapper, *self.command], **options)

    def judge(self) -> list[str]:
        """What is there now: old, new or mixture; and what is wrong with it."""
        there = digest(self.output) if self.output.exists() else ""
        found = ["old" if there == self.old else "new" if there in self.new else "mixture"]
        if start(command("verify", str(self.output))).wait() != 0:
            found.append("wrong receipt")
        return found

    def leftovers(self) -> set[str]:
        """Names beside the output and its receipt."""
        return {path.name for path in self.out.iterdir()} - {self.output.name, self.receipt.name}

    def _undisturbed(self) -> float:
        self._prepare()
        begin = time.monotonic()
        if self.start().wait() != 0:
            raise SystemExit(f"error: {self.source} cannot be converted")
        return time.monotonic() - begin


def command(*arguments: str) -> list[str]:
    """Our command line."""
    return [sys.executable, "-m", "cli", *arguments]


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """A process without input and output, in a process group of its own."""
    settings: dict[str, Any] = {
        "cwd": ROOT,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "start_new_session": True,
    }
    added = options.pop("environment", {})
    return subprocess.Popen(arguments, env={**os.environ, **added}, **(settings | options))


def conclude(program: str, packages: Sequence[str], losses: int, **figures: Any) -> None:
    """Print the JSON document; the exit code is 1 where there are losses."""
    document = {
        "reliability": program,
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine(*packages),
        "losses": losses,
        **figures,
    }
    print(json.dumps(document))
    if losses:
        raise SystemExit(1)


def hear_signals() -> None:
    """Ignore none of those that are sent here: a program in the background would, and its own."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until_it_hears(process: subprocess.Popen[Any]) -> None:
    """Until it has handlers for signals (Linux): before, Python starts, and ends as any program."""
    bit = 1 << (signal.SIGHUP - 1)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.partition("SigCgt:")[2].split()[0], 16) & bit:
            return
        time.sleep(0.001)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
