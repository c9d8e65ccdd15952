"""What was typed in earlier chats: kept for its owner alone, and not for ever."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit.history import History

MOST = 1000  # messages
_MOST_BYTES = 1 << 20


def history_file() -> Path:
    """On Linux `~/.local/state/litert-lm-cli/history`."""
    from platformdirs import user_state_path

    return user_state_path("litert-lm-cli", appauthor=False) / "history"


class KeptHistory(History):
    """One message a line, in JSON; the last `MOST` are kept, and 1 MiB of them.

    Where the file cannot be read or written, the chat does without.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._shorten()

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        return [text for line in reversed(self._lines()) if isinstance(text := _parsed(line), str)]

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError), self._opened(self._path, os.O_APPEND) as fd:
            os.write(fd, json.dumps(string).encode() + b"\n")

    def _lines(self) -> list[bytes]:
        try:
            return self._path.read_bytes().splitlines(keepends=True)
        except OSError:
            return []

    def _shorten(self) -> None:
        lines = self._lines()
        kept, size = len(lines), 0
        while kept > max(0, len(lines) - MOST) and size + len(lines[kept - 1]) <= _MOST_BYTES:
            kept -= 1
            size += len(lines[kept])
        if kept:
            shorter = self._path.with_suffix(f".{os.getpid()}")
            with self._opened(shorter, os.O_TRUNC) as fd:
                os.write(fd, b"".join(lines[kept:]))
            shorter.replace(self._path)

    @staticmethod
    @contextlib.contextmanager
    def _opened(path: Path, how: int) -> Iterator[int]:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:  # cut off
        return None
