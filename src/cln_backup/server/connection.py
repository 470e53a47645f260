"""A client's connection, as its node, the listener and the log see it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cln_backup.server.node import Node
    from cln_backup.wire.channel import Channel

_log = logging.getLogger("cln_backup.server")


class Connection:
    """One connection; see also `right.Client`.

    Attributes:
        channel: its packets.
        peer: the other side's address.
        local: whether the other side is on this machine.
        who: the client's process, as the client describes it.
        node: the node whose backup it uses; `None` until the client has been admitted.
    """

    def __init__(self, channel: Channel, peer: str, *, local: bool) -> None:
        self.channel = channel
        self.peer = peer
        self.local = local
        self.who = ""
        self.node: Node | None = None
        self._evicted = False

    def admit(self, node: Node, who: str) -> None:
        """Lets the client in. Raises `ConnectionAbortedError` if the node has too many."""
        self.who = "".join(sign for sign in who[:100] if sign.isprintable())
        node.enter(self)
        self.node = node
        self.channel.limit(None)

    def probe(self) -> bool:
        """See `right.Client`."""
        self.channel.probe()
        return self.channel.has_hung_up()

    def evict(self, why: str) -> None:
        """See `right.Client`."""
        self._evicted = True
        self.say(logging.WARNING, why)
        self.channel.shut()

    def finish(self) -> None:
        """Answers the requests already received, and reads no more, because the server stops."""
        self.channel.shut_reading()

    def ended(self) -> None:
        """Notes in the log that the client has closed the connection."""
        self.say(logging.INFO, "connection closed" if not self._evicted else "closed")

    def close(self) -> None:
        """Leaves the node and closes the socket."""
        if self.node is not None:
            self.node.leave(self, self.channel.received_bytes)
        self.channel.close()

    def say(self, level: int, text: str) -> None:
        """Writes a line to the log that names the client and its node."""
        name = self.node.name if self.node is not None else ""
        _log.log(level, "%s%s: %s", self.peer, f" ({name})" if name else "", text)
