"""Records a real chat with the demo model as docs/demo.svg, the picture in the README.

venv/bin/python -m docs.record
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("What is the capital of France?", "Why is the sky blue? Answer in one sentence.")
WIDTH = 92
_TIMEOUT = 120.0  # seconds until the program must have said something


def record() -> str:
    """Everything a terminal shows during the chat, prompts typed like a person types them."""
    command = ["./litert-lm-cli", "run", "demo", "--max-tokens", "80"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        # Plain lines: an editor would draw its own over and over.
        os.environ |= {"COLUMNS": str(WIDTH), "TERM": "dumb"}
        os.execvp(command[0], command)
    shown = ""
    for prompt in (*PROMPTS, "\x04"):
        shown = _read_until(terminal, shown, "\n> ")
        os.write(terminal, prompt.encode() if prompt == "\x04" else f"{prompt}\n".encode())
    shown = _read_until(terminal, shown, None)
    os.waitpid(pid, 0)
    return f"$ {' '.join(command)}\n{shown}"


def _read_until(terminal: int, shown: str, mark: str | None) -> str:
    seen = len(shown)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux reports the end of a terminal this way
            return shown
        if not data:
            return shown
        shown += data.decode(errors="replace").replace("\r\n", "\n")
        if mark is not None and mark in shown[seen:]:
            return shown
    sys.exit("the chat did not answer in time")


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(record().strip()))
    svg = console.export_svg(title="litert-lm-cli")
    # The font would come from somebody's server; any monospace font on the reader's side will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    (ROOT / "docs" / "demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
