"""The page of some values, served in this process, and requests to it byte by byte."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from cln_backup.monitor.page.serving import Page
from cln_backup.monitor.page.view import SPANS, NodeView, Span
from cln_backup.wire.address import Address
from tests.monitor import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence


class Values:
    """Nodes that are made at each request, so that they are never stale unless they should be."""

    def __init__(self, make: Callable[[float], Sequence[NodeView]]) -> None:
        self.make = make
        self._made: tuple[float, dict[str, NodeView]] = (0.0, {})

    def _at(self, now: float) -> dict[str, NodeView]:
        made_at, made = self._made
        if made_at != now:
            made = {each.name: each for each in self.make(now)}
            self._made = now, made
        return made

    def names(self) -> list[str]:
        return list(self._at(time.time()))

    def view(self, name: str, now: float, span: Span = SPANS[0], most: int = 240) -> NodeView:
        found = self._at(now)[name]
        points = found.points
        if span != found.span and points:
            points = examples.samples(now, span)
        return found._replace(span=span, points=points if most else ())


@contextlib.contextmanager
def page_of(
    make: Callable[[float], Sequence[NodeView]], names: Collection[str] = ()
) -> Iterator[tuple[Values, int]]:
    """Serves the page; gives its values, which may be replaced, and its port."""
    values = Values(make)
    page = Page(values, "raspberrypi bitcoin", Address("127.0.0.1", 0), names)
    url = page.listen()
    page.start()
    try:
        yield values, int(url.rpartition(":")[2].rstrip("/"))
    finally:
        page.stop()


def exchange(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    """Sends these bytes; returns status, headers with names in lower case, and content."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(60)
        with contextlib.suppress(OSError):  # it may answer before it has read everything
            sock.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 16):
                answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, content.decode()


def get(
    port: int, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], str]:
    """Asks for a path, under a name."""
    named = f"127.0.0.1:{port}" if host is None else host
    return exchange(port, f"{method} {path} HTTP/1.1\r\nHost: {named}\r\n\r\n".encode())
