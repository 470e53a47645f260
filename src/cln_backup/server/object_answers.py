"""The server's side of a sealed backup: requests about objects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from cln_backup.model.errors import BackupError, BadPacket
from cln_backup.server.answers import Answers
from cln_backup.wire import object_packets as objects
from cln_backup.wire import packets as wire
from cln_backup.wire.refusals import refusal_of

if TYPE_CHECKING:
    from cln_backup.server.answers import Handlers
    from cln_backup.server.connection import Connection
    from cln_backup.server.sealed import Sealed

STANDING = wire.Standing(0, 0, 0, features=wire.FEATURES | wire.IS_SEALED)
"""All that a server can say of a sealed backup's state."""


class ObjectAnswers(Answers):
    """Answers to a client with the role `objects`."""

    node: Sealed

    def __init__(self, connection: Connection, node: Sealed) -> None:
        super().__init__(connection, node)

    def greet(self) -> None:
        """Answers the greeting."""
        self._channel.send(wire.METADATA, wire.pack_standing(STANDING))
        self._say("connected, to a sealed backup")

    def answer(self, packet_type: int, length_bytes: int) -> None:
        """See `Answers.answer`."""
        try:
            self._handle(packet_type, length_bytes)
        except BadPacket:
            raise
        except BackupError as error:
            self.node.counters.refusals += 1
            self._connection.say(logging.WARNING, f"refused: {error}")
            self._channel.send(wire.REFUSED, wire.pack_refusal(refusal_of(error)))

    def close(self) -> None:
        """See `Answers.close`; there is nothing to release."""

    def _put(self, length_bytes: int) -> None:
        payload = self._channel.payload(length_bytes, objects.MAX_PUT_BYTES)
        stored = self.node.put(*objects.unpack_put(payload))
        self._channel.send(objects.STORED, objects.pack_stored(stored))

    def _get(self, length_bytes: int) -> None:
        wanted = objects.unpack_get(self._channel.payload(length_bytes, objects.MAX_GET_BYTES))
        self._channel.send(objects.OBJECT, objects.pack_object(self.node.get(*wanted)))

    def _list(self, length_bytes: int) -> None:
        payload = self._channel.payload(length_bytes, objects.MAX_LIST_BYTES)
        listing, more = self.node.listing(*objects.unpack_list(payload))
        self._channel.send(objects.LISTING, objects.pack_listing(list(listing), more=more))

    def _delete(self, length_bytes: int) -> None:
        payload = self._channel.payload(length_bytes, objects.MAX_DELETE_BYTES)
        stored = self.node.delete(objects.unpack_delete(payload))
        self._channel.send(objects.STORED, objects.pack_stored(stored))

    handlers: ClassVar[Handlers] = {
        objects.PUT: _put,
        objects.GET: _get,
        objects.LIST: _list,
        objects.DELETE: _delete,
    }
