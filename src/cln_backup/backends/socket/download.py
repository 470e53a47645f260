"""Streams the changes of a backup on a server; an interrupted stream is resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.formats import digests
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import BadPacket, Damaged, StorageError
from cln_backup.storage import scratch
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.pieces import Arriving
from cln_backup.wire.plain_snapshot import unpack_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from cln_backup.backends.socket.link import Link
    from cln_backup.backends.socket.session import Incoming, Session
    from cln_backup.model.position import Position

    T = TypeVar("T")

_CHANGED = (
    "The backup on the server changed while it was read, so the interrupted stream cannot be "
    "resumed. The backup is not damaged; start again."
)


class WireSnapshot:
    """A snapshot that is being received; its bytes can be read once."""

    def __init__(self, size_bytes: int, pieces: Iterator[bytes]) -> None:
        self.size_bytes = size_bytes
        self._pieces: Iterator[bytes] | None = pieces

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order."""
        if self._pieces is None:
            raise StorageError("A snapshot from a server can be read only once.")
        pieces, self._pieces = self._pieces, None
        return pieces


class Download:
    """A stream of the extension; takes part in `Link.until` packet by packet.

    It ends where the reader's view of the backup does, `until`, also if the connection is a new
    one, which sees more.
    """

    def __init__(
        self,
        link: Link,
        limit_s: float,
        start: int,
        *,
        head: bool,
        until: wire.Standing,
        after: Position | None = None,
    ) -> None:
        self._link = link
        self._limit_s = limit_s
        self._next = wire.StreamStart(start, 0, head, 0, digests.NO_DIGEST, after)
        self._session: Session | None = None
        self._resumed = False
        self._sees_more = False
        self._until = until

    def changes(self) -> Iterator[Change]:
        """The changes, up to the head that the backup had when the stream began."""
        while True:
            packet, payload = self._packet()
            if packet.type == wire.STREAM_END:
                if self._sees_more and not self._at_end():
                    raise StorageError(_CHANGED)
                break
            if packet.type == wire.APPEND:
                version, transaction, digest = _or_damaged(wire.unpack_append, payload)
                self._advance(version, digest)
                yield Change(version, None, transaction, 0)
            elif packet.type == wire.SNAPSHOT_BEGIN:
                snapshot = Arriving(payload)
                pieces = self._pieces(snapshot)
                arriving = WireSnapshot(snapshot.size_bytes, pieces)
                yield Change(snapshot.version, arriving, None, 0)
                for _ in pieces:  # the caller asked for the next change: skip the rest
                    pass
            else:
                raise BadPacket(f"The server sent a packet of type {packet.type} among changes.")
            if self._sees_more and self._at_end():  # later changes are not part of this stream
                self._link.close()
                break
        if self._session is not None:
            self._session.used_by = None

    def _packet(self) -> tuple[Incoming, bytes]:
        """The next packet, on this connection or on the next one."""
        return self._link.until(self._limit_s, self._attempt, self)

    def _attempt(self, session: Session) -> tuple[Incoming, bytes]:
        if session is not self._session:
            stands, after = session.standing, self._next.after
            self._sees_more = (stands.version, stands.digest) != self._end
            at_end = after is not None and after.changes == self._until.position.changes
            old = after is not None and not stands.features & wire.CAN_STREAM_AFTER
            if old or (self._sees_more and (at_end or not self._next.head)):
                raise StorageError(_CHANGED)
            self._resumed = self._session is not None
            session.used_by = self
            session.request_stream(self._next)
            self._session = session
        packet = session.incoming()
        return packet, session.payload(packet, wire.MAX_CHANGE_BYTES + wire.APPEND_BYTES)

    def _at_end(self) -> bool:
        return self._end == (self._next.version, self._next.digest)

    @property
    def _end(self) -> tuple[int, bytes]:
        return self._until.version, self._until.digest

    def _advance(self, version: int, digest: bytes) -> None:
        again = version == self._next.version
        skip = self._next.skip + 1 if again else 1
        self._next = self._next._replace(version=version, skip=skip, offset_bytes=0, digest=digest)

    def _pieces(self, snapshot: Arriving) -> Iterator[bytes]:
        version = snapshot.version
        while True:
            packet, payload = self._packet()
            if packet.type == wire.SNAPSHOT_DATA:
                piece = snapshot.take(payload)
                self._next = self._next._replace(offset_bytes=snapshot.received_bytes)
                yield piece
            elif packet.type == wire.SNAPSHOT_BEGIN and self._resumed:
                if wire.unpack_snapshot_begin(payload) != (version, snapshot.size_bytes):
                    raise StorageError(_CHANGED)
            elif packet.type == wire.SNAPSHOT_END:
                if not snapshot.is_whole(payload):
                    raise Damaged(
                        f"Digest mismatch in the snapshot for data version {version}: it changed "
                        "on the way. Try again; if it happens again, test the server's memory."
                    )
                self._advance(version, payload)
                return
            else:
                raise BadPacket(f"The server sent a packet of type {packet.type} in a snapshot.")


