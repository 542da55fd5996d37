"""A server that speaks so much of the Hugging Face Hub's HTTP interface that its real client can push and fetch models.

Repositories are kept in memory. What has the token ``user-token`` is the user ``user``, and may write to ``user/...``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "user-token"


@dataclass
class Repository:
    """Files by commit, the newest last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add or replace files; the hash of the commit."""
        before = next(reversed(self.commits.values()), {})
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = before | files
        return digest

    def find(self, revision: str) -> str | None:
        """The commit that a revision means."""
        if revision == "main" and self.commits:
            return next(reversed(self.commits))
        return revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """``requests`` are those that came, as "METHOD path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    """A server that runs until the block ends."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request. Answers have the fields that the client reads."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.broken:
            return self._answer(500, {"error": "out of order"})
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return action(self, *found.groups())
        self._answer(404, {"error": f"no route for {self.command} {path}"})

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after an answer that says why not."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.known):
            self._answer(404 if self.known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif found.gated:
            self._answer(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
        elif write and not self._may_write(name):
            self._answer(403, {"error": "no right to write"})
        else:
            return found
        return None

    def _may_write(self, name: str) -> bool:
        return self.known and name.startswith("user/")

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(name)
        if repository is None:
            return None
        commit = repository.find(revision)
        if commit is None:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    # --- reading ---

    def whoami(self) -> None:
        if not self.known:
            return self._answer(401, {"error": "Invalid user token."})
        self._answer(200, {"type": "user", "name": "user", "auth": {"accessToken": {"role": "write"}}})

    def info(self, name: str, revision: str | None = None) -> None:
        known = self.server.repositories.get(name)
        new = known is not None and known.private and self.known and not known.commits  # no commit yet
        if found := (None, {}) if new else self._at(name, revision or "main"):
            commit, files = found
            siblings = [{"rfilename": path} for path in files]
            private = self.server.repositories[name].private
            self._answer(200, {"id": name, "modelId": name, "sha": commit, "private": private, "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        if found := self._at(name, revision):
            self._answer(200, [_entry(path, data) for path, data in found[1].items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if found := self._at(name, revision):
            commit, files = found
            if path not in files:
                return self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            headers = {"ETag": f'"{_etag(path, files[path])}"', "X_Repo_Commit": commit}
            self._answer(200, files[path], **headers)

    # --- writing ---

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'user'}/{asked['name']}"
        if not self._may_write(name):
            return self._answer(403 if self.known else 401, {"error": "You don't have the rights"})
        if name in self.server.repositories:
            return self._answer(409, {"error": "It is there already", "url": f"{self.server.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=bool(private))
        self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def validate(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, _: str) -> None:
        if self._repository(name, write=True):
            files = json.loads(self.body)["files"]
            told = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in files]
            self._answer(200, {"files": told})

    def batch(self, name: str) -> None:
        if self._repository(name, write=True):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/large/{o['oid']}"}}}
                for o in json.loads(self.body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._answer(400, {"error": "not the bytes that were announced"})
        self.server.large[oid] = self.body
        self._answer(200, {})

    def commit(self, name: str, _: str) -> None:
        repository = self._repository(name, write=True)
        if repository is None:
            return
        files = {}
        for line in self.body.decode().splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            elif part["key"] == "lfsFile":
                files[part["value"]["path"]] = self.server.large[part["value"]["oid"]]
        oid = repository.commit(files)
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"


def _etag(path: str, data: bytes) -> str:
    """As git names a file, or Git LFS its content."""
    if _mode(path) == "lfs":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _etag(path, data)}
    if _mode(path) == "lfs":
        entry["lfs"] = {"oid": _etag(path, data), "size": len(data), "pointerSize": 134}
    return entry


_NAME, _REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/large/([0-9a-f]{64})", Handler.put),
    ("GET", f"/api/models/{_NAME}", Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/{_REVISION}", Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/{_REVISION}/?", Handler.tree),
    (("GET", "HEAD"), f"/{_NAME}/resolve/{_REVISION}/(.+)", Handler.resolve),
)
