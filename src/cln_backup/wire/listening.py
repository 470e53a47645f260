"""Sockets that listen on an address, for the server, its metrics and the page."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import StorageError

if TYPE_CHECKING:
    from cln_backup.wire.address import Address

_BACKLOG: Final = 256


def bind(address: Address) -> list[socket.socket]:
    """Sockets that listen on an address; a name may have several.

    `[::]` means every address of this machine, IPv4 and IPv6.

    Raises:
        StorageError: the address is not this machine's, or is in use.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, place in found:
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address.host != "::")
            sock.bind(place)
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StorageError(f"Cannot listen on {address}: {error.strerror or error}.") from error
    return sockets
