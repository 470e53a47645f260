"""One conversation with a server: the same questions in protocol 1 and in its extension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cln_backup.backends.contract import Statistics
from cln_backup.backends.socket.dial import STALL_S, dial
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
"""How fast a server must at least be at putting a snapshot on its disk."""


class Outgoing:
    """A change on its way to a server.

    Attributes:
        payload: of a transaction or rider, as `v1.pack_transaction` has it.
        digest: of the change; `None` of a snapshot that was not yet read to its end.
    """

    def __init__(self, change: Change) -> None:
        wire.pack_version(change.version)  # raises where it does not fit
        self.version = change.version
        self.kind = change.kind
        self.snapshot: Snapshot | None = change.snapshot
        self.payload = b""
        self.digest: bytes | None = None
        if change.transaction is not None:
            self.payload = v1.pack_transaction(change.transaction)
            if len(self.payload) > wire.MAX_CHANGE_BYTES:
                raise BadChange(
                    f"The transaction for data version {self.version} has {len(self.payload)} "
                    f"bytes, and a server takes {wire.MAX_CHANGE_BYTES}; nothing was sent."
                )
            self.digest = digests.transaction_digest(self.version, self.payload)


class Incoming(NamedTuple):
    """A packet of a stream of changes, its payload still to come."""

    type: int
    length_bytes: int


class Session(ABC):
    """A conversation. Methods raise `OSError` when the connection is lost; then it is over.

    Attributes:
        standing: where the server's backup stood at its last answer.
        used_by: who reads a stream of changes, until the end of which nothing else can be asked.
    """

    extended: bool

    def __init__(self, channel: Channel, standing: wire.Standing) -> None:
        self._channel = channel
        self.standing = standing
        self.used_by: object = None
        self._stall_s = STALL_S

    @abstractmethod
    def append(self, change: Outgoing) -> None:
        """Has a change stored; it is on the server's stable storage when this returns."""

    @abstractmethod
    def drop(self, to_version: int, digest: bytes) -> None:
        """Has the head dropped, which has this digest (of use in the extension only)."""

    @abstractmethod
    def request_stream(self, start: wire.StreamStart) -> None:
        """Asks for changes; protocol 1 always gives all."""

    def bound_stall(self, stall_s: float) -> None:
        """Changes how long the server may say nothing while something is due."""
        self._stall_s = stall_s
        self._channel.bound_stall(stall_s)

    def refresh(self) -> None:
        """Asks where the backup stands."""
        self._channel.send(wire.REQ_METADATA)
        payload = self._expect(wire.METADATA, wire.MAX_HELLO_BYTES)
        self.standing = wire.unpack_standing(payload)[1]

    def compact(self, limit_s: float) -> Statistics:
        """Has the server compact the backup, which may take so long."""
        self._channel.send(wire.COMPACT)
        payload = self._expect(wire.COMPACT_RES, wire.MAX_STATISTICS_BYTES, limit_s)
        try:
            return msgspec.json.decode(payload, type=Statistics)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadPacket("The server's figures cannot be understood.") from None

    def incoming(self) -> Incoming:
        """The start of the next packet of a stream. Raises what the server refused with."""
        found = self._channel.head(self._stall_s)
        if found is None:
            raise ConnectionResetError("the server closed the connection")
        if found[0] in (wire.REFUSED, wire.NACK):
            raise self._refusal(*found)
        return Incoming(*found)

    def payload(self, packet: Incoming, limit_bytes: int) -> bytes:
        """The payload of the packet that `incoming` gave."""
        return self._channel.payload(packet.length_bytes, limit_bytes)

    def pieces(self, packet: Incoming) -> Iterator[bytes]:
        """The payload of the packet that `incoming` gave, in pieces."""
        return self._channel.pieces(packet.length_bytes)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _expect(self, packet_type: int, limit_bytes: int, storing_s: float = 0.0) -> bytes:
        """The payload of the answer, for which the server may need `storing_s` longer."""
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
            f"The server, whose backup stands{at or ' somewhere'}, refused, and its protocol has "
            "no place for the reason. Look into its log."
        )


class PlainSession(Session):
    """Protocol 1, as the community's server speaks it."""

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
                f"The server was sent version {change.version} and says that it is at {version}. "
                "Does another node write to the same backup?"
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
                f"The server was to go back to version {to_version} and says that it is at "
                f"{version}; it can go back only once. Nothing was dropped."
            )

    def request_stream(self, start: wire.StreamStart) -> None:  # noqa: ARG002
        """See `Session.request_stream`."""
        self._channel.send(wire.RESTORE)


class ExtendedSession(Session):
    """The extension, as the server of this project speaks it."""

    extended = True

    def __init__(self, channel: Channel, standing: wire.Standing, *, deflate: bool) -> None:
        super().__init__(channel, standing)
        self._deflate = deflate

    def append(self, change: Outgoing) -> None:
        """See `Session.append`."""
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
                    self._channel, change.version, change.snapshot, deflate=self._deflate
                )
                self._channel.flush()
            except BaseException:
                self.close()  # so that the server forgets what it has of it
                raise
        self._stood(storing_s)
        if self.standing.digest != change.digest:
            raise Discontinuity(
                f"The server was sent a change for version {change.version}, and the last one that "
                "it holds is another. Does another node write to the same backup?"
            )

    def wait(self, limit_s: float) -> bool:
        """Waits until the backup changes, for so long at most; `standing` then tells how it is.

        Returns at once, with `False`, where the server cannot wait.
        """
        if not self.standing.features & wire.CAN_WAIT:
            return False
        self._channel.send(wire.WAIT, wire.pack_wait(limit_s))
        self._stood(limit_s)
        return True

    def claim(self, node_id: str) -> None:
        """Has the server make sure that the backup is this node's."""
        self._channel.send(wire.CLAIM, wire.pack_claim(node_id))
        self._stood()

    def create_empty(self) -> None:
        """Has an empty backup made; it is there, durable, when this returns."""
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
    """Connects, greets the server and learns where its backup stands.

    Args:
        url: the server, and how to reach it.
        hello: the greeting.
        timeout_s: how long the connection may take.
        stall_s: how long the server may then say nothing.

    Raises:
        OSError: there is no connection; another attempt may succeed.
        BackupError: the server refused, or cannot do what the URL asks for.
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
                f"The server at {url.server} knows protocol 1 only, which has no nodes, no tokens "
                "and no takeover. Nothing was stored. Is it the right server?"
            )
        session.standing = standing
    except BaseException:
        channel.close()
        raise
    return session
