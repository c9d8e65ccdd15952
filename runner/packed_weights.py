"""A folder for the engine's packed weights that is gone once the model is loaded.

XNNPACK rearranges the weights before it uses them. With a cache file it does so once and maps the
file; without one it keeps a copy for every signature, seven of them (docs/runtime.md has figures).
The file is nearly as large as the model, so it may not stay on the user's disk unasked: it is
unlinked as soon as it is mapped, and the mapping lives on. What a process leaves that is killed
before that, the next one removes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converter.output.scratch import scratch_folder

NO_CACHE = ":nocache"  # the engine's word for it
_PREFIX = ".litert-lm-weights-"
# Packed float16 weights are float32, twice the file's size; int8 ones are as large as in the file.
_ROOM = 2.2


@contextlib.contextmanager
def packed_weights_folder(model: Path) -> Iterator[str]:
    """The engine's `cache_dir` while it loads `model`: beside it, or where there is room."""
    with contextlib.ExitStack() as stack:
        yield _enter_folder(stack, model)


def _enter_folder(stack: contextlib.ExitStack, model: Path) -> str:
    # Windows cannot remove a mapped file: better more memory than a copy left behind.
    if os.name == "nt":
        return NO_CACHE
    needed = model.stat().st_size * _ROOM
    for parent in (model.parent, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(parent).free > needed:
                return str(stack.enter_context(scratch_folder(_PREFIX, parent)))
    return NO_CACHE
