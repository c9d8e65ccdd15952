"""The access token for the hub: where it may stand, and what it may look like.

The token itself goes from here to the client's headers and nowhere else: no message, no log and no
file of ours holds it, and the client drops it when it is sent on to another host.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from converter.errors import SourceError

_FILE = "HF_TOKEN"
_LONGEST_FILE = 4096  # bytes: what is larger is something else


def find_token() -> tuple[str | None, str | None]:
    """Return the access token and the name of the place it is from; the first place counts.

    HF_TOKEN in the environment, a file HF_TOKEN in the current folder, one in its parent, the login
    of the hf tool.

    Raises:
        SourceError: what stands there cannot be a token, or not be read. The HTTP client would
            refuse it too, and print it.
    """
    for name in (_FILE, "HUGGING_FACE_HUB_TOKEN"):
        if found := os.environ.get(name, "").strip():
            return _checked(_bare(found), f"{name} in the environment")
    for path, place in (
        (Path(_FILE), "the file HF_TOKEN in this folder"),
        (Path("..", _FILE), "the file HF_TOKEN in the folder above"),
    ):
        if path.is_file():
            return _checked(_bare(_read(path, place)), place)
    from huggingface_hub import get_token

    found = get_token() or ""
    return _checked(found, "the hf tool's login") if found else (None, None)


def _read(path: Path, place: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(place, why, "make it readable, or remove it") from error
    return content.decode("latin-1").strip() if len(content) <= _LONGEST_FILE else ""


def _bare(token: str) -> str:
    """A token without what is copied along with it: quotes, the word before it in a header."""
    return re.sub(r"(?i)^bearer\s+", "", token.strip("\"'")).strip()


def _checked(token: str, place: str) -> tuple[str, str]:
    if not re.fullmatch(r"[!-~]+", token):
        why = "it holds characters that no access token has" if token else "it holds no token"
        raise SourceError(place, why, "set it again: one line, as the hub shows it")
    return token, place
