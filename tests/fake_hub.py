"""A hub on this machine: the few addresses of Hugging Face's that mixq asks, and every way in which they may fail.

`FakeHub(repositories)` serves in threads of its own until its block ends. `faults` are taken one by one by the requests
for parts of weight files, in the order in which they come; None serves properly.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Protocol

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SEND = 4 << 20
STALL = 600.0
"""Seconds of a reply that stalls, unless the hub ends before."""


class Content(Protocol):
    """A file of a repository."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def read(self, start: int, end: int) -> bytes | memoryview: ...


class Stored:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()

    def read(self, start: int, end: int) -> bytes:
        return self._content[start:end]


def folder_contents(path: Path) -> dict[str, Content]:
    """The files of a folder as a repository's."""
    return {file.name: Stored(file.read_bytes()) for file in sorted(path.iterdir())}


class FakeHub:
    """A hub with repositories {owner/name: {file: content}}.

    Args:
        token: what `Authorization: Bearer` must say; None lets everybody in.
        redirect: answer requests for files by sending to another port, as the real hub sends to its storage.
        ranges: False ignores the header Range, as simple mirrors do.
    """

    def __init__(
        self,
        repositories: Mapping[str, Mapping[str, Content]],
        *,
        token: str | None = None,
        redirect: bool = False,
        ranges: bool = True,
        gated: bool = False,
    ) -> None:
        self.repositories = repositories
        self.token, self.ranges, self.gated = token, ranges, gated
        self.faults: list[str | None] = []
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self.sent = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._servers = [_Server(self, storage=False)]
        self._storage = self._servers[0]
        if redirect:
            self._storage = _Server(self, storage=True)
            self._servers.append(self._storage)
        self.redirect = redirect

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self._storage.server_port}"

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def next_fault(self) -> str | None:
        with self.lock:
            return self.faults.pop(0) if self.faults else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub, *, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.is_storage = hub, storage

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        authorization = self.headers.get("Authorization")
        with hub.lock:
            hub.requests.append((self.path, self.headers.get("Range"), authorization))
        asked = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/([^/?]+))?(?:\?.*)?", self.path)
        resolve = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w.-]+)", self.path)
        name = (asked or resolve)[1] if (asked or resolve) else ""  # type: ignore[index]
        if not self.server.is_storage and hub.token is not None and authorization != f"Bearer {hub.token}":
            self._error(401, "RepoNotFound", "Repository Not Found")
        elif hub.gated:
            self._error(403, "GatedRepo", "Access to this model is restricted")
        elif name not in hub.repositories:
            self._error(404, "RepoNotFound", "Repository Not Found")
        elif asked is not None:
            self._info(name, asked[2])
        else:
            assert resolve is not None
            self._file(hub.repositories[name], resolve[3])

    def _info(self, name: str, revision: str | None) -> None:
        if revision not in (None, "main", COMMIT):
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [
            {
                "rfilename": file,
                "size": content.size,
                "blobId": content.sha256[:40],
                **(
                    {"lfs": {"sha256": content.sha256, "size": content.size, "pointerSize": 134}}
                    if _is_lfs(file)
                    else {}
                ),
            }
            for file, content in self.server.hub.repositories[name].items()
        ]
        body = json.dumps({"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})
        self._reply(200, body.encode(), {"Content-Type": "application/json"})

    def _file(self, files: Mapping[str, Content], name: str) -> None:
        hub = self.server.hub
        content = files.get(name)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        if hub.redirect and not self.server.is_storage:
            headers = {"Location": f"{hub.storage}{self.path}", "X-Linked-ETag": f'"{content.sha256}"'}
            self._reply(302, b"", headers)
            return
        fault = hub.next_fault() if _is_lfs(name) else None
        start, end, status = 0, content.size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and hub.ranges and fault != "whole":
            start, end, status = int(asked[1]), min(int(asked[2]) + 1, content.size), 206
        self._send(content, start, end, status, fault)

    def _send(self, content: Content, start: int, end: int, status: int, fault: str | None) -> None:
        kind, _, value = (fault or "").partition(":")
        if kind == "status":
            self._reply(int(value), b"", {"Retry-After": "0"})
            return
        if kind == "drop":
            self.close_connection = True
            return
        size = content.size + (1 if kind == "longer" else 0)
        shift = 1 if kind == "other range" else 0
        announced = end - start - (1 if kind == "wrong length" else 0)
        self.send_response(status)
        self.send_header("ETag", '"changed"' if kind == "etag" else f'"{content.sha256}"')
        if kind == "linked etag":
            self.send_header("X-Linked-ETag", '"changed"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{size}")
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        stop = min(end, start + int(value)) if kind in ("cut", "stall") else start + announced
        for position in range(start, stop, SEND):
            chunk = content.read(position, min(position + SEND, stop))
            self.wfile.write(chunk)
            with self.server.hub.lock:
                self.server.hub.sent += len(chunk)
        if kind == "stall":
            self.wfile.flush()
            self.server.hub.ended.wait(STALL)
        if stop < start + announced or kind:
            self.close_connection = True

    def _error(self, status: int, code: str, message: str) -> None:
        self._reply(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf", ".pth"))
