"""Compiles kernels.c beside this file: `python compile_kernels.py RESULT`.

`./setup` and the build of a wheel run it, in interpreters that have none of our packages. Without a
compiler there is no result and exit code 1: kernels.py does the same with numpy, more slowly.
CC names another compiler than `cc`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

# Without contraction of products and sums, so that it rounds as numpy does.
_FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")


def compile_kernels(library: Path) -> bool:
    """Whether `library` could be made."""
    source = Path(__file__).with_name("kernels.c")
    command = [*shlex.split(os.environ.get("CC") or "cc"), *_FLAGS, "-o", str(library), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:  # there is no such program
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(not compile_kernels(Path(sys.argv[1])))
