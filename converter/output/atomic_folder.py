"""A folder that appears only when all of it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from converter.errors import OutputError
from converter.output.atomic_file import (
    Seal,
    lock,
    not_written,
    read_at,
    unfinished,
    write_at,
    written_elsewhere,
)

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class AtomicFolder:
    """A folder whose files are written in any order, and appear together or not at all.

    They go to a sibling of a fixed name, locked as long as somebody writes it; `commit` syncs them
    and renames the folder. What a killed process left is taken over by the next one.

    Args:
        is_ours: whether a folder that has the name may be replaced; an empty one always is.

    Raises:
        OutputError: the folder cannot be written, the disk is full, another process writes the same
            one, or there is one with the name that must not be replaced.
    """

    def __init__(self, target: Path, is_ours: Callable[[Path], bool]) -> None:
        self.target = target
        self._is_ours = is_ours
        self._temporary = unfinished(target)
        self._fd: int | None = None  # the locked folder's
        self._seeking = threading.Lock()
        self._files: dict[str, int] = {}
        self._made: list[Path] = []  # folders that were missing, innermost first

    def __enter__(self) -> AtomicFolder:
        try:
            self._require_replaceable()
            folders = (self.target.parent, *self.target.parent.parents)
            self._made = [folder for folder in folders if not folder.exists()]
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._fd = self._open()
            for left in list(self._temporary.iterdir()):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            self._abandon()
            raise not_written(self.target, error) from error
        except BaseException:
            self._abandon()
            raise
        return self

    def _open(self) -> int | None:
        """The unfinished folder, locked; None where folders cannot be opened (Windows)."""
        while True:
            with contextlib.suppress(FileExistsError):
                self._temporary.mkdir()
            if not hasattr(os, "O_DIRECTORY"):
                return None
            fd = os.open(self._temporary, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if lock(fd) is False:
                    raise written_elsewhere(self.target)
                # Its writer may have given it its name, or removed it, before the lock was ours.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(self._temporary)):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._abandon()

    def write(self, name: str, content: bytes, is_program: bool = False) -> None:
        """Write a whole file; `name` is its path in the folder."""
        self.create(name)
        self.write_at(name, 0, content)
        if is_program:
            (self._temporary / name).chmod(0o755)

    def create(self, name: str, nbytes: int = 0) -> None:
        """Make a file of so many zeros, and the folders above it."""
        path = self._temporary / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = os.open(path, _CREATE, 0o666)  # less the umask
            os.ftruncate(self._files[name], nbytes)
        except OSError as error:
            raise not_written(self.target, error) from error

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset` bytes from the start of a file; gaps read as zeros."""
        try:
            write_at(self._files[name], offset, data, self._seeking)
        except OSError as error:
            raise not_written(self.target, error) from error

    def read_at(self, name: str, offset: int, nbytes: int) -> bytes:
        """What was written there."""
        try:
            return read_at(self._files[name], offset, nbytes, self._seeking)
        except OSError as error:
            raise not_written(self.target, error) from error

    def commit(self, seal: Seal | None = None) -> None:
        """Make all files durable and give the folder its name; see `AtomicFile.commit`."""
        try:
            for fd in self._files.values():
                os.fsync(fd)
            self._close()
            named = seal(self._temporary) if seal is not None else None
            self._require_replaceable()
            self._give_name()
            if named is not None:
                named()
        except OSError as error:
            raise not_written(self.target, error) from error
        self._made = []

    def _give_name(self) -> None:
        """Rename the folder; no system puts it in another one's place at once."""
        before = self.target.with_name(f".{self.target.name}.replaced")
        _remove(before)
        if self.target.exists():
            self.target.rename(before)
        try:
            self._temporary.rename(self.target)
        except BaseException:
            if before.exists() and not self.target.exists():
                before.rename(self.target)
            raise
        _remove(before)

    def _require_replaceable(self) -> None:
        """Raise OutputError where something has the name that is none of ours."""
        if not os.path.lexists(self.target):
            return
        if self.target.is_dir() and (not any(self.target.iterdir()) or self._is_ours(self.target)):
            return
        raise OutputError(
            str(self.target),
            "it is there, and holds other things than packages",
            "choose a new or an empty folder with --output-dir",
        )

    def _close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._close()
        if self._fd is not None:  # else it is another's
            with contextlib.suppress(OSError):
                _remove(self._temporary)
            os.close(self._fd)
            self._fd = None
        for folder in self._made:
            with contextlib.suppress(OSError):  # somebody put something into it
                folder.rmdir()


def _remove(folder: Path) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)
