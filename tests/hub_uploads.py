"""What the hub on loopback answers to uploads: repositories, branches, large files, commits.

As huggingface_hub asks it (`HfApi.create_repo`, `_commit_api.py`, `lfs.py`): each file's way is
settled by `preupload`; large ones go to git-LFS's batch endpoint, which gives addresses for those
that are not stored yet, in one piece or in parts; a commit names them by their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from tests.hub_server import HubServer

LICENSES = {"apache-2.0", "mit", "gemma", "llama3.2", "other"}  # some of those that the hub knows
_LARGE = 10_000_000  # bytes; binary ones go to the large file storage, too


class UploadHandler(BaseHTTPRequestHandler):
    """The part of a handler that takes uploads."""

    hub: HubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        path = self._arrived()
        for start, statuses in self.hub.fails.items():
            if path.startswith(start) and statuses:
                return self._fail(statuses.pop(0))
        if path.startswith("/lfs/complete/"):
            return self._complete(path.rpartition("/")[2], json.loads(body))
        authorization = self.headers.get("Authorization")
        if authorization != f"Bearer {self.hub.token}":
            return self._fail(401, message="Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/lfs/verify/"):
            said = json.loads(body)
            is_right = len(self.hub.large.get(said["oid"], b"")) == said["size"]
            return self._send(200 if is_right else 404, b"{}", {})
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
        ):
            match = re.fullmatch(pattern, path)
            if match is None:
                continue
            if not (self.hub.root / match[1]).is_dir():
                return self._fail(404, "RepoNotFound")
            if not self.hub.may_write(match[1]):
                return self._fail(403, message="you may not write")
            return answer(body, *match.groups())
        return self._fail(404)

    def do_PUT(self) -> None:
        path = self._arrived()
        match = re.fullmatch(r"/lfs/put/([0-9a-f]{64})(?:/(\d+))?", path)
        if match is None or self.headers.get("Authorization") is not None:
            return self._fail(400)  # a signed address, which takes no token
        size = int(self.headers["Content-Length"])
        cut = self.hub.cut_uploads.pop(0) if self.hub.cut_uploads else None
        data = self.rfile.read(size if cut is None else min(cut, size))
        self.hub.received += len(data)
        if cut is not None:
            self.close_connection = True  # without an answer
            return None
        self.hub.parts[match[1], int(match[2] or 1)] = data
        if match[2] is None:
            self._store(match[1], 1)
        return self._send(200, b"", {"ETag": hashlib.md5(data).hexdigest()})

    def _arrived(self) -> str:
        from tests.hub_server import Seen

        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(self.command, path, self.headers.get("Authorization"), None))
        return path

    def _chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _validate(self, content: str) -> None:
        front = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        said = yaml.safe_load(front[1]) if front else {}
        licenses = said.get("license", [])
        licenses = licenses if isinstance(licenses, list) else [licenses]
        errors = [{"message": f'"license" is not {x}'} for x in licenses if x not in LICENSES]
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def _create(self, said: dict[str, Any]) -> None:
        repo_id = f"{said['organization']}/{said['name']}"
        if not self.hub.may_write(repo_id):
            return self._fail(403, message=f"no rights under the namespace {said['organization']}")
        if (self.hub.root / repo_id).is_dir():
            said = {
                "error": "You already created this model repo",
                "url": f"{self.hub.url}/{repo_id}",
            }
            return self._json(said, 409)
        (self.hub.root / repo_id).mkdir(parents=True)
        if said.get("visibility") == "private":
            self.hub.private.add(repo_id)
        return self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def _branch(self, _body: bytes, repo_id: str, name: str) -> None:
        folder = self.hub.tree(repo_id, name)
        if folder.is_dir():
            return self._json({"error": "Reference already exists"}, 409)
        folder.mkdir(parents=True)
        return self._json({})

    def _preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        from tests.hub_server import LFS_SUFFIXES

        if not self.hub.tree(repo_id, revision).is_dir():
            return self._fail(404, "RevisionNotFound")
        files = []
        for file in json.loads(body)["files"]:
            is_large = (
                file["path"].endswith(LFS_SUFFIXES)
                or file["size"] >= _LARGE
                or b"\0" in base64.b64decode(file["sample"])
            )
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            there = self.hub.tree(repo_id, revision) / file["path"]
            if there.is_file():
                content = there.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                answer["oid"] = hashlib.sha256(content).hexdigest() if is_large else blob
            files.append(answer)
        return self._json({"files": files})

    def _batch(self, body: bytes, _repo_id: str) -> None:
        said = json.loads(body)
        assert said["operation"] == "upload"
        objects = []
        for item in said["objects"]:
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.large:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/put/{oid}"}
                if size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    upload = {
                        "href": f"{self.hub.url}/lfs/complete/{oid}",
                        "header": {"chunk_size": str(self.hub.part_size)}
                        | {
                            str(i): f"{self.hub.url}/lfs/put/{oid}/{i}" for i in range(1, count + 1)
                        },
                    }
                verify = {"href": f"{self.hub.url}/lfs/verify/{oid}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self._json({"objects": objects})

    def _complete(self, oid: str, said: dict[str, Any]) -> None:
        for part in said["parts"]:
            data = self.hub.parts[oid, part["partNumber"]]
            if part["etag"] != hashlib.md5(data).hexdigest():
                return self._fail(400)
        self._store(oid, len(said["parts"]))
        return self._json({})

    def _store(self, oid: str, count: int) -> None:
        content = b"".join(self.hub.parts.pop((oid, i)) for i in range(1, count + 1))
        if hashlib.sha256(content).hexdigest() == oid:
            self.hub.large[oid] = content

    def _commit(self, body: bytes, repo_id: str, revision: str) -> None:
        folder = self.hub.tree(repo_id, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        written: dict[Path, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                written[folder / value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self._fail(400, message="the large file is not there")
                written[folder / value["path"]] = self.hub.large[value["oid"]]
        for path, content in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.hub.commits.append([path.name for path in written])
        oid = self.hub.commit(repo_id)
        url = f"{self.hub.url}/{repo_id}/commit/{oid}"
        return self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str = "", message: str = "") -> None:
        raise NotImplementedError

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        raise NotImplementedError
