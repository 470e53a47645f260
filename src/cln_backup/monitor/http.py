"""A small HTTP server with limits, on the standard library's, for metrics and the page."""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from cln_backup.wire.listening import bind

if TYPE_CHECKING:
    from cln_backup.wire.address import Address

REQUEST_S: Final = 10.0
"""The most that one connection may take, in seconds."""

_MAX_REQUESTS: Final = 8


class HttpServer(ThreadingHTTPServer):
    """Answers few connections at once, for a short time each, so that threads never run out."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, handler: type[BaseHTTPRequestHandler]) -> None:
        """Listens on an address, the first one if a name has several. Raises `StorageError`."""
        sock, *others = bind(address)
        for other in others:
            other.close()
        super().__init__(sock.getsockname(), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_port = sock.getsockname()[1]
        self._free = threading.BoundedSemaphore(_MAX_REQUESTS)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - its base's
        """Gives a connection a thread, if there is one left."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answers a connection; a client that sends slowly is cut off at the timeout."""
        timer = threading.Timer(REQUEST_S, _shut, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Ignores errors of a connection: they do not concern the server."""


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
