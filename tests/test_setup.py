"""./setup, as far as it goes without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A Python that takes its time to make an environment, says so, and then cannot.
SLOW = f"""#!/bin/sh
case "$*" in
    "-m venv "*) echo begin >> log; sleep 0.5; echo end >> log; exit 1 ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup", tmp_path)
    python = tmp_path / "python"
    python.write_text(SLOW)
    python.chmod(0o755)
    both = [
        subprocess.Popen(
            [tmp_path / "setup"],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(python)},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    for one in both:
        assert "cannot make virtual environments" in one.communicate(timeout=30)[1]
        assert one.returncode == 1
    assert (tmp_path / "log").read_text().split() == ["begin", "end", "begin", "end"]
