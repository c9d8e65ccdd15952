"""A file that appears only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from converter.errors import OutputError
from converter.output.process import signals_later

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed or replaced anyway
    fcntl = None  # type: ignore[assignment]

_SYNC_INTERVAL = 0.1  # seconds
# Bytes per system call. The larger the call, the larger the pieces of memory that Linux wants for
# its page cache, and a virtual machine's host may have taken those back: 1 MiB at once took up to
# ten times as long (benchmarks/README.md).
_WRITE_SIZE = 256 * 1024
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | _NO_LINK

# Called with where a complete file lies, before it has its name: what it raises keeps the file from
# getting it. What it returns is called as soon as the file has its name.
Seal = Callable[[Path], Callable[[], None]]


class AtomicFile:
    """A file that is written in any order, by any thread, and appears whole or not at all.

    The bytes go to a sibling of a fixed name, locked as long as somebody writes it; `commit` syncs
    and renames it. Leaving the context without a commit removes it, and the folders that were made
    for it. What a killed process left is not locked: the next one takes it over.

    Raises:
        OutputError: the folder cannot be made or written, the disk is full, or another process is
            writing the same file.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary: Path | None = None
        self._made: list[Path] = []  # folders that were missing, innermost first
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sync_error: OSError | None = None
        # A daemon, as an interrupt may come before anybody can end it.
        self._syncing = threading.Thread(target=self._sync_early, daemon=True)

    def __enter__(self) -> AtomicFile:
        try:
            folders = (self.target.parent, *self.target.parent.parents)
            self._made = [folder for folder in folders if not folder.exists()]
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with signals_later():
                self._fd = self._open()
                self._temporary = unfinished(self.target)
                os.ftruncate(self._fd, 0)
                self._syncing.start()
        except BaseException as error:
            with signals_later():
                self._abandon()
            if isinstance(error, OSError):
                raise self._error(error) from error
            raise
        return self

    def _open(self) -> int:
        """The unfinished file, locked."""

        def create(path: Path) -> int:
            fd = os.open(path, _CREATE, 0o666)  # less the umask
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise OSError(errno.EEXIST, f"{path} is no file")
            return fd

        return open_locked(self.target, create)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with signals_later():  # of somebody in a hurry, who asks twice
            self._abandon()

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset` bytes from the start; gaps read as zeros."""
        try:
            write_at(self._fd, offset, data, self._lock)
        except OSError as error:
            raise self._error(error) from error

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """What was written there."""
        try:
            return read_at(self._fd, offset, nbytes, self._lock)
        except OSError as error:
            raise self._error(error) from error

    def _sync_early(self) -> None:
        """Let the disk work while there is more to come: at the end there is less to wait for."""
        try:
            while not self._ended.wait(_SYNC_INTERVAL):
                os.fsync(self._fd)
        except OSError as error:  # the system tells it once
            self._sync_error = error

    def _end_sync(self) -> None:
        with signals_later():
            self._ended.set()
        if self._syncing.ident is not None:
            self._syncing.join()
        if self._sync_error is not None:
            raise self._sync_error

    def commit(self, seal: Seal | None = None) -> None:
        """Make the file durable and give it its name."""
        assert self._temporary is not None
        named = seal(self._temporary) if seal is not None else None
        try:
            self._end_sync()
            os.fsync(self._fd)
            if fcntl is None:  # Windows renames no open file
                os.close(self._fd)
            self._temporary.replace(self.target)
            if named is not None:
                named()
        except OSError as error:
            raise self._error(error) from error
        self._temporary = None
        if fcntl is not None:
            os.close(self._fd)  # and with it the lock
        self._made = []
        # The new name is durable only once its folder is; not every file system can be asked.
        if hasattr(os, "O_DIRECTORY"):
            with contextlib.suppress(OSError):
                folder = os.open(self.target.parent, os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def replace_by_link(self, source: Path) -> bool:
        """Make `target` a hard link to `source`; False where the file system cannot."""
        assert self._temporary is not None
        link = self._temporary.with_suffix(".link")
        try:
            os.link(source, link)
            link.replace(self.target)
        except OSError:
            return False
        finally:
            # Still there after a failure, and where `target` was a link to `source` already.
            link.unlink(missing_ok=True)
        return True

    def _abandon(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._end_sync()
            with contextlib.suppress(OSError):  # commit may have closed it before it failed
                os.close(self._fd)
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
        for folder in self._made:
            with contextlib.suppress(OSError):  # somebody put something into it
                folder.rmdir()

    def _error(self, error: OSError) -> OutputError:
        return not_written(self.target, error)


def write_at(
    fd: int, offset: int, data: bytes | bytearray | memoryview, seeking: threading.Lock
) -> None:
    """Write all of `data` at `offset` bytes from the start of an open file.

    Args:
        seeking: the file's, for where there is no positioned write (Windows).
    """
    view = memoryview(data).cast("B")
    while view:
        piece = view[:_WRITE_SIZE]
        if hasattr(os, "pwrite"):
            written = os.pwrite(fd, piece, offset)
        else:
            with seeking:
                os.lseek(fd, offset, os.SEEK_SET)
                written = os.write(fd, piece)
        view, offset = view[written:], offset + written


def read_at(fd: int, offset: int, nbytes: int, seeking: threading.Lock) -> bytes:
    """Read from an open file; see `write_at`."""
    if hasattr(os, "pread"):
        return os.pread(fd, nbytes, offset)
    with seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, nbytes)


def not_written(target: Path, error: OSError) -> OutputError:
    """Why an output cannot be written."""
    if isinstance(error, FileExistsError):  # mkdir's word for a file in place of the folder
        error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return OutputError(
        str(target),
        error.strerror or str(error),
        "choose a writable folder with enough room with --output-dir",
    )


def open_locked(target: Path, create: Callable[[Path], int]) -> int:
    """Open what an output is until it is complete, locked.

    Args:
        create: opens it, and makes it where it is not there.

    Raises:
        OutputError: another process holds its lock.
    """
    while True:
        fd = create(unfinished(target))
        try:
            if lock(fd) is False:
                raise OutputError(
                    str(target),
                    "another conversion is writing it",
                    "wait for that one, or choose another folder with --output-dir",
                )
            # Its writer may have given it its name, or removed it, before the lock was ours.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(unfinished(target))):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def unfinished(target: Path) -> Path:
    """Where a file lies until it is complete."""
    return target.with_name(f".{target.name}.partial")


def sweep(target: Path) -> bool:
    """Remove what a killed process left of `target`; False where somebody is writing it now."""
    try:
        fd = os.open(unfinished(target), os.O_RDWR | _NO_LINK)
    except OSError:
        return True
    try:
        if lock(fd) is False:
            return False
        with contextlib.suppress(OSError):
            unfinished(target).unlink()
        return True
    finally:
        os.close(fd)


def lock(fd: int) -> bool | None:
    """Lock a file until it is closed, by its process's death too.

    Returns:
        False where it is locked, None where there are no locks (Windows, some file systems).
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def link_or_copy(source: Path, target: Path, seal: Seal) -> None:
    """Let `target` be `source` too: without a second copy where the file system can.

    Raises:
        OutputError: `target` cannot be written.
    """
    with AtomicFile(target) as writer:  # makes the folder, or says why it cannot be written
        named = seal(source)
        if writer.replace_by_link(source):
            named()
            return
        with source.open("rb") as reader:
            offset = 0
            while block := reader.read(1 << 22):
                writer.write_at(offset, block)
                offset += len(block)
        writer.commit(lambda _: named)
