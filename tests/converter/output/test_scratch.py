"""Scratch folders: private while they are used, and gone however their process ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from converter.output.scratch import scratch_folder

ROOT = Path(__file__).parents[3]


def test_it_is_gone_afterwards_with_everything_in_it(tmp_path: Path) -> None:
    with scratch_folder("work-", tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "deep").mkdir()
        (folder / "deep" / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with scratch_folder("work-", tmp_path) as folder:
            (folder / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from converter.output.scratch import scratch_folder\n"
        "with scratch_folder('work-', Path(sys.argv[1])) as folder:\n"
        "    (folder / 'large').touch(); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [used] = tmp_path.iterdir()
        with scratch_folder("work-", tmp_path):
            assert (used / "large").exists()  # its process lives
        process.send_signal(signal.SIGKILL)
    assert (used / "large").exists()
    with scratch_folder("other-", tmp_path):
        assert used.exists()
    with scratch_folder("work-", tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_where_there_are_no_locks_nobody_s_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with scratch_folder("work-", tmp_path) as folder, scratch_folder("work-", tmp_path) as other:
        assert sorted(tmp_path.iterdir()) == sorted((folder, other))
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "work-link").symlink_to("precious")
    with scratch_folder("work-", tmp_path):
        pass
    assert (tmp_path / "precious" / "file").exists()


def _use_often(parent: Path) -> None:
    for _ in range(200):
        with scratch_folder("work-", parent) as folder:
            (folder / "file").write_text("mine")
            assert (folder / "file").read_text() == "mine"


def test_processes_at_once_keep_theirs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_use_often, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert os.listdir(tmp_path) == []
