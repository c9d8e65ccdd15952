"""A folder for files that nobody keeps: gone afterwards, however that comes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converter.output.atomic_file import lock

_OPEN = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new private folder in `parent` (default: the system's temporary one) while it is used.

    It is locked by its process. What a killed one left is not: the next call with the same prefix
    and parent removes it. Where there are no locks, nobody can know, and it stays.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    with contextlib.suppress(OSError):  # a folder that may be written, but not listed
        for path in place.glob(f"{prefix}*"):
            _sweep(path)
    folder, fd = _make_locked(prefix, place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if fd is not None:
            os.close(fd)


def _make_locked(prefix: str, place: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        if os.name == "nt":  # which opens no folders
            return folder, None
        # Another process may have swept it before the lock was ours.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, _OPEN)
            if lock(fd) is not False and folder.exists():
                return folder, fd
            os.close(fd)


def _sweep(folder: Path) -> None:
    """Remove a folder that no process holds."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, _OPEN)
        try:
            if lock(fd):  # not where there are none: somebody may use it
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(fd)
