"""A Hugging Face Hub on loopback: what its client asks for to make a repository, to commit and to fetch."""

from __future__ import annotations

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopback"


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        name = sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.branches[branch] = name
        self.messages.append(message)
        return name


class Hub(ThreadingHTTPServer):
    """Repositories by name, and the faults to be had.

    ``answer`` makes requests whose method and path match get a status instead, ``cut`` stops each download
    after so many bytes, and ``asked`` lists all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.answer: dict[str, int] = {}
        self.cut: int | None = None
        self.asked: list[str] = []


@contextmanager
def running():
    """Serve until the end of the block."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def _serve(self) -> None:
        request = f"{self.command} {urlsplit(self.path).path}"
        self.server.asked.append(request)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        for pattern, status in self.server.answer.items():
            if re.search(pattern, request):
                return self._send(b'{"error": "not now"}', status, {"Retry-After": "0"})
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, request):
                return method(self, body, *map(unquote, found.groups()))
        return self._json({"error": f"no such page: {request}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _json(self, value: Any, status: int = 200, code: str | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"X-Error-Code": code} if code else {})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known:
            self._json({"error": "Invalid username or password."}, 401)
        return known

    def _repo(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            return None
        return repo

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._known():
            return
        if asked["organization"] == "others":
            self._json({"error": "You don't have the rights"}, 403)
        elif name in self.server.repos:
            self._json({"url": f"{self.server.url}/{name}"}, 409)
        else:
            self.server.repos[name] = Repo(
                asked.get("visibility") == "private" or asked.get("private", False)
            )
            self.server.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial")
            self._json({"url": f"{self.server.url}/{name}"})

    def info(self, _: bytes, name: str) -> None:
        if repo := self._repo(name):
            self._json({"id": name, "sha": repo.branches["main"]})

    def validate(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        try:
            assert isinstance(yaml.safe_load(front), dict)
        except (AssertionError, yaml.YAMLError) as error:
            self._json({"errors": [{"message": str(error)}]}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def branch(self, _: bytes, name: str, branch: str) -> None:
        repo = self._repo(name) if self._known() else None
        if repo and branch in repo.branches:
            self._json({"error": "it is there"}, 409)
        elif repo:
            repo.branches[branch] = repo.branches["main"]
            self._json({})

    def preupload(self, body: bytes, name: str, branch: str) -> None:
        repo = self._repo(name) if self._known() else None
        if repo and branch not in repo.branches:
            self._json({"error": "no branch"}, 404, "RevisionNotFound")
        elif repo:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        if not self._known():
            return
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.url}/blobs/{wanted['oid']}"}}}
            if wanted["oid"] not in self.server.blobs
            else wanted
            for wanted in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self._send(b"")

    def commit(self, body: bytes, name: str, branch: str) -> None:
        repo = self._repo(name) if self._known() else None
        if not repo:
            return
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.blobs[value["oid"]]
        made = repo.commit(branch, files, message)
        url = f"{self.server.url}/{name}/commit/{made}"
        self._json({"commitUrl": url, "commitOid": made, "pullRequestUrl": None})

    def resolve(self, _: bytes, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if not repo:
            return
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._json({"error": "no such revision"}, 404, "RevisionNotFound")
        elif file not in repo.commits[commit]:
            self._json({"error": "no such file"}, 404, "EntryNotFound")
        else:
            data = repo.commits[commit][file]
            oid = sha256(data).hexdigest()
            self.server.blobs[oid] = data
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{oid}"', "X-Repo-Commit": commit}
            elsewhere = f"http://localhost:{self.server.server_port}/blobs/{oid}"
            self._send(b"", 302, {"Location": elsewhere, **linked})

    def download(self, _: bytes, oid: str) -> None:
        """As from another host, to which no token must go."""
        assert "Authorization" not in self.headers
        self._send(self.server.blobs[oid][: self.server.cut], 200, {"ETag": f'"{oid}"'})


ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    "GET /api/models/([^/]+/[^/]+)": Handler.info,
    "POST /api/models/([^/]+/[^/]+)/branch/(.+)": Handler.branch,
    "POST /api/models/([^/]+/[^/]+)/preupload/(.+)": Handler.preupload,
    "POST /api/models/([^/]+/[^/]+)/commit/(.+)": Handler.commit,
    r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": Handler.batch,
    "PUT /blobs/(.+)": Handler.upload,
    "GET /blobs/(.+)": Handler.download,
    "(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": Handler.resolve,
}
