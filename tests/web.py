"""A web server on 127.0.0.1 that behaves like the places from which data sets are downloaded."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Web(ThreadingHTTPServer):
    """files: path -> bytes, "/kaggle/<owner>/<name>", "/drive/<id>", "/mirror/<name>",
    "/datasets/<owner>/<repository>/<file>" and "/<owner>/<repository>/<file>" of the hub.

    faults: (pattern of a path, what it does) in turn, "404", "quota" (a page), "broken" (the
    connection ends in the middle, each time further on), "short" (as "broken", with a length that
    says all is there), "wrong" (other bytes of the same length). A number after a fault says how
    often. ranges: the Range headers that were asked for.
    """

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.ranges, self.asked = files, {}, [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # a client that had enough

    def fault(self, path: str) -> str | None:
        for pattern, (kind, left) in self.faults.items():
            if fnmatch.fnmatch(path, pattern) and left:
                self.faults[pattern] = kind, left - 1
                return kind
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path == "/drive":
            path = f"/drive/{parse_qs(parts.query)['id'][0]}"
        if path.startswith("/api/"):
            return self.repository(path)
        path = path.replace(f"/resolve/{COMMIT}/", "/")
        self.server.asked.append(path)
        fault = self.server.fault(path) if body else None
        data = self.server.files.get(path)
        if data is None or fault == "404":
            return self.send(404, b"nothing here", body)
        if fault == "quota":
            page = b"<html>Quota exceeded: too many users have viewed this file</html>"
            return self.send(200, page, body, kind="text/html; charset=utf-8")
        digest = hashlib.sha256(data).hexdigest()
        if fault == "wrong":
            data = bytes(byte ^ 1 for byte in data)
        start, asked = 0, self.headers.get("Range")
        if asked:
            self.server.ranges.append((path, asked))
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.send(416, b"", body)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(206 if asked else 200, data[start:], body, fault, **headers)

    def send(self, status, data, body, fault=None, kind="application/octet-stream", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        half = data[: len(data) // 2]
        self.send_header("Content-Length", str(len(half if fault == "short" else data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(half if fault in ("broken", "short") else data)
        if fault == "broken":
            self.close_connection = True

    def repository(self, path: str) -> None:
        _, _, kind, owner, name, *_ = path.split("/")
        prefix = f"/datasets/{owner}/{name}/" if kind == "datasets" else f"/{owner}/{name}/"
        found = {file.removeprefix(prefix): data for file, data in self.server.files.items()
                 if file.startswith(prefix)}
        if not found:
            return self.send(404, b'{"error": "Repository not found"}', True,
                             kind="application/json", **{"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": file, "size": len(data), "lfs": {
            "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
            for file, data in found.items()]
        content = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False,
                   "downloads": 1, "likes": 1, "tags": []}
        return self.send(200, json.dumps(content).encode(), True, kind="application/json")


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Web]:
    server = Web(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
