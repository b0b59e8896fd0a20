"""A local server that answers like the Hugging Face hub, for one commit of one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder`; `break_after` bytes of a file the connection is cut, once."""

    def __init__(self, folder: Path, repo: str, revision: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repo, self.revision = folder, repo, revision
        self.break_after: int | None = None
        self.lies: dict[str, str] = {}  # name -> sha256 that the listing states
        self.requests: list[tuple[str, str, str]] = []  # method, path, range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tree(self) -> list[dict]:
        return [self._entry(path) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def _entry(self, path: Path) -> dict:
        name, content = str(path.relative_to(self.folder)), path.read_bytes()
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if is_large(name):
            digest = self.lies.get(name, hashlib.sha256(content).hexdigest())
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(is_body=False)

    def do_GET(self) -> None:
        self._answer(is_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, is_body: bool) -> None:
        hub, path = self.server, unquote(urlparse(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        tree = f"/api/models/{hub.repo}/tree/{hub.revision}"
        files = f"/{hub.repo}/resolve/{hub.revision}/"
        if path == tree:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(hub.tree()).encode())
        elif path.startswith(files) and (hub.folder / path.removeprefix(files)).is_file():
            self._file(path.removeprefix(files), is_body)
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"" if not is_body else b"no")

    def _file(self, name: str, is_body: bool) -> None:
        hub, content = self.server, (self.server.folder / name).read_bytes()
        tag = hashlib.sha256(content).hexdigest() if is_large(name) else git_hash(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": hub.revision, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0] or 0) if wanted else 0
        status = 206 if wanted else 200
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not is_body:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
        elif hub.break_after is not None and hub.break_after < len(content) - start:
            self._send(status, headers, content[start:], hub.break_after)
            hub.break_after = None
            self.close_connection = True
        else:
            self._send(status, headers, content[start:])

    def _send(
        self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:cut])


def is_large(name: str) -> bool:
    """Kept in LFS, of which the hub knows the sha256."""
    return name.endswith((".safetensors", ".bin", "tokenizer.json"))


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(folder: Path, repo: str, revision: str) -> Iterator[Hub]:
    hub = Hub(folder, repo, revision)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
