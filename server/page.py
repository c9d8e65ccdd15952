"""The page to chat on: files of this package, which use the interface that every client has.

A model's answer is hostile text. The page makes DOM nodes of it and never HTML; the policy below
has the browser hold it to that (`require-trusted-types-for`), and lets nothing in or out but what
this server itself has.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response

_FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # kept, but asked for each time: it changes with the program
}


class _File(NamedTuple):
    content: bytes
    tag: str


# Path to file. Nothing in a request becomes a path: it is looked up here.
_FILES = {
    f"/page/{path.relative_to(_FOLDER).as_posix()}": path
    for path in sorted(_FOLDER.rglob("*"))
    if path.is_file() and path.suffix in _TYPES
}
_FILES["/"] = _FILES.pop("/page/index.html")
PATHS = frozenset(_FILES)
"""What the page is made of. None of it is secret, and none needs a key."""


def response(path: str, known_tag: str | None) -> Response | None:
    """The file of a path, if there is one.

    Args:
        known_tag: the tag of what the browser has already.
    """
    if path not in _FILES:
        return None
    file = _read(_FILES[path])
    headers = {**_HEADERS, "ETag": file.tag}
    if known_tag == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=_TYPES[_FILES[path].suffix])


@cache
def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
