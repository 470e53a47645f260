"""The client's side of a SOCKS5 proxy without a password (RFC 1928), as Tor offers it."""

from __future__ import annotations

import contextlib
import socket
import struct

_ANSWERS = {
    1: "the proxy failed",
    2: "the proxy's rules forbid it",
    3: "the network cannot be reached",
    4: "the host cannot be reached",
    5: "the connection was refused",
    6: "it took too long",
    7: "the proxy knows no CONNECT",
    8: "the proxy does not know this kind of address",
}
_BOUND_BYTES = {1: 4, 4: 16}


class ProxyRefused(ConnectionError):
    """The proxy did not connect; its answer is the message."""


def connect(sock: socket.socket, host: str, port: int) -> None:
    """Has the proxy at the other end of `sock` connect to a host.

    A name is given to the proxy as it is: it must not be looked up here, where an onion name is
    unknown and the question alone would tell others.

    Raises:
        ProxyRefused, OSError: there is no connection.
    """
    sock.sendall(b"\x05\x01\x00")
    if _receive(sock, 2) != b"\x05\x00":
        raise ProxyRefused("it is no SOCKS5 proxy, or it asks for a password")
    sock.sendall(b"\x05\x01\x00" + _pack_host(host) + struct.pack("!H", port))
    version, answer, _, kind = _receive(sock, 4)
    if version != 5 or answer != 0:
        raise ProxyRefused(_ANSWERS.get(answer, f"the proxy answered {answer}"))
    length = _receive(sock, 1)[0] if kind == 3 else _BOUND_BYTES.get(kind)
    if length is None:
        raise ProxyRefused("the proxy's answer cannot be understood")
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
