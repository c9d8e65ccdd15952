"""Files that are whole or absent, whoever else writes them, and whatever a killed process left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import OutputError
from converter.output import atomic_file
from converter.output.atomic_file import AtomicFile, Seal, link_or_copy, sweep, unfinished

ROOT = Path(__file__).parents[3]
FIX = "choose a writable folder with enough room with --output-dir"


def no_seal(_path: Path) -> Callable[[], None]:
    return lambda: None


def fail_within(target: Path, error: type[BaseException]) -> None:
    with AtomicFile(target) as file:
        file.write_at(0, b"new")
        raise error


def test_the_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "m.litertlm"
    with AtomicFile(target) as file:
        file.write_at(8, b"yz")
        file.write_at(1, memoryview(b"abc"))
        assert not target.exists()
        [temporary] = target.parent.iterdir()
        assert temporary.name.startswith(".m.litertlm.")  # `list` passes hidden files over
        assert temporary.name.endswith(".partial")
        file.commit()
        assert target.read_bytes() == b"\0abc\0\0\0\0yz"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_within(tmp_path / "a" / "b" / "m", error)
    assert list(tmp_path.iterdir()) == []  # not the folders that were made for it, either


def test_an_exception_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        fail_within(target, KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_a_signal_while_it_is_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic_file.lock

    def lock(fd: int) -> bool | None:
        signal.raise_signal(signal.SIGINT)
        return real(fd)

    monkeypatch.setattr(atomic_file, "lock", lock)
    with pytest.raises(KeyboardInterrupt), AtomicFile(tmp_path / "new" / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_use_is_kept(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "new" / "m"):
        (tmp_path / "new" / "note").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["note"]


def test_a_commit_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old and longer")
    with AtomicFile(target) as file:
        file.write_at(0, b"new")
        file.commit()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with AtomicFile(tmp_path / "m") as file:
            file.commit()
        assert os.umask(umask) == umask  # it was given back
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("below", ["m", "sub/m"])
def test_a_file_in_place_of_the_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    target = tmp_path / "file" / below
    with pytest.raises(OutputError) as caught, AtomicFile(target):
        pass
    assert str(caught.value) == f"{target}, Not a directory, {FIX}"
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with AtomicFile(tmp_path / "m") as file, pytest.raises(OutputError) as caught:
        file.commit()
    assert str(caught.value) == f"{tmp_path / 'm'}, Is a directory, {FIX}"
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_too_long_a_name_leaves_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / ("x" * 250)
    with pytest.raises(OutputError, match=", File name too long, "), AtomicFile(target):
        pass
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, signal, sys
from pathlib import Path
from converter.output.atomic_file import AtomicFile
from converter.errors import OutputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with AtomicFile(Path(sys.argv[1])) as file:
        for start in range(0, 200_000, 40_000):
            file.write_at(start, bytes(40_000))
        file.commit()
except OutputError as error:
    print(error)
"""


def test_a_disk_without_room(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}, File too large, {FIX}\n"
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write_all(fd, data[:3], at))
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(2, b"abcdefgh")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"\0\0abcdefgh"


def test_without_positioned_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite")  # as on Windows
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(2, b"cd")
        file.write_at(0, b"ab")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"abcd"


def test_the_file_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, done = os.fsync, []

    def record(fd: int) -> None:
        done.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), target.exists()))
        sync(fd)

    target = tmp_path / "m"
    monkeypatch.setattr(os, "fsync", record)
    with AtomicFile(target) as file:
        [temporary] = tmp_path.iterdir()
        file.commit()
    assert done == [(temporary.name, False), (tmp_path.name, True)]


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse it, and the file is complete by then."""
    sync = os.fsync

    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"new")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"new"


# link_or_copy ------------------------------------------------------------------------------------


def test_a_link_where_the_file_system_can(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"content")
    link_or_copy(source, target, no_seal)
    assert target.samefile(source)
    assert list(target.parent.iterdir()) == [target]


def test_a_link_over_itself_leaves_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    for _ in range(2):  # the second time, POSIX says that rename does nothing
        link_or_copy(source, target, no_seal)
        assert sorted(tmp_path.iterdir()) == [source, target]
    assert target.read_bytes() == b"content"


def test_a_copy_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(os.urandom((1 << 22) + 7))
    target.parent.mkdir()
    target.write_bytes(b"old")
    link_or_copy(source, target, no_seal)
    assert target.read_bytes() == source.read_bytes()
    assert not target.samefile(source)
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="/file/m, Not a directory, "):
        link_or_copy(tmp_path / "file", tmp_path / "file" / "m", no_seal)


def test_a_disk_that_fails_while_there_is_more_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a failed write to the first who syncs, and to nobody after."""
    failed = threading.Event()

    def fail_once(_: int) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_once)
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"new")
        assert failed.wait(30)
        with pytest.raises(OutputError, match="Input/output error"):
            file.commit()
    assert list(tmp_path.iterdir()) == []


