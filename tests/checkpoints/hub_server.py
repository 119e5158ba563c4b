"""A server on loopback that speaks as much of the Hub's protocol as its client asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlparse


@dataclass
class FakeHub:
    """Repositories by id: branches and commits."""

    commits: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    """Repository, commit: files."""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Repository, branch: commit."""
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of everything that was asked."""
    endpoint: str = ""

    def publish(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch. Returns its 40 digits."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        commit = digest.hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def resolve(self, repository: str, revision: str) -> str | None:
        if revision in self.commits.get(repository, {}):
            return revision
        return self.branches.get(repository, {}).get(revision)

    def downloads(self) -> list[str]:
        """Paths of the files that were sent whole."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            hub.requests.append((self.command, path))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.api("/".join(parts[2:4]), parts[4:], body)
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
            else:
                self.fail(404, "EntryNotFound", body)

        def api(self, repository: str, rest: list[str], body: bool) -> None:
            revision = rest[1] if rest[:1] in (["revision"], ["tree"]) else "main"
            commit = self.found(repository, revision, body)
            if commit is None:
                return
            files = hub.commits[repository][commit]
            data: object
            if rest[:1] == ["tree"]:
                data = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            else:
                data = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            self.send(json.dumps(data).encode(), {"Content-Type": "application/json"}, body)

        def file(self, repository: str, revision: str, name: str, body: bool) -> None:
            commit = self.found(repository, revision, body)
            if commit is None:
                return
            if name not in hub.commits[repository][commit]:
                self.fail(404, "EntryNotFound", body, {"X-Repo-Commit": commit})
                return
            content = hub.commits[repository][commit][name]
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)

        def found(self, repository: str, revision: str, body: bool) -> str | None:
            if repository not in hub.commits:
                self.fail(404, "RepoNotFound", body)
            elif repository in hub.gated:
                self.fail(403, "GatedRepo", body)
            elif (commit := hub.resolve(repository, revision)) is None:
                self.fail(404, "RevisionNotFound", body)
            else:
                return commit
            return None

        def send(self, content: bytes, headers: Mapping[str, str], body: bool) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def fail(self, status: int, code: str, body: bool, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
