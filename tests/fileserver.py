"""A local web server for tests: files with ETags and ranges, faults on request, and Kaggle's endpoint."""

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

Server = TypeVar("Server", bound=HTTPServer)


class FileServer(ThreadingHTTPServer):
    """Serves the contents of `files` by path, and counts requests and bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        """Status and headers of refused requests, by path."""
        self.ranges = True
        self.validators = True
        self.delay = 0.0
        """Seconds before each response."""
        self.busy = self.cut = 0.0
        """Shares of requests that get status 503, and of bodies that end early."""
        self.random = random.Random(0)
        self.served = 0
        """Bytes sent in bodies."""
        self.requests = 0
        self.authorised = 0
        """Number of requests to Kaggle's endpoint with credentials."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, file: Path) -> str:
        self.files[path] = file.read_bytes()
        return self.url + path

    def handle_error(self, *_: object) -> None:
        """Ignore clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        time.sleep(server.delay)
        with server.lock:
            server.requests += 1
            busy, cut = server.random.random() < server.busy, server.random.random() < server.cut
        if busy:
            self._answer(503, {"Retry-After": "0"})
        elif path in server.refusals:
            self._answer(*server.refusals[path])
        elif path in server.redirects:
            self._answer(302, {"Location": server.redirects[path]})
        elif path in server.files:
            self._send(server.files[path], cut)
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        """Respond like Kaggle to a download request: with the location of the file."""
        self.server.authorised += "Authorization" in self.headers
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = "/{ownerSlug}/{datasetSlug}/{datasetVersionNumber}".format(
            **{"datasetVersionNumber": 0} | request
        )
        if path in self.server.refusals:
            self._answer(*self.server.refusals[path])
        elif path in self.server.redirects:
            self._answer(302, {"Location": self.server.redirects[path]})
        else:
            self._answer(404, {})

    def _send(self, content: bytes, cut: bool) -> None:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag} if self.server.validators else {}
        status, part = 200, content
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.server.ranges and byte_range and self.headers.get("If-Range", etag) == etag:
            first, last = int(byte_range[1]), min(int(byte_range[2]), len(content) - 1)
            status, part = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(status, headers, part, len(part) // 2 if cut else len(part))

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", size: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = self.wfile.write(body[:size])
        with self.server.lock:
            self.server.served += sent

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_requests(server: Server) -> Iterator[Server]:
    """Serve requests in a thread, and close the server at the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def file_server() -> Iterator[FileServer]:
    with serving_requests(FileServer()) as server:
        yield server
