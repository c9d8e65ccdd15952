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
    not_written,
    open_locked,
    read_at,
    unfinished,
    write_at,
)
from converter.output.process import signals_later

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class AtomicFolder:
    """A folder whose files are written in any order, and appear together or not at all.

    They go to a sibling of a fixed name, locked as long as somebody writes it; `commit` syncs them
    and renames the folder. What a killed process left is taken over by the next one.

    Args:
        refusal: why a folder that has the name must not be replaced, None where it may; it is not
            asked of an empty one.

    Raises:
        OutputError: the folder cannot be written, the disk is full, another process writes the same
            one, or there is one with the name that must not be replaced.
    """

    def __init__(self, target: Path, refusal: Callable[[Path], str | None]) -> None:
        # A link stays one: what it points to is replaced.
        self.target = target = Path(os.path.realpath(target)) if target.is_symlink() else target
        self._refusal = refusal
        self._temporary = unfinished(target)
        self._fd: int | None = None  # the locked folder's
        self._seeking = threading.Lock()
        self._files: dict[str, int] = {}
        self._made: list[Path] = []  # folders that were missing, innermost first

    def __enter__(self) -> AtomicFolder:
        try:
            require_replaceable(self.target, self._refusal)
            folders = (self.target.parent, *self.target.parent.parents)
            self._made = [folder for folder in folders if not folder.exists()]
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with signals_later():
                self._fd = self._open()
            for left in list(self._temporary.iterdir()):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except BaseException as error:
            with signals_later():
                self._abandon()
            if isinstance(error, OSError):
                raise not_written(self.target, error) from error
            raise
        return self

    def _open(self) -> int | None:
        """The unfinished folder, locked; None where folders cannot be opened (Windows)."""
        if not hasattr(os, "O_DIRECTORY"):
            self._temporary.mkdir(exist_ok=True)
            return None

        def create(path: Path) -> int:
            with contextlib.suppress(FileExistsError):
                path.mkdir()
            return os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)

        return open_locked(self.target, create)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with signals_later():  # of somebody in a hurry, who asks twice
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
            require_replaceable(self.target, self._refusal)
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
        with contextlib.suppress(OSError):  # the new one has its name; the next one tries again
            _remove(before)

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


def require_replaceable(target: Path, refusal: Callable[[Path], str | None]) -> None:
    """Raise OutputError where something has the name that must stay; see `AtomicFolder`."""
    if not os.path.lexists(target):
        return
    try:
        if target.is_dir():
            why = refusal(target) if any(target.iterdir()) else None
        else:
            why = "it is there, and is no folder"
    except OSError as error:
        raise not_written(target, error) from error
    if why is not None:
        raise OutputError(str(target), why, "choose a new or an empty folder with --output-dir")


def _remove(folder: Path) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)