class _Item(NamedTuple):
    """One change of protocol 1; a snapshot is in a spool."""

    version: int
    transaction: tuple[str, ...] | None
    snapshot: Spool | None


class PlainDownload:
    """A stream of protocol 1. If interrupted, it restarts and skips changes received before."""

    def __init__(self, link: Link, limit_s: float, start: int, *, head: bool) -> None:
        self._link = link
        self._limit_s = limit_s
        self._start = start
        self._with_head = head
        self._session: Session | None = None
        self._had = 0
        self._last_digest = digests.NO_DIGEST

    def changes(self) -> Iterator[Change]:
        """The changes; of two transactions with one version the first was never committed."""
        held: Change | None = None
        spool: Spool | None = None
        while (item := self._link.until(self._limit_s, self._attempt, self)) is not None:
            change = _as_change(item)
            stale = (
                held is not None
                and held.kind is Kind.TRANSACTION
                and change.kind is Kind.TRANSACTION
                and held.version == change.version
            )
            if held is not None and not stale and held.version >= self._start:
                yield held
            if spool is not None:
                spool.close()
            held, spool = change, item.snapshot
        if held is not None and self._with_head and held.version >= self._start:
            yield held
        if spool is not None:
            spool.close()

    def _attempt(self, session: Session) -> _Item | None:
        if session is not self._session:
            session.used_by = self
            session.request_stream(wire.StreamStart(0, 0, True, 0, digests.NO_DIGEST))
            last = digests.NO_DIGEST
            for _ in range(self._had):
                item, last = self._receive(session)
                if item is None:
                    raise StorageError(_CHANGED)
                if item.snapshot is not None:
                    item.snapshot.close()
            if last != self._last_digest:
                raise StorageError(_CHANGED)
            self._session = session
        item, digest = self._receive(session)
        if item is None:
            session.used_by = None
        else:
            self._had += 1
            self._last_digest = digest
        return item

    def _receive(self, session: Session) -> tuple[_Item | None, bytes]:
        packet = session.incoming()
        if packet.type == wire.DONE:
            session.payload(packet, 0)
            return None, digests.NO_DIGEST
        if packet.type == wire.CHANGE:
            payload = session.payload(packet, wire.MAX_CHANGE_BYTES)
            version, transaction = _or_damaged(wire.unpack_change, payload)
            return _Item(version, transaction, None), digests.digest_of(version, transaction)
        if packet.type == wire.SNAPSHOT:
            return _receive_snapshot(session.pieces(packet))
        raise BadPacket(f"The server sent a packet of type {packet.type} among changes.")


def _receive_snapshot(pieces: Iterator[bytes]) -> tuple[_Item, bytes]:
    room = scratch.room_bytes(scratch.temporary(), op="receive a snapshot")
    spool = Spool()
    try:
        version, digest = unpack_snapshot(pieces, spool, room)
    except BaseException:
        spool.close()
        raise
    return _Item(version, None, spool), digest


def _as_change(item: _Item) -> Change:
    return Change(item.version, item.snapshot, item.transaction, 0)


def _or_damaged(unpack: Callable[[bytes], T], payload: bytes) -> T:
    try:
        return unpack(payload)
    except BadPacket as error:
        raise Damaged(f"The server sent {error}; nothing in it was used.") from None