# Others ------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with AtomicFile(target) as first:
        first.write_at(0, b"first")
        with pytest.raises(OutputError, match="another conversion is writing it"):
            AtomicFile(target).__enter__()
        sweep(target)
        first.commit()
    assert target.read_bytes() == b"first"
    with AtomicFile(target) as second:
        second.write_at(0, b"2nd")
        second.commit()
    assert target.read_bytes() == b"2nd"
    assert list(tmp_path.iterdir()) == [target]


def test_writers_at_once_are_refused_or_whole(tmp_path: Path) -> None:
    """Eight processes, each with one byte repeated: the file is always one of theirs."""
    code = (
        "import sys; from pathlib import Path\n"
        "from converter.output.atomic_file import AtomicFile\n"
        "from converter.errors import OutputError\n"
        "for _ in range(20):\n"
        "    try:\n"
        "        with AtomicFile(Path(sys.argv[1])) as file:\n"
        "            for at in range(0, 40000, 100):\n"
        "                file.write_at(at, bytes([int(sys.argv[2])]) * 100)\n"
        "            file.commit()\n"
        "    except OutputError as error:\n"
        "        assert 'another conversion is writing it' in str(error), error\n"
    )
    target = tmp_path / "m"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(target), str(index)], cwd=ROOT)
        for index in range(8)
    ]
    seen = 0
    while any(process.poll() is None for process in processes):
        if target.exists():
            content = target.read_bytes()
            assert len(content) == 40000
            assert len(set(content)) == 1
            seen += 1
    assert [process.returncode for process in processes] == [0] * 8
    assert seen
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from converter.output.atomic_file import AtomicFile\n"
        "with AtomicFile(Path(sys.argv[1])) as file:\n"
        "    file.write_at(5000, b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "m"
    target.write_bytes(b"old")
    for ending in ("sweep", "write"):
        subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
        assert unfinished(target).stat().st_size == 5004
        assert target.read_bytes() == b"old"
        if ending == "sweep":
            sweep(target)
            assert list(tmp_path.iterdir()) == [target]
    with AtomicFile(target) as file:
        file.write_at(0, b"new")
        file.commit()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_else_has_the_name_of_the_unfinished_file_is_refused(
    tmp_path: Path, kind: str
) -> None:
    target, mine = tmp_path / "m", tmp_path / "mine"
    mine.write_bytes(b"mine")
    if kind == "link":
        unfinished(target).symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(unfinished(target))
    else:
        unfinished(target).mkdir()
    with pytest.raises(OutputError):
        AtomicFile(target).__enter__()
    assert mine.read_bytes() == b"mine"
    assert not target.exists()


def test_a_seal_may_refuse_and_is_followed_by_what_it_returns(tmp_path: Path) -> None:
    target = tmp_path / "m"

    def refuse(_path: Path) -> Callable[[], None]:
        raise ValueError("not these bytes")

    def write(seal: Seal) -> None:
        with AtomicFile(target) as file:
            file.write_at(0, b"x")
            file.commit(seal)

    with pytest.raises(ValueError, match="not these bytes"):
        write(refuse)
    assert list(tmp_path.iterdir()) == []
    there: list[bool] = []

    def seal(path: Path) -> Callable[[], None]:
        there.append(path.read_bytes() == b"x" and not target.exists())
        return lambda: there.append(target.exists())

    write(seal)
    assert there == [True, True]
