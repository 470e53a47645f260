"""A server that answers single requests as Google's and Azure's stores do; it does not list.

None of their engines is in a wheel. This one shows what the client sends, and how answers are
understood; it checks no signature.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message


class StandIn(ThreadingHTTPServer):
    """Objects in memory, and the headers of all requests.

    Attributes:
        answers: codes for the next requests, which are done first if the code is negative.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, Message]] = []
        self.answers: list[int] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        with self.server.lock:
            self.server.requests.append((self.command, self.headers))
            forced = self.server.answers.pop(0) if self.server.answers else 0
            code, body = (forced, b"") if forced > 0 else self._done(content)
            code = -forced if forced < 0 else code
        self.send_response(code)
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 12:00:00 GMT")
        if code == 206:
            whole = len(self.server.objects[self.path])
            start = int(re.findall(r"\d+", self.headers["Range"])[0])
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _done(self, content: bytes) -> tuple[int, bytes]:
        objects, there = self.server.objects, self.path in self.server.objects
        if self.command == "PUT":
            google = self.headers["x-goog-if-generation-match"] == "0"
            if there and (google or self.headers["If-None-Match"] == "*"):
                return 412 if google else 409, b"<Error><Code>BlobAlreadyExists</Code></Error>"
            objects[self.path] = content
            return 200 if google else 201, b""
        if not there:
            return 404, b""
        if self.command == "DELETE":
            del objects[self.path]
            return 202, b""
        found = objects[self.path]
        if "Range" not in self.headers:
            return 200, found
        start, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        return (206, found[start : last + 1]) if start < len(found) else (416, b"")

    do_GET = do_HEAD = do_PUT = do_DELETE = handle_request  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running one."""
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
