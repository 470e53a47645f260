"""The server's side of protocol 1, for clients of the community's plugin."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

from cln_backup.formats import digests
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, BadPacket, WriterConflict
from cln_backup.server import intake
from cln_backup.server.answers import ServedAnswers
from cln_backup.server.streaming import send_all_plain
from cln_backup.storage import scratch
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.plain_snapshot import unpack_snapshot

if TYPE_CHECKING:
    from cln_backup.server.answers import Handlers
    from cln_backup.server.connection import Connection
    from cln_backup.server.served import Served

_MAX_IGNORED_BYTES = 1 << 16


class Protocol1(ServedAnswers):
    """Answers in protocol 1, which has no sessions: each write takes the right to write.

    It also passes on the number of writes that the client knows of; see `Served.append`.
    """

    def __init__(self, connection: Connection, node: Served) -> None:
        super().__init__(connection, node)
        self._writes = node.standing_and_writes()[1]
        self._say("connected, with protocol 1")
        self._channel.acknowledge_quickly()

    def answer(self, packet_type: int, length_bytes: int) -> None:
        """See `Answers.answer`."""
        try:
            standing = self._handle(packet_type, length_bytes)
        except (BadPacket, WriterConflict):
            # Closed without an answer: the community's client retries for a minute, and the
            # connection that has the right to write may be its own previous one.
            raise
        except BackupError as error:
            self._connection.say(logging.WARNING, f"refused: {error}")
            self.node.counters.refusals += 1
            version = self.node.standing_and_writes()[0].version
            self._channel.send(wire.NACK, wire.pack_version(version))
            return
        if standing is not None:
            self._writes += 1
            self._channel.send(wire.ACK, wire.pack_version(standing.version))

    def close(self) -> None:
        """See `Answers.close`; there is nothing to release."""

    def _change(self, length_bytes: int) -> wire.Standing:
        with intake.unpacked(
            self._channel, length_bytes, wire.unpack_change, self.node.scratch_dir
        ) as (version, transaction):
            digest = digests.digest_of(version, transaction)
            self._claim()
            return self._append(Change(version, None, transaction), digest)

    def _snapshot(self, length_bytes: int) -> wire.Standing:
        self._claim()  # before the disk is filled
        directory = self.node.scratch_dir()
        with Spool(directory) as spool:
            room = scratch.room_bytes(directory, op="receive a snapshot")
            version, digest = unpack_snapshot(self._channel.pieces(length_bytes), spool, room)
            return self._append(Change(version, spool, None), digest)

    def _append(self, change: Change, digest: bytes) -> wire.Standing:
        return self.node.append(self._connection, change, digest, writes=self._writes)

    def _rewind(self, length_bytes: int) -> wire.Standing:
        to_version = wire.unpack_version(self._channel.payload(length_bytes, 4))
        self._claim()
        return self.node.drop(self._connection, to_version, None, writes=self._writes)

    def _claim(self) -> None:
        self.node.claim(self._connection, "", resume=False)

    def _metadata(self, length_bytes: int) -> None:
        self._channel.payload(length_bytes, 0)
        standing, self._writes = self.node.standing_and_writes()
        self._channel.send(wire.METADATA, wire.pack_metadata(standing))

    def _restore(self, length_bytes: int) -> None:
        self._channel.payload(length_bytes, 0)
        self._say("streaming all changes")
        with self.node.open_reader() as reader:
            send_all_plain(self._channel, reader)

    def _ignore(self, length_bytes: int) -> None:
        self._channel.payload(length_bytes, _MAX_IGNORED_BYTES)

    handlers: ClassVar[Handlers] = {
        wire.CHANGE: _change,
        wire.SNAPSHOT: _snapshot,
        wire.REWIND: _rewind,
        wire.REQ_METADATA: _metadata,
        wire.RESTORE: _restore,
        wire.COMPACT: ServedAnswers.compact,
        wire.ACK: _ignore,
        wire.NACK: _ignore,
        wire.METADATA: _ignore,
        wire.COMPACT_RES: _ignore,
    }
