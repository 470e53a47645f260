"""How many connections a server has at once, so that strangers keep no node out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONNECTIONS = 1024
"""How many may be open, unless the command line says otherwise.

A quarter of them may have not yet said who they are; a sixteenth, from one network.
"""

_STRANGERS = 4
_STRANGERS_OF_A_NETWORK = 16
_NETWORK_BITS = 64
"""What one customer of a provider has of IPv6."""


def is_loopback(host: str) -> bool:
    """Whether a numeric address is this machine's own."""
    found = _address(host)
    return found is not None and found.is_loopback


def why_refused(host: str, strangers: Sequence[str], open_now: int, most: int) -> str | None:
    """Why a new connection from a host is not taken; `None` when it is.

    Connections from this machine count as from as many networks: a tunnel or Tor brings them.

    Args:
        host: its numeric address.
        strangers: the hosts of the connections that have not yet said who they are.
        open_now: how many connections are open, those included.
        most: how many may be.
    """
    if open_now >= most:
        return f"{open_now} connections are open already"
    if len(strangers) >= max(1, most // _STRANGERS):
        return f"{len(strangers)} connections are open that have not said who they are"
    network = _network(host)
    if network is not None:
        near = sum(1 for stranger in strangers if _network(stranger) == network)
        if near >= max(1, most // _STRANGERS_OF_A_NETWORK):
            return f"{near} connections from there are open that have not said who they are"
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:  # a socket of another family, opened by systemd
        return None
    # As a socket for both families shows the older one.
    return getattr(found, "ipv4_mapped", None) or found


def _network(host: str) -> bytes | None:
    found = _address(host)
    if found is None or found.is_loopback:
        return None
    return found.packed[: _NETWORK_BITS // 8]
