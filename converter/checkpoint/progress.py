"""Progress of a download on stderr: bars on a terminal, a line per file elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class DownloadProgress:
    """What a download reports to. This base class says nothing: it is what `--quiet` gets."""

    def start_file(self, name: str, size: int | None, already: int) -> None:
        """A file of `size` bytes begins; `already` of them are on disk from an earlier run."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the current file are here (negative when it starts over)."""

    def end_file(self) -> None:
        """The current file is complete."""


class _Lines(DownloadProgress):
    def __init__(self, title: str, files: int, total: int) -> None:
        self._files = files
        self._done = 0
        self._current = ""
        write_line(f"{title}: {_count(files)}, {human_size(total)}")

    def start_file(self, name: str, size: int | None, already: int) -> None:
        self._current = f"{name}  {human_size(size or 0)}"
        if already:
            write_line(f"  {name}: continuing at {human_size(already)}")

    def end_file(self) -> None:
        self._done += 1
        write_line(f"  [{self._done}/{self._files}] {self._current}")


class _Bars(DownloadProgress):
    def __init__(self, bars: Progress, title: str, files: int, total: int) -> None:
        self._bars = bars
        self._total = bars.add_task(f"{title} ({_count(files)})", total=total)
        self._file = self._total

    def start_file(self, name: str, size: int | None, already: int) -> None:
        self._file = self._bars.add_task(f"  {name}", total=size, completed=already)
        self._bars.advance(self._total, already)

    def advance(self, count: int) -> None:
        self._bars.advance(self._file, count)
        self._bars.advance(self._total, count)


@contextlib.contextmanager
def download_progress(
    title: str, files: int, total: int, quiet: bool
) -> Iterator[DownloadProgress]:
    """Report a download of `files` files with `total` bytes together, under `title`."""
    if quiet:
        yield DownloadProgress()
    elif not sys.stderr.isatty():
        yield _Lines(title, files, total)
    else:
        with byte_bars() as bars:
            yield _Bars(bars, title, files, total)


def byte_bars(transient: bool = False) -> Progress:
    """Bars on a terminal's stderr: bytes, rate, time left; `transient` ones leave no trace."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        # Names come from strangers: they are not markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=transient)


def human_size(size: float) -> str:
    """Return a number of bytes as people write it: `98 MB`, `1.2 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _count(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def write_line(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
