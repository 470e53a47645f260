"""Limits on open connections, so that unauthenticated ones cannot keep nodes out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONNECTIONS = 1024
"""The maximum number of open connections, unless the command line says otherwise.

At most a quarter of them may be unauthenticated; from one network, at most a sixteenth.
"""

_STRANGERS = 4
_STRANGERS_OF_A_NETWORK = 16
_NETWORK_BITS = 64
"""The IPv6 prefix of one customer of a provider."""


def is_loopback(host: str) -> bool:
    """Whether a numeric address is a loopback address."""
    found = _address(host)
    return found is not None and found.is_loopback


def why_refused(host: str, strangers: Sequence[str], open_now: int, most: int) -> str | None:
    """Why a new connection from a host is refused; `None` if it is accepted.

    Connections from this machine each count as a network of their own: they come through a tunnel
    or Tor.

    Args:
        host: its numeric address.
        strangers: the hosts of the unauthenticated connections.
        open_now: the number of open connections, including those.
        most: the maximum number of open connections.
    """
    if open_now >= most:
        return f"too many connections: {open_now} are open"
    if len(strangers) >= max(1, most // _STRANGERS):
        return f"too many unauthenticated connections: {len(strangers)} are open"
    network = _network(host)
    if network is not None:
        near = sum(1 for stranger in strangers if _network(stranger) == network)
        if near >= max(1, most // _STRANGERS_OF_A_NETWORK):
            return f"too many unauthenticated connections from this network: {near} are open"
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:  # a socket of another family, opened by systemd
        return None
    # A socket for both families shows IPv4 addresses like this.
    return getattr(found, "ipv4_mapped", None) or found


def _network(host: str) -> bytes | None:
    found = _address(host)
    if found is None or found.is_loopback:
        return None
    return found.packed[: _NETWORK_BITS // 8]
