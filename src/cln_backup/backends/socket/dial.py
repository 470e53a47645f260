"""Connects to a server: directly or through a proxy, in plain text or with TLS."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from cln_backup.backends.socket import socks5
from cln_backup.wire.channel import Channel

if TYPE_CHECKING:
    from cln_backup.backends.socket.url import SocketUrl
    from cln_backup.wire.address import Address

STALL_S = 30.0
"""How long the server may send nothing while an answer is due."""

_LEAST_S = 1.0


def dial(url: SocketUrl, timeout_s: float, stall_s: float) -> Channel:
    """Opens a connection to the server, on which nothing was sent yet.

    Args:
        url: the server, and how to reach it.
        timeout_s: how long to try; several addresses of a name share it.
        stall_s: how long the server may send nothing while an answer is due.

    Raises:
        AccessDenied: the server's certificate is not the one that is trusted.
        OSError: the connection failed; a retry may succeed.
    """
    if url.proxy is None:
        sock = _connect(url.server, timeout_s)
    else:
        sock = _connect(url.proxy, timeout_s)
        try:
            socks5.connect(sock, *url.server)
        except OSError as error:
            sock.close()
            raise ConnectionError(f"through the proxy {url.proxy}: {error}") from error
    if url.tls:
        from cln_backup.backends.socket import tls

        try:
            sock = tls.wrap(sock, url)
        except BaseException:
            sock.close()
            raise
    return Channel(sock, stall_s=stall_s)


def _connect(address: Address, timeout_s: float) -> socket.socket:
    """Connects to the first of a host's addresses, IPv4 or IPv6, that answers."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, target in found:
        sock = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            sock.settimeout(max(_LEAST_S, timeout_s / len(found)))
            try:
                sock.connect(target)
            except OSError as error:
                failure = error
                continue
            sock.settimeout(timeout_s)
            on_failure.pop_all()
        return sock
    raise failure or ConnectionError(f"{address.host} has no address")
