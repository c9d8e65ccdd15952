"""Caches take memory for the tokens that are in them, and not for all that could be.

The engine fills a conversation's caches with zeros before it begins, whatever their length, so all
of their memory is in use from then on: 7.5 GB for 32768 tokens of Qwen3-0.6B. Pages that hold zeros
alone can be given back: the system has new ones, zeros as well, where one is written to.
"""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

# begin-end, for reading and writing, private, and no file's.
_OWN_MEMORY = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s+(?:\[heap\])?$")
_LEAST_BYTES = 1 << 20


def give_back() -> int | None:
    """Give pages of zeros back to the system while the engine does nothing; how many bytes.

    None, and nothing is done, where there was no C compiler, and on systems other than Linux, which
    say less about a process's memory.
    """
    from converter.kernels import give_back_zeros, is_compiled

    if sys.platform != "linux" or not is_compiled():
        return None

    given = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if (found := _OWN_MEMORY.match(line)) is not None:
            begin, end = (int(address, 16) for address in found.groups())
            if end - begin >= _LEAST_BYTES:
                given += give_back_zeros(begin, (end - begin) // mmap.PAGESIZE, mmap.PAGESIZE)
    return given
