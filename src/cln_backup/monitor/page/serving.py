"""The page over HTTP: read only, within limits, and only under names that are this machine's."""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from cln_backup.model.errors import StorageError
from cln_backup.monitor.http import REQUEST_S, HttpServer
from cln_backup.monitor.page.render import check, policy, render
from cln_backup.monitor.page.state_json import state_json
from cln_backup.monitor.page.view import SPANS
from cln_backup.wire.address import Address

if TYPE_CHECKING:
    import io
    import socket
    from collections.abc import Collection

    from cln_backup.monitor.page.view import NodeView, Span

_log = logging.getLogger(__name__)

_MAX_REQUEST_BYTES: Final = 16 << 10
_OVERVIEW_POINTS: Final = 96
_RETRY_S: Final = 2.0
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?")
_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"


class Source(Protocol):
    """Where the page has its values from; any thread may ask."""

    def names(self) -> list[str]:
        """The names of the nodes."""

    def view(self, name: str, now: float, span: Span = SPANS[0], most: int = 240) -> NodeView:
        """All about a node; see `Chronicle.view`."""


class _TooLarge(Exception):
    """A request has too many bytes before its end."""


class _Limited:
    """The bytes that a client sends, up to a limit."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._left_bytes = _MAX_REQUEST_BYTES

    def readline(self, limit_bytes: int = -1) -> bytes:
        """The next line. Raises `_TooLarge`."""
        most = self._left_bytes + 1
        line = self._file.readline(most if limit_bytes < 0 else min(most, limit_bytes))
        self._left_bytes -= len(line)
        if self._left_bytes < 0:
            raise _TooLarge
        return line

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request on a connection, which is then closed."""

    timeout = REQUEST_S
    page: ClassVar[Page]

    def setup(self) -> None:
        """Limits what is read."""
        super().setup()
        self.rfile = cast("io.BufferedIOBase", _Limited(cast("io.BufferedReader", self.rfile)))

    def handle_one_request(self) -> None:
        """Reads a request and answers it."""
        try:
            super().handle_one_request()
        except _TooLarge:
            self.requestline, self.command = "", "GET"
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def do_GET(self) -> None:
        """Answers with the page, its JSON, or an error in plain text."""
        if not self._is_for_us():
            self._answer(
                HTTPStatus.MISDIRECTED_REQUEST,
                _TEXT,
                "This name is not one of the page's. Use its address, or add the name to the "
                "option for the page's names.\n",
            )
            return
        try:
            place = urlsplit(self.path)
            asked = parse_qs(place.query, max_num_fields=8)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        name = asked.get("node", [""])[0]
        chosen = asked.get("span", [""])[0]
        span = next((span for span in SPANS if span.name == chosen), SPANS[0])
        source, now = self.page.source, time.time()
        names = source.names()
        if place.path == "/state.json":
            if name not in names:
                views = [source.view(each, now, most=0) for each in ([] if name else names)]
            else:
                views = [source.view(name, now, most=0)]
            if name and not views:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._answer(HTTPStatus.OK, _JSON, state_json(views, now, self.page.title))
        elif place.path == "/" and names != [""]:
            views = [source.view(each, now, most=_OVERVIEW_POINTS) for each in names]
            self._answer(HTTPStatus.OK, _HTML, render(views, now, self.page.title))
        elif place.path in ("/", "/node") and name in names:
            html = render(
                [source.view(name, now, span)], now, self.page.title, of_many=names != [""]
            )
            self._answer(HTTPStatus.OK, _HTML, html)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815 - its base's

    def _is_for_us(self) -> bool:
        """Whether the request names this machine: a page elsewhere cannot, by its own name."""
        given = self.headers.get_all("Host") or []
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            return False
        host = match[1].strip("[]").lower().rstrip(".")
        if host == "localhost" or host in self.page.names:
            return True
        try:
            address = ipaddress.ip_address(host)
            own = _address(self.connection)
        except ValueError:
            return False
        return address.is_loopback or address == own or address == getattr(own, "ipv4_mapped", None)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.request_version = self.protocol_version  # an answer to any request has headers
        self.send_response(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", policy() if kind is _HTML else _NOTHING)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(
        self,
        code: int,
        message: str | None = None,  # noqa: ARG002 - it may quote the request
        explain: str | None = None,  # noqa: ARG002
    ) -> None:
        """Answers in plain text, with the same headers."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.close_connection = True
        self._answer(status, _TEXT, f"{status.phrase}\n")

    def version_string(self) -> str:
        """The name in the header `Server`."""
        return "cln-backup"

    def log_message(self, *_: Any) -> None:  # noqa: ANN401 - its base's
        """Logs nothing: requests do not concern the operator."""


def _address(sock: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """This machine's end of a socket, without the scope that IPv6 may have."""
    return ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0])


_NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Page:
    """The page at an address, in threads of this process.

    Attributes:
        source: of what it shows.
        title: the name of this machine or node, at the top.
        names: the names under which it may be asked for, besides addresses.
    """

    def __init__(
        self, source: Source, title: str, address: Address, names: Collection[str] = ()
    ) -> None:
        """Raises `BadSettings` if a package is missing."""
        check()
        self.source = source
        self.title = title
        self.names = {name.lower().rstrip(".") for name in (address.host, *names)}
        self._address = address
        self._server: HttpServer | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)

    def listen(self) -> str:
        """Opens the address; returns the URL. Raises `StorageError`, and can be called again."""
        handler = type("_Handler", (_Handler,), {"page": self})
        self._server = HttpServer(self._address, handler)
        return f"http://{Address(self._address.host, self._server.server_port)}/"

    def start(self) -> None:
        """Serves until `stop`. An address that is in use is tried again, and a warning logged."""
        self._thread.start()

    def _serve(self) -> None:
        has_failed = False
        while self._server is None:
            try:
                url = self.listen()
            except StorageError as error:
                if not has_failed:
                    _log.warning("The page cannot be served yet: %s Trying again.", error)
                has_failed = True
                if self._ends.wait(_RETRY_S):
                    return
            else:
                _log.info("The page is at %s", url)
        if not _address(self._server.socket).is_loopback:
            _log.warning(
                "The page has no password, and other machines may reach %s. Serve it at 127.0.0.1, "
                "and come through SSH, Tor or a VPN.",
                self._address,
            )
        self._server.serve_forever()

    def stop(self) -> None:
        """Ends it, and closes the address."""
        self._ends.set()
        if self._server is None:
            return
        if self._thread.is_alive():
            # It waits for the loop in the other thread, which may end before it has begun.
            ending = threading.Thread(target=self._server.shutdown, daemon=True)
            ending.start()
            ending.join(_RETRY_S)
        self._server.server_close()
