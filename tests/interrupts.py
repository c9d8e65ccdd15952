"""Interrupts the main thread at every step at which Python hears signals, one run for each step.

    python -m tests.interrupts workers|file|folder

Prints how many steps there were. Each run must hear its interrupt, leave no thread, and leave all
of what it wrote or nothing.
"""

from __future__ import annotations

import dis
import faulthandler
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from converter.output.atomic_file import AtomicFile
from converter.output.atomic_folder import AtomicFolder
from converter.workers import Workers

# After these CPython looks for signals.
_HEARS = ("RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD")


def use_workers(_: Path) -> None:
    with Workers(2) as workers:
        workers.do([lambda: None] * 3)
        workers.do_later([lambda: None])
        workers.finish()


def write_file(place: Path) -> None:
    with AtomicFile(place / "new" / "file") as file:
        file.write_at(0, b"content")
        file.commit()


def write_folder(place: Path) -> None:
    with AtomicFolder(place / "new" / "folder", lambda _: None) as folder:
        folder.write("a/b", b"content")
        folder.commit()


def interrupted_at(step: int, work: Callable[[], None]) -> bool:
    """Whether `work` has so many steps; it is interrupted at this one."""
    seen = 0
    before: dict[FrameType, str] = {}
    raised = False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, raised
        frame.f_trace_opcodes = True
        if event == "opcode" and not raised:
            seen += before.get(frame) in _HEARS
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if seen == step:
                raised = True
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        assert raised
    finally:
        sys.settrace(None)
    return raised


def main() -> None:
    work = {"workers": use_workers, "file": write_file, "folder": write_folder}[sys.argv[1]]
    sys.unraisablehook = lambda _: None  # cli.main raises these again, a moment later
    step = 0
    with tempfile.TemporaryDirectory() as name:
        is_there = True
        while is_there:
            step += 1
            faulthandler.dump_traceback_later(10, exit=True)
            is_there = interrupted_at(step, lambda: work(Path(name)))
            deadline = time.monotonic() + 5
            while threading.active_count() > 1:
                assert time.monotonic() < deadline, f"a thread is left after step {step}"
            left = [path.name for path in Path(name).rglob("*")]
            assert left in ([], ["new", "file"], ["new", "folder", "a", "b"]), (step, left)
            shutil.rmtree(Path(name, "new"), ignore_errors=True)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(step - 1)


if __name__ == "__main__":
    main()
