"""The client's side of SOCKS5 without a password (RFC 1928), for proxies such as Tor."""

from __future__ import annotations

import contextlib
import socket
import struct

_ANSWERS = {
    1: "general failure of the proxy",
    2: "not allowed by the proxy's rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "timed out",
    7: "the proxy does not support CONNECT",
    8: "the proxy does not support this type of address",
}
_BOUND_BYTES = {1: 4, 4: 16}


class ProxyRefused(ConnectionError):
    """The proxy did not connect; the message has its reason."""


def connect(sock: socket.socket, host: str, port: int) -> None:
    """Makes the proxy at the other end of `sock` connect to a host.

    The proxy resolves names: an onion name is unknown here, and a lookup would reveal it.

    Raises:
        ProxyRefused, OSError: the connection failed.
    """
    sock.sendall(b"\x05\x01\x00")
    if _receive(sock, 2) != b"\x05\x00":
        raise ProxyRefused("not a SOCKS5 proxy, or it requires a password")
    sock.sendall(b"\x05\x01\x00" + _pack_host(host) + struct.pack("!H", port))
    version, answer, _, kind = _receive(sock, 4)
    if version != 5 or answer != 0:
        raise ProxyRefused(_ANSWERS.get(answer, f"the proxy answered {answer}"))
    length = _receive(sock, 1)[0] if kind == 3 else _BOUND_BYTES.get(kind)
    if length is None:
        raise ProxyRefused("invalid answer of the proxy")
    _receive(sock, length + 2)


def _pack_host(host: str) -> bytes:
    for kind, family in ((b"\x01", socket.AF_INET), (b"\x04", socket.AF_INET6)):
        with contextlib.suppress(OSError):
            return kind + socket.inet_pton(family, host)
    name = host.encode("ascii")
    return b"\x03" + bytes([len(name)]) + name


def _receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise ProxyRefused("the proxy closed the connection")
        data += piece
    return data
