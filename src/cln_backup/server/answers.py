"""The common part of the server's two protocols: requests, each with its handler."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from cln_backup.model.errors import BadPacket
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cln_backup.server.connection import Connection
    from cln_backup.server.node import Node
    from cln_backup.server.served import Served

    Handlers = Mapping[int, Callable[[Any, int], wire.Standing | None]]


class Answers(ABC):
    """The answers to one client, in one protocol.

    Attributes:
        node: the node whose backup the client uses.
        handlers: for each type of packet, the method that reads the payload, of a given length,
            and serves the request. It returns the state to acknowledge, or `None` if it has
            answered.
    """

    handlers: ClassVar[Handlers]

    def __init__(self, connection: Connection, node: Node) -> None:
        self.node = node
        self._connection = connection
        self._channel = connection.channel

    @abstractmethod
    def answer(self, packet_type: int, length_bytes: int) -> None:
        """Reads the rest of a request and answers it, with a refusal if necessary.

        Raises:
            BadPacket, WriterConflict: the connection must be closed.
            OSError: it is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Releases the client's resources."""

    def _handle(self, packet_type: int, length_bytes: int) -> wire.Standing | None:
        handler = self.handlers.get(packet_type)
        if handler is None:
            raise BadPacket(f"a packet of type {packet_type}, which is not in its protocol")
        return handler(self, length_bytes)

    def _say(self, text: str) -> None:
        self._connection.say(logging.INFO, text)


class ServedAnswers(Answers):
    """The answers about a backup that the server reads and writes itself."""

    node: Served

    def __init__(self, connection: Connection, node: Served) -> None:
        super().__init__(connection, node)

    def compact(self, length_bytes: int) -> None:
        """Handles COMPACT, which is the same in both protocols."""
        self._channel.payload(length_bytes, 0)
        self._say("compaction requested")
        statistics = json.dumps(self.node.compact())
        self._say(f"compaction finished: {statistics}")
        self._channel.send(wire.COMPACT_RES, statistics.encode())
