"""`HOST:PORT`, as clients name a server and a server is told where to listen."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_PORT = re.compile(r"[0-9]{1,9}")


class BadAddress(ValueError):
    """An invalid address; the text says what is wrong with it, for the caller's message."""


class Address(NamedTuple):
    """A host and its port; the host is an address without brackets, or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, whose: str, *, lowest_port: int = 1) -> Address:
    """Parses `HOST:PORT`, with an IPv6 address in brackets; `whose` is for the message.

    Raises `BadAddress`.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise BadAddress(f"the bracket around {whose}'s IPv6 address is not closed")
        if not _is_ip(socket.AF_INET6, host.partition("%")[0]):
            raise BadAddress(f"{host!r} in brackets is not a valid IPv6 address")
        if not rest.startswith(":"):
            raise BadAddress(f"{whose} has no port; write [{host}]:PORT")
        port = rest[1:]
    else:
        host, colon, port = text.partition(":")
        if ":" in port:
            raise BadAddress(f"{whose}'s IPv6 address must be in brackets: [ADDRESS]:PORT")
        if not host:
            raise BadAddress(f"{whose} has no host")
        if not colon:
            raise BadAddress(f"{whose} has no port")
        numeric = re.fullmatch(r"[0-9.]+", host) is not None
        if not (_is_ip(socket.AF_INET, host) if numeric else _HOST_NAME.fullmatch(host)):
            raise BadAddress(f"{host!r} is not a valid address or host name")
    if not port:
        raise BadAddress(f"{whose} has no port")
    if _PORT.fullmatch(port) is None or not lowest_port <= int(port) < 1 << 16:
        raise BadAddress(f"{whose}'s port {port!r} is not a number from 1 to 65535")
    return Address(host, int(port))


def _is_ip(family: socket.AddressFamily, host: str) -> bool:
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return False
    return True
