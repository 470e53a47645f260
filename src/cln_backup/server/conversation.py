"""One connection to the server, from its greeting to its end."""

from __future__ import annotations

import hashlib
import json
import logging
from hmac import compare_digest
from typing import TYPE_CHECKING

from cln_backup.formats import digests
from cln_backup.model.change import Change
from cln_backup.model.errors import (
    AccessDenied,
    BackupError,
    BadPacket,
    NotFound,
    WriterConflict,
)
from cln_backup.server import intake
from cln_backup.server.standing import head_digest, standing_of
from cln_backup.server.streaming import send_all_plain, send_changes
from cln_backup.storage import scratch
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.plain_snapshot import unpack_snapshot
from cln_backup.wire.refusals import refusal_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cln_backup.backends.contract import Backend
    from cln_backup.server.served import Served
    from cln_backup.wire.channel import Channel

_log = logging.getLogger("cln_backup.server")

GREETING_S = 10.0
"""How long a connection may take to say what it wants."""

IDLE_S = 300.0
"""How long one that is not the writer may say nothing. A writer may be quiet for days."""

_IGNORED = (wire.ACK, wire.NACK, wire.METADATA, wire.COMPACT_RES)
_MAX_IGNORED_BYTES = 1 << 16


class Conversation:
    """What one client asks and is answered. Whatever it sends, it ends this connection at most."""

    def __init__(
        self, channel: Channel, peer: str, nodes: Mapping[str, Served], *, local: bool
    ) -> None:
        self.peer = peer
        self.local = local
        self.who = ""
        self.greeted = False
        self._channel = channel
        self._nodes = nodes
        self._node: Served | None = None
        self._reader: Backend | None = None
        self._hello: wire.Hello | None = None
        self._seen: wire.Standing | None = None
        self._evicted = False
        self._writes = 0

    def run(self) -> None:
        """Serves until the client closes, or does what must not be. Raises nothing."""
        try:
            self._serve()
        except BadPacket as error:
            self._say(logging.WARNING, f"closed: the client sent {error}")
        except BackupError as error:
            self._say(logging.WARNING, f"closed: {error}")
        except OSError as error:
            self._say(logging.INFO, f"connection lost: {error}")
        except Exception:  # noqa: BLE001 - one connection's fault must touch no other
            _log.exception("%s: closed, by a fault of this program; please report it", self.peer)
        finally:
            node = self._node
            if node is not None:
                node.leave(self, self._channel.received_bytes)
            if self._reader is not None:
                self._reader.close()
            self._channel.close()

    def probe(self) -> None:
        """See `served.Client`."""
        self._channel.probe()

    def evict(self, why: str) -> None:
        """See `served.Client`."""
        self._evicted = True
        self._say(logging.WARNING, why)
        self._channel.shut()

    def finish(self) -> None:
        """Answers what was asked, and reads no more: the server stops."""
        self._channel.shut_reading()

    def _say(self, level: int, text: str) -> None:
        name = self._node.name if self._node is not None else ""
        _log.log(level, "%s%s: %s", self.peer, f" ({name})" if name else "", text)

    def _serve(self) -> None:
        self._channel.limit(GREETING_S)
        found = self._channel.head(GREETING_S)
        if found is None:
            return
        if found[0] == wire.METADATA:
            self._greet(found[1])
        else:
            self._writes = self._enter(wire.Hello("write")).standing_and_writes()[1]
            self._say(logging.INFO, "connected, with protocol 1")
            self._channel.acknowledge_quickly()
            self._plain(*found)
        while (found := self._channel.head(self._idle_s())) is not None:
            if self._hello is not None:
                self._extended(*found)
            else:
                self._plain(*found)
        self._say(logging.INFO, "connection closed" if not self._evicted else "closed")

    def _idle_s(self) -> float | None:
        assert self._node is not None
        return None if self._node.is_writer(self) else IDLE_S

    # The greeting

    def _greet(self, length: int) -> None:
        hello = wire.unpack_hello(self._channel.payload(length, wire.MAX_HELLO_BYTES))
        if self._channel.head(GREETING_S) != (wire.REQ_METADATA, 0):
            raise BadPacket("something else than a question behind its greeting")
        try:
            node = self._enter(hello)
            if hello.role == "write":
                standing = node.claim(self, hello.session, resume=hello.resume)
            elif hello.role == "takeover":
                node.take_over(hello.session)
                standing = node.standing()
            elif hello.role == "read":
                self._reader = node.open_reader()
                digest, size = head_digest(self._reader), self._reader.size_bytes
                self._seen = standing = standing_of(self._reader, digest, 0, size_bytes=size)
            elif hello.role == "create":
                standing = self._standing_if_any(node)
            else:
                raise BadPacket("a greeting with a role that is not known")
        except BackupError as error:
            self._refuse(error)
            raise
        self._hello = hello
        self._say(logging.INFO, f"connected, to {hello.role}; version {standing.version}")
        self._channel.send(wire.METADATA, wire.pack_standing(standing))

    def _standing_if_any(self, node: Served) -> wire.Standing:
        try:
            return node.standing()
        except NotFound:
            return wire.Standing(0, 0, 0)

    def _enter(self, hello: wire.Hello) -> Served:
        """Finds the node that is meant, and lets nobody in without its token."""
        node = self._nodes.get(hello.node)
        if not hello.node and len(self._nodes) == 1:
            (node,) = self._nodes.values()
        shown = hashlib.sha256(hello.token.encode()).hexdigest()
        wanted = node.token_hash if node is not None else None
        # An unknown name costs as much as a wrong token, and is answered the same.
        right = compare_digest(shown, wanted if wanted is not None else "-" * 64)
        if node is None or (wanted is not None and not right):
            raise AccessDenied(
                "The server knows no such node, or its token is another. Compare the URL's node "
                "and token-file with the server's list of nodes; nothing was stored."
            )
        self.who = "".join(sign for sign in hello.who[:100] if sign.isprintable())
        node.enter(self)
        self._node = node
        self.greeted = True
        self._channel.limit(None)
        return node

    def _refuse(self, error: BackupError) -> None:
        if self._node is not None:
            self._node.counters.refusals += 1
        self._channel.send(wire.REFUSED, wire.pack_refusal(refusal_of(error)))

    # The extension

    def _extended(self, packet_type: int, length: int) -> None:
        assert self._hello is not None
        try:
            standing = self._answer_extended(packet_type, length)
        except BadPacket:
            raise
        except BackupError as error:
            self._say(logging.WARNING, f"refused: {error}")
            self._refuse(error)
            if isinstance(error, WriterConflict):
                raise
            return
        if standing is not None:
            self._channel.send(wire.METADATA, wire.pack_standing(standing))

    def _answer_extended(self, packet_type: int, length: int) -> wire.Standing | None:
        node = self._node
        assert node is not None
        if packet_type == wire.APPEND:
            node.require_writer(self)  # before its memory and disk are taken
            with intake.unpacked(self._channel, length, wire.unpack_append, self._scratch_dir) as (
                version,
                transaction,
                digest,
            ):
                return node.append(self, Change(version, None, transaction), digest)
        if packet_type == wire.REQ_METADATA:
            self._channel.payload(length, 0)
            return node.standing() if self._seen is None else self._seen
        if packet_type == wire.SNAPSHOT_BEGIN:
            return self._take_snapshot(length)
        if packet_type == wire.CLAIM:
            node_id = wire.unpack_claim(self._channel.payload(length, wire.MAX_NODE_ID_BYTES))
            return node.belong_to(self, node_id)
        if packet_type == wire.CREATE:
            self._channel.payload(length, 0)
            return node.create(self, None, digests.NO_DIGEST)
        if packet_type == wire.DROP:
            to_version, digest = wire.unpack_drop(self._channel.payload(length, 64))
            return node.drop(self, to_version, digest)
        if packet_type == wire.STREAM:
            self._stream(wire.unpack_stream_start(self._channel.payload(length, 64)))
            return None
        if packet_type == wire.COMPACT:
            self._channel.payload(length, 0)
            self._compact(node)
            return None
        raise BadPacket(f"a packet of type {packet_type}")

    def _take_snapshot(self, length: int) -> wire.Standing:
        node = self._node
        assert node is not None
        assert self._hello is not None
        begin = self._channel.payload(length, 64)
        creates = self._hello.role == "create"
        if not creates:
            node.require_writer(self)  # before its disk is filled
        with intake.snapshot(self._channel, begin, self._scratch_dir()) as received:
            version, spool, digest = received
            self._say(logging.INFO, f"snapshot of {spool.size_bytes} bytes for version {version}")
            change = Change(version, spool, None)
            if creates:
                return node.create(self, change, digest)
            return node.append(self, change, digest)

    def _scratch_dir(self) -> str:
        assert self._node is not None
        try:
            return self._node.scratch_dir()
        except NotFound:  # it is being made
            return scratch.temporary()

    def _stream(self, start: wire.StreamStart) -> None:
        assert self._node is not None
        reader = self._reader
        opened = self._node.open_reader() if reader is None else None
        try:
            source = reader if opened is None else opened
            assert source is not None
            self._say(logging.INFO, f"streaming from version {start.version}")
            deflate = self._hello is not None and self._hello.deflate
            send_changes(self._channel, source, start, deflate=deflate)
        finally:
            if opened is not None:
                opened.close()

    def _compact(self, node: Served) -> None:
        self._say(logging.INFO, "compaction asked for")
        statistics = node.compact()
        self._say(logging.INFO, f"compaction finished: {json.dumps(statistics)}")
        self._channel.send(wire.COMPACT_RES, json.dumps(statistics).encode())

    # Protocol 1

    def _plain(self, packet_type: int, length: int) -> None:
        node = self._node
        assert node is not None
        try:
            self._answer_plain(node, packet_type, length)
        except (BadPacket, WriterConflict):
            # Closed without an answer: the community's client tries again for a minute, and the
            # connection that is in its way may be its own of before.
            raise
        except BackupError as error:
            self._say(logging.WARNING, f"refused: {error}")
            node.counters.refusals += 1
            self._channel.send(wire.NACK, wire.pack_version(node.standing_and_writes()[0].version))

    def _answer_plain(self, node: Served, packet_type: int, length: int) -> None:
        if packet_type == wire.CHANGE:
            with intake.unpacked(self._channel, length, wire.unpack_change, self._scratch_dir) as (
                version,
                transaction,
            ):
                digest = digests.digest_of(version, transaction)
                self._claim_plain(node)
                change = Change(version, None, transaction)
                standing = node.append(self, change, digest, writes=self._writes)
            self._writes += 1
            self._channel.send(wire.ACK, wire.pack_version(standing.version))
        elif packet_type == wire.SNAPSHOT:
            self._claim_plain(node)  # before its disk is filled
            directory = node.scratch_dir()
            with Spool(directory) as spool:
                room = scratch.room_bytes(directory, op="take what a node sends")
                version, digest = unpack_snapshot(self._channel.pieces(length), spool, room)
                change = Change(version, spool, None)
                standing = node.append(self, change, digest, writes=self._writes)
            self._writes += 1
            self._channel.send(wire.ACK, wire.pack_version(standing.version))
        elif packet_type == wire.REWIND:
            to_version = wire.unpack_version(self._channel.payload(length, 4))
            self._claim_plain(node)
            standing = node.drop(self, to_version, None, writes=self._writes)
            self._writes += 1
            self._channel.send(wire.ACK, wire.pack_version(standing.version))
        elif packet_type == wire.REQ_METADATA:
            self._channel.payload(length, 0)
            standing, self._writes = node.standing_and_writes()
            self._channel.send(wire.METADATA, wire.pack_metadata(standing))
        elif packet_type == wire.RESTORE:
            self._channel.payload(length, 0)
            self._say(logging.INFO, "streaming all changes")
            with node.open_reader() as reader:
                send_all_plain(self._channel, reader)
        elif packet_type == wire.COMPACT:
            self._channel.payload(length, 0)
            self._compact(node)
        elif packet_type in _IGNORED:
            self._channel.payload(length, _MAX_IGNORED_BYTES)
        else:
            raise BadPacket(f"a packet of type {packet_type}, which protocol 1 does not have")

    def _claim_plain(self, node: Served) -> None:
        node.claim(self, "", resume=False)
