"""One node on a server: its name, its token, its connections."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from cln_backup.server.counters import Counters

if TYPE_CHECKING:
    from cln_backup.server.right import Client
    from cln_backup.wire import packets as wire

_log = logging.getLogger("cln_backup.server")

MAX_NODE_CONNECTIONS: Final = 32
"""The maximum number of connections per node; it has one, and a second for a compaction."""


class Node(ABC):
    """A node with its backup. Its methods may be called from any thread.

    Attributes:
        last: the state of its backup; `None` if it is not open, or sealed.
    """

    def __init__(self, name: str, url: str, token_hash: str | None) -> None:
        self.name = name
        self.url = url
        self.token_hash = token_hash
        self.counters = Counters()
        self.last: wire.Standing | None = None
        self._clients_lock = threading.Lock()
        self._clients: set[Client] = set()
        self._retired = False

    @abstractmethod
    def open(self) -> None:
        """Opens the backup. Raises as `Place.open_writer` does."""

    @abstractmethod
    def size_bytes(self) -> int:
        """The size of the backup on its storage; this waits for nothing."""

    @abstractmethod
    def close(self) -> None:
        """Closes the backup, after the write in progress."""

    def say(self, level: int, text: str) -> None:
        """Logs a line about this backup."""
        _log.log(level, "%s%s", f"{self.name}: " if self.name else "", text)

    def enter(self, client: Client) -> None:
        """Registers a connection.

        Raises:
            ConnectionAbortedError: there are too many; the client may retry.
        """
        with self._clients_lock:
            if len(self._clients) >= MAX_NODE_CONNECTIONS:
                raise ConnectionAbortedError(
                    f"too many connections of this node: {len(self._clients)} are open"
                )
            self._clients.add(client)

    def leave(self, client: Client, received_bytes: int) -> None:
        """Unregisters a connection."""
        with self._clients_lock:
            self._clients.discard(client)
            self.counters.received_bytes += received_bytes

    def connections(self) -> int:
        """The number of open connections of the node."""
        return len(self._clients)

    def is_writer(self, client: Client) -> bool:  # noqa: ARG002
        """Whether a connection may be idle for days, as that of a node that writes."""
        return False

    def writer_peer(self) -> str | None:
        """The address of the current writer, if it is known."""
        return None

    def require_open(self) -> None:
        """Raises `ConnectionAbortedError` if the node is no longer in the list."""
        if self._retired:
            raise ConnectionAbortedError("the list of nodes was changed")

    def retire(self) -> None:
        """Ends all connections for good: the node is no longer in the list."""
        with self._clients_lock:
            clients = list(self._clients)
        self._retired = True
        for client in clients:
            client.evict("closed: the list of nodes was changed")
