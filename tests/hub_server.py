"""A small Hugging Face hub on loopback, for the real huggingface_hub client.

It serves the folder `root`: `root/{org}/{name}/...` is a model. It speaks what the client asks:
`/api/models/{id}[/revision/{rev}]`, `/{id}/resolve/{rev}/{file}` with ETag, X-Repo-Commit,
Content-Length and Range, and the hub's error codes; and it takes uploads (`tests.hub_uploads`).
Faults are attributes that a test sets.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_uploads import UploadHandler

LFS_SUFFIXES = (".safetensors", ".gguf", ".litertlm", "tokenizer.json", ".bin")


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    authorization: str | None
    range: str | None


class HubServer:
    """A running server; use it as a context manager.

    Attributes:
        gated: ids whose files need `token`, as on the hub: the listing is public.
        private: ids that do not exist without `token`.
        token: the one access token that is accepted.
        status: answers to give instead, by the path's beginning.
        cut_after: the body of a file ends after this many bytes, by file name; used once each.
        retry_after: the header of that name in answers of status 429.
        trickle: bodies come in pieces of so many bytes, with so many seconds between them.
        stall_after: nothing more comes after this many bytes of a file, by name; used once each.
        corrupt: names of files whose first byte is served changed.
        knows_ranges: whether a Range that is asked for is kept to.
        cards: what a model's card says, by its id.
        files_at: another server's address, to which files are redirected, as to the hub's CDN.
        namespaces: organisations that `token` may write to; None for all.
        large: what the large file storage holds, by its SHA-256.
        part_size: larger files are sent to it in parts of so many bytes.
        cut_uploads: the next such transfers end after so many bytes each, without an answer.
        fails: the next answers to what is posted, by the path's beginning.
        received: bytes that came to the large file storage.
        commits: the names of the files of every commit.
        seen: all requests.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.token = "hf_theRightToken"
        self.status: dict[str, int] = {}
        self.cut_after: dict[str, int] = {}
        self.retry_after: str | None = None
        self.trickle: tuple[int, float] | None = None
        self.stall_after: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.cards: dict[str, dict[str, object]] = {}
        self.files_at: str | None = None
        self.knows_ranges = True
        self.namespaces: set[str] | None = None
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size = 1 << 30
        self.cut_uploads: list[int] = []
        self.fails: dict[str, list[int]] = {}
        self.received = 0
        self.commits: list[list[str]] = []
        self.seen: list[Seen] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fetched(self) -> list[str]:
        """The names of the files whose bodies were asked for, in order."""
        return [
            item.path.rpartition("/")[2]
            for item in self.seen
            if item.method == "GET" and "/resolve/" in item.path
        ]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def commit(self, repo_id: str) -> str:
        """The commit of a model: it changes with the content."""
        digest = hashlib.sha1()
        for path in self.listed(repo_id):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def listed(self, repo_id: str) -> list[Path]:
        return sorted(path for path in (self.root / repo_id).rglob("*") if path.is_file())

    def tree(self, repo_id: str, revision: str) -> Path:
        """The folder of a branch's files."""
        if revision == "main":
            return self.root / repo_id
        return self.root.parent / "branches" / repo_id / revision

    def may_write(self, repo_id: str) -> bool:
        return self.namespaces is None or repo_id.partition("/")[0] in self.namespaces


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # whoever asked may be killed
            super().handle_error(request, client_address)


class _Handler(UploadHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:  # noqa: N802 - the server's own name
        self._answer(body=False)

    def do_GET(self) -> None:  # noqa: N802
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.hub.seen.append(Seen(self.command, path, authorization, self.headers.get("Range")))
        for start, status in self.hub.status.items():
            if path.startswith(start):
                return self._fail(status)
        if authorization not in (None, f"Bearer {self.hub.token}"):
            return self._fail(401, message="Invalid credentials in Authorization header")
        if path == "/api/models":
            return self._search()
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        if match is None:
            return self._fail(404)
        repo_id, revision = match.group(1), match.group(2)
        may_read = authorization is not None
        if not (self.hub.root / repo_id).is_dir() or (repo_id in self.hub.private and not may_read):
            # The hub does not tell strangers whether a model exists.
            return self._fail(404 if may_read else 401, "RepoNotFound")
        is_branch = revision is None or self.hub.tree(repo_id, revision).is_dir()
        if not is_branch and revision != self.hub.commit(repo_id):
            return self._fail(404, "RevisionNotFound")
        if api:
            return self._list(repo_id)
        if repo_id in self.hub.gated and not may_read:
            return self._fail(401, "GatedRepo")
        return self._file(repo_id, file.group(3), body)

    def _search(self) -> None:
        """Models whose name contains `search`, of `author`."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        found = []
        for path in sorted(self.hub.root.glob("*/*")):
            repo_id = path.relative_to(self.hub.root).as_posix()
            if (
                query.get("search", "").lower() in repo_id.lower()
                and query.get("author", path.parent.name).lower() == path.parent.name.lower()
                and repo_id not in self.hub.private
            ):
                found.append({"id": repo_id})
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _list(self, repo_id: str) -> None:
        siblings = []
        for path in self.hub.listed(repo_id):
            content = path.read_bytes()
            entry: dict[str, object] = {
                "rfilename": path.relative_to(self.hub.root / repo_id).as_posix(),
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            }
            if path.name.endswith(LFS_SUFFIXES):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        listing = {
            "id": repo_id,
            "sha": self.hub.commit(repo_id),
            "private": repo_id in self.hub.private,
            "siblings": siblings,
        }
        if repo_id in self.hub.cards:
            listing["cardData"] = self.hub.cards[repo_id]
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _file(self, repo_id: str, name: str, body: bool) -> None:
        path = self.hub.root / repo_id / name
        if not path.is_file():
            return self._fail(404, "EntryNotFound")
        if self.hub.files_at is not None:
            return self._send(302, b"", {"Location": self.hub.files_at + self.path})
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit(repo_id),
            "Accept-Ranges": "bytes",
        }
        if path.name in self.hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        status, start = 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.hub.knows_ranges:
            status, start = 206, int(asked.group(1))
            stop = min(int(asked.group(2) or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[:stop]
        cut = self.hub.cut_after.pop(path.name, None) if body else None
        stall = self.hub.stall_after.pop(path.name, None) if body else None
        self._send(status, content[start:], headers, body, stall or cut)
        if stall is not None:
            self.wfile.flush()
            time.sleep(5)  # longer than a client waits for the next piece
        return None

    def _fail(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if status == 429 and self.hub.retry_after is not None:
            headers["Retry-After"] = self.hub.retry_after
        self._send(status, b"", {key: value for key, value in headers.items() if value})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        body: bool = True,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            content = content if cut is None else content[:cut]
            size, pause = self.hub.trickle or (max(1, len(content)), 0)
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                time.sleep(pause)
        if cut is not None:
            self.close_connection = True
