"""One conversation with a server: the same requests in protocol 1 and in its extension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cln_backup.backends.socket.dial import STALL_S, dial
from cln_backup.backends.ticket import Statistics
from cln_backup.formats import digests, v1
from cln_backup.model.errors import (
    AccessDenied,
    BackupError,
    BadChange,
    BadPacket,
    Discontinuity,
    StorageError,
)
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.pieces import queue_snapshot
from cln_backup.wire.plain_snapshot import pack_snapshot, send_snapshot
from cln_backup.wire.refusals import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.socket.url import SocketUrl
    from cln_backup.model.change import Change, Snapshot
    from cln_backup.wire.channel import Channel

_STORING_BYTES_S = 4_000_000
"""The minimum speed of a server storing a snapshot."""


class Outgoing:
    """A change to send to a server.

    Attributes:
        payload: of a transaction or rider, encoded by `v1.pack_transaction`.
        digest: of the change; `None` for a snapshot that was not read to its end yet.
    """

    def __init__(self, change: Change) -> None:
        wire.pack_version(change.version)  # raises if it is out of range
        self.version = change.version
        self.kind = change.kind
        self.snapshot: Snapshot | None = change.snapshot
        self.payload = b""
        self.digest: bytes | None = None
        if change.transaction is not None:
            self.payload = v1.pack_transaction(change.transaction)
            if len(self.payload) > wire.MAX_CHANGE_BYTES:
                raise BadChange(
                    f"The transaction for data version {self.version} is too large for a server: "
                    f"{len(self.payload)} bytes; the limit is {wire.MAX_CHANGE_BYTES}. Nothing was "
                    "sent."
                )
            self.digest = digests.transaction_digest(self.version, self.payload)


class Incoming(NamedTuple):
    """A packet of a stream of changes, whose payload was not read yet."""

    type: int
    length_bytes: int


class Session(ABC):
    """A conversation. Methods raise `OSError` if the connection is lost; that ends it.

    Attributes:
        standing: the state of the server's backup at its last answer.
        used_by: the reader of a stream of changes; until its end there can be no other request.
    """

    extended: bool

    def __init__(self, channel: Channel, standing: wire.Standing) -> None:
        self._channel = channel
        self.standing = standing
        self.used_by: object = None
        self._stall_s = STALL_S

    @abstractmethod
    def append(self, change: Outgoing) -> None:
        """Stores a change; it is on the server's stable storage when this returns."""

    @abstractmethod
    def drop(self, to_version: int, digest: bytes) -> None:
        """Drops the head, which must have this digest (checked in the extension only)."""

    @abstractmethod
    def request_stream(self, start: wire.StreamStart) -> None:
        """Requests changes; protocol 1 always streams all."""

    def bound_stall(self, stall_s: float) -> None:
        """Changes how long the server may send nothing while an answer is due."""
        self._stall_s = stall_s
        self._channel.bound_stall(stall_s)

    def refresh(self) -> None:
        """Requests the state of the backup."""
        self._channel.send(wire.REQ_METADATA)
        payload = self._expect(wire.METADATA, wire.MAX_HELLO_BYTES)
        self.standing = wire.unpack_standing(payload)[1]

    def compact(self, limit_s: float) -> Statistics:
        """Makes the server compact the backup, which may take `limit_s`."""
        self._channel.send(wire.COMPACT)
        payload = self._expect(wire.COMPACT_RES, wire.MAX_STATISTICS_BYTES, limit_s)
        try:
            return msgspec.json.decode(payload, type=Statistics)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadPacket("The server sent invalid statistics.") from None

    def ask(self, packet_type: int, payload: bytes, answer_type: int, limit_bytes: int) -> bytes:
        """Sends one packet, and returns the payload of the answer of the expected type."""
        self._channel.send(packet_type, payload)
        return self._expect(answer_type, limit_bytes)

    def incoming(self) -> Incoming:
        """The head of the next packet of a stream. Raises the error of a refusal."""
        found = self._channel.head(self._stall_s)
        if found is None:
            raise ConnectionResetError("the server closed the connection")
        if found[0] in (wire.REFUSED, wire.NACK):
            raise self._refusal(*found)
        return Incoming(*found)

    def payload(self, packet: Incoming, limit_bytes: int) -> bytes:
        """The payload of the packet that `incoming` returned."""
        return self._channel.payload(packet.length_bytes, limit_bytes)

    def pieces(self, packet: Incoming) -> Iterator[bytes]:
        """The payload of the packet that `incoming` returned, in pieces."""
        return self._channel.pieces(packet.length_bytes)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _expect(self, packet_type: int, limit_bytes: int, storing_s: float = 0.0) -> bytes:
        """The payload of the answer, for which the server may take `storing_s` longer."""
        found = self._channel.head(self._stall_s + storing_s)
        if found is None:
            raise ConnectionResetError("the server closed the connection")
        if found[0] == packet_type:
            return self._channel.payload(found[1], limit_bytes)
        if found[0] in (wire.REFUSED, wire.NACK):
            raise self._refusal(*found)
        raise BadPacket(f"The server answered with a packet of type {found[0]}; it was not used.")

    def _refusal(self, packet_type: int, length_bytes: int) -> BackupError:
        payload = self._channel.payload(length_bytes, wire.MAX_REFUSAL_BYTES)
        if packet_type == wire.REFUSED:
            return error_of(wire.unpack_refusal(payload))
        at = f" at version {wire.unpack_version(payload)}" if len(payload) == 4 else ""
        return StorageError(
            f"The server refused the request; its backup is{at or ' at an unknown version'}. "
            "Its protocol cannot transfer the reason: see its log."
        )


