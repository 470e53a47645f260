"""A proxy in front of an engine that refuses, loses and doubles requests."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Fault(NamedTuple):
    """What becomes of one request.

    Attributes:
        status: the answer, instead of the engine's; 0 for no answer, but the end of the connection.
        arrives: how often the engine gets the request.
        code: of the error in the answer.
        late_s: how much later it arrives.
    """

    status: int = 0
    arrives: int = 0
    code: str = "SlowDown"
    late_s: float = 0.0


REFUSED = Fault(503)
LOST = Fault(0, 1)
CUT = Fault(0, 0)
DOUBLED = Fault(-1, 2)
"""The answer is that to the second one."""

LATE = Fault(-1, 1, late_s=0.1)


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to a port; `plan` says for a method and a path what goes wrong."""

    daemon_threads = True

    def __init__(self, port: int, plan: Callable[[str, str], Fault | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.plan = plan
        self.port = self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is expected."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        fault = self.server.plan(self.command, self.path)
        if fault is not None:
            time.sleep(fault.late_s)
        answer = None
        for _ in range(1 if fault is None else fault.arrives):
            answer = self._forwarded(content)
        if fault is not None and fault.status == 0:
            self.close_connection = True
            return
        if fault is not None and fault.status > 0:
            body = f"<Error><Code>{fault.code}</Code></Error>".encode()
            answer = fault.status, [("Content-Length", str(len(body)))], body
        assert answer is not None
        status, headers, body = answer
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forwarded(self, content: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        engine = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            engine.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                engine.putheader(name, value)
            engine.endheaders(content)
            found = engine.getresponse()
            body = found.read()
        finally:
            engine.close()
        headers = [one for one in found.getheaders() if one[0].lower() != "transfer-encoding"]
        if found.getheader("Content-Length") is None:
            headers.append(("Content-Length", str(len(body))))
        return found.status, headers, body

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def faulty(port: int, plan: Callable[[str, str], Fault | None]) -> Iterator[FaultyProxy]:
    """A running proxy."""
    with FaultyProxy(port, plan) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
