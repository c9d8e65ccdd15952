"""Let everything go wrong that can during a conversion; no file may be lost, and the error is ours.

    venv/bin/python -m reliability.faults                 # 40 of each fault, a quarter of an hour
    venv/bin/python -m reliability.faults --times 1       # in CI

A tiny model is converted over an older file while its disk fails or fills, its source changes or
shrinks, a signal comes, nobody reads what it prints, the clock jumps, or others convert it too.
Counted as a loss: an output that is neither the older file nor the new one, one whose receipt does
not belong to it, anything left behind, an error that is not one line of ours, or a wrong exit code.

Failing disks are made by a library that is loaded before the C library (faults.c); full and
read-only ones are mounted (tmpfs), where this system lets us: what could not be tried is named. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.measure import guarded, note
from cli.main import EXIT_BROKEN_PIPE
from reliability.trials import LOSSES, Trial, conclude, digest, hear_signals, wait_until_it_hears
from tests.tiny_models import make_model, write_tokenizer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DISK_SIZE = 4 << 20  # of a mounted disk; the older file and a new one fit
_MOUNTED = "RELIABILITY_MAY_MOUNT"

# A fault: starts a conversion, disturbs it, and returns it.
Fault = Callable[[], subprocess.Popen[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=40, help="each fault")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if _MOUNTED not in os.environ:
        _enter_own_mounts()
    random.seed(args.seed)
    hear_signals()
    with tempfile.TemporaryDirectory(prefix="litert-lm-faults-") as folder:
        results, missing = measure(Path(folder), args.times)
    for name, found in results.items():
        print(f"{name:40} {found}")
    totals = sum((Counter(found) for found in results.values()), Counter[str]())
    losses = sum(totals[kind] for kind in LOSSES)
    tried = totals["old"] + totals["new"] + totals["mixture"]
    conclude(
        "faults",
        ["numpy"],
        losses,
        seed=args.seed,
        faults=tried,
        not_tried=missing,
        by_fault=results,
    )


def _enter_own_mounts() -> None:
    """Start this program again where mounts are its own, if the system lets us."""
    for unshare in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with suppress(OSError):
            if subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL).returncode == 0:
                os.environ[_MOUNTED] = "yes"
                os.execvp(unshare[0], [*unshare, *sys.orig_argv])
    os.environ[_MOUNTED] = ""


def measure(work: Path, times: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """What became of `times` conversions of each fault; and the faults that cannot be made here."""
    source = work / "source"
    make_model("llama").save_pretrained(source)
    write_tokenizer(source)
    trial = Trial(source, work / "out", "dynamic_int8")
    faults = dict(_of_process(trial)) | dict(_of_source(work, source))
    missing = []
    library = _build_library(work)
    if library is not None:
        faults |= dict(_of_disk(trial, library))
    else:
        missing.append("a compiler: failing disks, jumping clock")
    with _mounted(work / "disk") as disk:
        if disk is not None:
            faults |= dict(_of_mount(disk, source))
        else:
            missing.append("mounts: full and read-only disks")
        results = {}
        for name, (its_trial, fault) in faults.items():
            note(name)
            found: Counter[str] = Counter()
            for _ in range(times):
                found.update(_try(its_trial, fault))
            results[name] = dict(found)
    return results, missing


def _try(trial: Trial, fault: Fault) -> Iterator[str]:
    """Disturb one conversion; what became of it."""
    trial.restore()
    process = fault()
    said = process.communicate(timeout=120)[1]
    found = trial.judge()
    yield from found
    if trial.leftovers():
        yield "left behind"
    if process.returncode == 0 and "new" not in found:
        yield "wrong exit code"
    if said is None:  # nobody reads it
        return
    is_silent = process.returncode in (0, EXIT_BROKEN_PIPE)
    if said if is_silent else said.count("\n") != 1 or not said.startswith("error: "):
        note(f"exit code {process.returncode}, unexpected on stderr: {said!r}")
        yield "no error line"


def _start(trial: Trial, **options: Any) -> subprocess.Popen[Any]:
    settings: dict[str, Any] = {"stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    return trial.start(**(settings | options))


def _wait_somewhat(trial: Trial) -> None:
    """Wait for a random part of the time that a conversion takes."""
    time.sleep(random.uniform(0, trial.seconds * 1.05))


def _of_process(trial: Trial) -> Iterator[tuple[str, tuple[Trial, Fault]]]:
    """Signals, quotas, streams that nobody reads, and others that write the same file."""

    def end(number: int) -> Fault:
        def fault() -> subprocess.Popen[Any]:
            process = _start(trial)
            wait_until_it_hears(process)
            _wait_somewhat(trial)
            with suppress(ProcessLookupError):
                process.send_signal(number)
            return process

        return fault

    for number in _SIGNALS:
        yield signal.Signals(number).name, (trial, end(number))

    def quota() -> subprocess.Popen[Any]:
        most = random.randrange(1, trial.output.stat().st_size)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        return _start(trial, preexec_fn=limit)

    yield "quota on the size of a file", (trial, quota)

    def unread(**streams: bool) -> Fault:
        def fault() -> subprocess.Popen[Any]:
            ends = {name: os.pipe() for name in streams}
            for reader, _ in ends.values():
                os.close(reader)
            process = _start(trial, **{name: writer for name, (_, writer) in ends.items()})
            for _, writer in ends.values():
                os.close(writer)
            return process

        return fault

    def full_stdout() -> subprocess.Popen[Any]:
        with open("/dev/full", "wb") as full:
            return _start(trial, stdout=full)

    yield "stdout on a full disk", (trial, full_stdout)
    yield "stdout that nobody reads", (trial, unread(stdout=True))
    yield "stdout and stderr that nobody reads", (trial, unread(stdout=True, stderr=True))

    def without_streams() -> subprocess.Popen[Any]:
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
        return _start(trial, wrapper=shell, stderr=None)

    yield "no streams at all", (trial, without_streams)

    def together() -> subprocess.Popen[Any]:
        """The first of four at once; what the others say is judged here."""
        first, *others = [_start(trial) for _ in range(4)]
        for other in others:
            said = other.communicate(timeout=120)[1]
            if other.returncode and "another conversion is writing it" not in said:
                raise SystemExit(f"error: one of four conversions at once said {said!r}")
        return first

    yield "four conversions at once", (trial, together)


def _of_source(work: Path, source: Path) -> Iterator[tuple[str, tuple[Trial, Fault]]]:
    """A source that is edited while it is read."""
    edited = work / "edited" / source.name
    weights, tokenizer = edited / "model.safetensors", edited / "tokenizer.json"
    shutil.copytree(source, edited)
    trial = Trial(edited, work / "out-edited", "dynamic_int8")

    def shrink() -> None:
        os.truncate(weights, weights.stat().st_size * 2 // 3)

    def grow() -> None:
        with weights.open("ab") as file:
            file.write(b"\0")

    def change() -> None:
        with weights.open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\1")

    def replace() -> None:
        shutil.copy(weights, edited / "new")
        os.replace(edited / "new", weights)

    def remove() -> None:
        weights.unlink()

    def change_tokenizer() -> None:
        with tokenizer.open("a") as file:
            file.write("\n")

    def while_read(edit: Callable[[], None]) -> Fault:
        def fault() -> subprocess.Popen[Any]:
            for path in source.iterdir():
                shutil.copy(path, edited)
            process = _start(trial)
            _wait_somewhat(trial)
            edit()
            return process

        return fault

    for edit in (change, change_tokenizer):  # whoever begins after the edit reads a sound model
        edit()
        if trial.start().wait() == 0:
            trial.new.add(digest(trial.output))
        for path in source.iterdir():
            shutil.copy(path, edited)
    for edit in (shrink, grow, change, replace, remove, change_tokenizer):
        yield f"source: {edit.__name__}".replace("_", " "), (trial, while_read(edit))


def _build_library(work: Path) -> Path | None:
    library = work / "faults.so"
    source = Path(__file__).with_name("faults.c")
    if shutil.which("cc") is None:
        return None
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def _of_disk(trial: Trial, library: Path) -> Iterator[tuple[str, tuple[Trial, Fault]]]:
    """System calls that fail from some moment on, and a clock that cannot be trusted."""

    def failing(below: Path, kind: str, number: int, calls: int) -> Fault:
        firsts = itertools.cycle(random.sample(range(1, calls + 1), calls))  # each in its turn

        def fault() -> subprocess.Popen[Any]:
            environment = {
                "LD_PRELOAD": str(library),
                "FAULT_BELOW": str(below),
                kind: str(next(firsts)),
                "FAULT_ERRNO": str(number),
            }
            return _start(trial, environment=environment)

        return fault

    source = Path(trial.source)
    # An undisturbed conversion makes 10 such reads and 35 or more writes.
    yield "read error", (trial, failing(source, "FAULT_READ", errno.EIO, 11))
    yield "write error", (trial, failing(trial.out, "FAULT_WRITE", errno.EIO, 38))
    no_space = failing(trial.out, "FAULT_WRITE", errno.ENOSPC, 38)
    yield "no space from some write on", (trial, no_space)

    def jump() -> subprocess.Popen[Any]:
        environment = {"LD_PRELOAD": str(library), "FAULT_CLOCK": "1"}
        return _start(trial, environment=environment)

    yield "clock that jumps", (trial, jump)


@contextmanager
def _mounted(folder: Path) -> Iterator[Path | None]:
    """A small disk of its own; None where the system does not let us."""
    folder.mkdir()
    if not os.environ.get(_MOUNTED):
        yield None
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _of_mount(disk: Path, source: Path) -> Iterator[tuple[str, tuple[Trial, Fault]]]:
    """A real disk that is full, fills while it is written, or may only be read."""
    trial = Trial(source, disk / "out", "dynamic_int8")

    def fill() -> None:
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def full(before: bool) -> Fault:
        def fault() -> subprocess.Popen[Any]:
            if before:
                fill()
            process = _start(trial)
            if not before:
                partial = trial.output.with_name(f".{trial.output.name}.partial")
                while process.poll() is None and not partial.exists():
                    time.sleep(0.001)
                fill()
            process.wait(timeout=120)
            (disk / "filler").unlink()
            return process

        return fault

    yield "disk that is full", (trial, full(before=True))
    yield "disk that fills meanwhile", (trial, full(before=False))

    def remount(access: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{access}", str(disk)], check=True)

    def with_disk_read_only(its_trial: Trial) -> Fault:
        def fault() -> subprocess.Popen[Any]:
            remount("ro")
            process = _start(its_trial)
            process.wait(timeout=120)
            remount("rw")
            return process

        return fault

    yield "output on a read-only disk", (trial, with_disk_read_only(trial))

    media = disk / "media" / source.name
    shutil.copytree(source, media)
    from_media = Trial(media, disk.parent / "out-media", "dynamic_int8")

    yield "source on a read-only disk", (from_media, with_disk_read_only(from_media))

    def may_not_write() -> subprocess.Popen[Any]:
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
        wrapper = drop if os.geteuid() == 0 else []
        trial.out.chmod(0o555)
        process = _start(trial, wrapper=wrapper)
        process.wait(timeout=120)
        trial.out.chmod(0o755)
        return process

    yield "folder that may not be written", (trial, may_not_write)


if __name__ == "__main__":
    guarded(main)