class PlainSession(Session):
    """The client's side of protocol 1, for the community's server."""

    extended = False

    def append(self, change: Outgoing) -> None:
        """See `Session.append`."""
        before = self.standing
        storing_s = 0.0
        if change.snapshot is None:
            self._channel.send(wire.CHANGE, wire.pack_change(change.version, change.payload))
        else:
            storing_s = change.snapshot.size_bytes / _STORING_BYTES_S
            self._send_snapshot(change.version, change.snapshot)
        version = wire.unpack_version(self._expect(wire.ACK, 4, storing_s))
        if version != change.version:
            raise Discontinuity(
                f"The server is at version {version} after the change for version "
                f"{change.version}. Does another node write to the same backup?"
            )
        self.standing = wire.Standing(version, before.version, before.version_count + 1)

    def _send_snapshot(self, version: int, snapshot: Snapshot) -> None:
        with Spool() as packed:
            pack_snapshot(snapshot, packed)
            send_snapshot(self._channel, version, packed)

    def drop(self, to_version: int, digest: bytes) -> None:  # noqa: ARG002 - of the extension
        """See `Session.drop`."""
        self._channel.send(wire.REWIND, wire.pack_version(to_version))
        version = wire.unpack_version(self._expect(wire.ACK, 4))
        self.refresh()
        if version != to_version:
            raise Discontinuity(
                f"The server did not go back to version {to_version}: it is at {version}, and can "
                "go back only once. Nothing was dropped."
            )

    def request_stream(self, start: wire.StreamStart) -> None:  # noqa: ARG002
        """See `Session.request_stream`."""
        self._channel.send(wire.RESTORE)


class ExtendedSession(Session):
    """The client's side of the extension, for this project's server."""

    extended = True

    def __init__(self, channel: Channel, standing: wire.Standing, *, deflate: bool) -> None:
        super().__init__(channel, standing)
        self._deflate = deflate

    def append(self, change: Outgoing, *, replaces: bytes | None = None) -> None:
        """See `Session.append`; with the head's digest in `replaces`, only the snapshot stays."""
        storing_s = 0.0
        if change.snapshot is None:
            assert change.digest is not None
            payload = wire.pack_append(
                change.version, change.payload, change.digest, deflate=self._deflate
            )
            self._channel.send(wire.APPEND, payload)
        else:
            storing_s = change.snapshot.size_bytes / _STORING_BYTES_S
            try:
                change.digest = queue_snapshot(
                    self._channel,
                    change.version,
                    change.snapshot,
                    deflate=self._deflate,
                    replaces=replaces,
                )
                self._channel.flush()
            except BaseException:
                self.close()  # so that the server discards the pieces that it has
                raise
        self._stood(storing_s)
        if self.standing.digest != change.digest:
            raise Discontinuity(
                f"The server's last change is not the one that was sent, for version "
                f"{change.version}. Does another node write to the same backup?"
            )

    def wait(self, limit_s: float) -> bool:
        """Waits until the backup changes, or for `limit_s`; `standing` then has its state.

        Returns at once, with `False`, if the server does not support it.
        """
        if not self.standing.features & wire.CAN_WAIT:
            return False
        self._channel.send(wire.WAIT, wire.pack_wait(limit_s))
        self._stood(limit_s)
        return True

    def claim(self, node_id: str) -> None:
        """Makes the server check that the backup belongs to this node."""
        self._channel.send(wire.CLAIM, wire.pack_claim(node_id))
        self._stood()

    def create_empty(self) -> None:
        """Makes an empty backup; it is durable when this returns."""
        self._channel.send(wire.CREATE)
        self._stood()

    def drop(self, to_version: int, digest: bytes) -> None:
        """See `Session.drop`."""
        self._channel.send(wire.DROP, wire.pack_drop(to_version, digest))
        self._stood()

    def _stood(self, storing_s: float = 0.0) -> None:
        payload = self._expect(wire.METADATA, wire.MAX_HELLO_BYTES, storing_s)
        self.standing = wire.unpack_standing(payload)[1]

    def request_stream(self, start: wire.StreamStart) -> None:
        """See `Session.request_stream`."""
        self._channel.send(wire.STREAM, wire.pack_stream_start(start))


def open_session(
    url: SocketUrl, hello: wire.Hello, timeout_s: float, stall_s: float = STALL_S
) -> Session:
    """Connects, greets the server and gets the state of its backup.

    Args:
        url: the server, and how to reach it.
        hello: the greeting.
        timeout_s: timeout of the connection.
        stall_s: how long the server may then send nothing.

    Raises:
        OSError: the connection failed; a retry may succeed.
        BackupError: the server refused, or does not support the options in the URL.
    """
    channel = dial(url, timeout_s, stall_s)
    try:
        if url.protocol != wire.PROTOCOL:
            channel.queue(wire.METADATA, wire.pack_hello(hello))
        session = PlainSession(channel, wire.Standing(0, 0, 0))
        session.bound_stall(stall_s)
        channel.send(wire.REQ_METADATA)
        payload = session._expect(wire.METADATA, wire.MAX_HELLO_BYTES)  # noqa: SLF001
        protocol, standing = wire.unpack_standing(payload)
        if protocol == wire.EXTENDED:
            return ExtendedSession(channel, standing, deflate=hello.deflate)
        if url.node or url.token_file or hello.role == "takeover":
            raise AccessDenied(
                f"The server at {url.server} supports protocol 1 only, which has no nodes, no "
                "tokens and no takeover. Nothing was stored. Is it the right server?"
            )
        session.standing = standing
    except BaseException:
        channel.close()
        raise
    return session
