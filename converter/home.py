"""Where this copy of the project keeps what it makes.

A checkout keeps it beside its code. An installed copy may lie where nobody may write, and is
replaced as a whole with its environment: it keeps everything in the user's own folder.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IS_CHECKOUT = (ROOT / "setup").is_file()


def data_folder() -> Path:
    """The folder of a checkout, or of the user's data: on Linux `~/.local/share/litert-lm-cli`."""
    if IS_CHECKOUT:
        return ROOT
    from platformdirs import user_data_path

    return user_data_path("litert-lm-cli", appauthor=False)
