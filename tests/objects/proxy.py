"""A proxy before an object store that loses, repeats, delays and refuses requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

ALL: Final = ("cut before", "cut after", "twice", "late", "503", "503 after", "409", "429")
_LATE_S: Final = 0.1


class Proxy(ThreadingHTTPServer):
    """Forwards to a port of this machine.

    Attributes:
        fates: of requests, with a chance of `bad`; otherwise they are forwarded.
        counts: of the fates so far.
    """

    daemon_threads = True

    def __init__(self, port: int, chance: random.Random, fates: Sequence[str], bad: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.to_port, self.fates, self.bad = port, fates, bad
        self.counts: Counter[str] = Counter()
        self._chance = chance
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self.server_address[1])

    def fate(self) -> str:
        """What becomes of the next request."""
        with self._lock:
            fate = "fine"
            if self.fates and self._chance.random() < self.bad:
                fate = self._chance.choice(self.fates)
            self.counts[fate] += 1
            return fate

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is expected."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        fate = self.server.fate()
        if fate == "cut before":
            self.close_connection = True
        elif fate in ("503", "409", "429"):
            self._answer(int(fate), [], b"")
        else:
            if fate == "late":
                time.sleep(_LATE_S)
            status, headers, content = self._forwarded(body)
            if fate == "twice":
                self._forwarded(body)
            if fate == "cut after":
                self.close_connection = True
            elif fate == "503 after":
                self._answer(503, [], b"")
            else:
                self._answer(status, headers, content)

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        engine = http.client.HTTPConnection("127.0.0.1", self.server.to_port, timeout=60)
        try:
            engine.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                engine.putheader(name, value)
            engine.endheaders(body)
            answer = engine.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            engine.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def proxy(
    port: int, chance: random.Random, fates: Sequence[str] = ALL, bad: float = 0.2
) -> Iterator[Proxy]:
    """A running one."""
    with Proxy(port, chance, fates, bad) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
