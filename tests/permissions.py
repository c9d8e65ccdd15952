"""Files and folders that may not be read, for tests that run as root, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Nobody may read `path`, nor enter it. What is imported meanwhile may not be found."""
    before, is_root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if is_root:  # who may read everything
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(before)
