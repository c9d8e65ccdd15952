"""Addresses that people copy out of a browser, a README or a `git clone`, in place of an id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

_HUBS = ("huggingface.co", "hf.co")
_OTHER_PAGES = ("datasets", "spaces", "collections", "papers", "docs", "blog")
_FILE_PAGES = ("blob", "resolve", "raw")


@dataclass(frozen=True)
class Address:
    """What an address of the hub names.

    Attributes:
        model: `org/name`, with what stood behind a colon; None where it is no model's page.
        revision: branch, tag or commit; None for the main branch.
        path: a file or a folder in the repository; None for the whole.
    """

    model: str | None
    revision: str | None = None
    path: str | None = None


def parse_address(text: str) -> Address | None:
    """`text` as an address on the hub or on the mirror in HF_ENDPOINT; None if it is none.

    It may be `org/name`, `org/name.git`, `org/name/tree/REV`, `org/name/blob/REV/FILE`, the same
    with `resolve` or `raw`, or another page of the model. A repository's page names the file that
    is shown on it in its query.
    """
    found = _parts(text)
    if found is None:
        return None
    parts, shown_file = found
    if parts[:1] == ["models"]:
        parts = parts[1:]
    if len(parts) < 2 or parts[0] in _OTHER_PAGES:
        return Address(None)
    model, (page, *rest) = f"{parts[0]}/{parts[1].removesuffix('.git')}", parts[2:] or ["tree"]
    if page != "tree" and page not in _FILE_PAGES:
        return Address(model)  # its discussions, its commits
    words = 3 if rest[:1] == ["refs"] else 1  # refs/pr/1
    revision: str | None
    revision, path = "/".join(rest[:words]), "/".join(rest[words:])
    revision = None if revision in ("", "main") else revision
    return Address(model, revision, path or shown_file)


def _parts(text: str) -> tuple[list[str], str | None] | None:
    """The parts of the path and the file that is shown, if the host is a hub's."""
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "https", text.replace("git@hf.co:", "hf.co/", 1)
    if scheme.lower() == "hf":
        return [unquote(part) for part in rest.split("/") if part], None
    try:
        url = urlsplit(f"{scheme}://{rest}")
        mirror = urlsplit(os.environ.get("HF_ENDPOINT") or "")
    except ValueError:  # an impossible host
        return None
    host, path = url.netloc.rpartition("@")[2].lower().removeprefix("www."), url.path
    if host and host == mirror.netloc.lower():
        path = path.removeprefix(mirror.path)
    elif host not in _HUBS:
        return None
    shown_file = parse_qs(url.query).get("show_file_info", [None])[0]
    return [unquote(part) for part in path.split("/") if part], shown_file
