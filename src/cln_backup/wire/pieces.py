"""A snapshot in the extension: SNAPSHOT_BEGIN, its bytes in pieces, and SNAPSHOT_END.

START_OVER in the place of SNAPSHOT_BEGIN makes the snapshot the whole backup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.formats import digests, v1
from cln_backup.model.errors import BadPacket, StorageError
from cln_backup.model.position import DIGEST_BYTES
from cln_backup.wire import packets as wire

if TYPE_CHECKING:
    from cln_backup.model.change import Snapshot
    from cln_backup.wire.channel import Channel


def queue_snapshot(
    channel: Channel,
    version: int,
    snapshot: Snapshot,
    offset_bytes: int = 0,
    *,
    deflate: bool,
    replaces: bytes | None = None,
) -> bytes:
    """Sends a snapshot from an offset on, up to SNAPSHOT_END, which is queued.

    With `replaces`, the digest of the backup's head, the history starts over from the snapshot.
    Returns the digest, which covers the whole snapshot.

    Raises:
        StorageError: the snapshot changed while it was read; SNAPSHOT_END was not sent.
        OSError: the connection is lost.
    """
    size = snapshot.size_bytes
    begin = wire.pack_snapshot_begin(version, size)
    if replaces is None:
        channel.queue(wire.SNAPSHOT_BEGIN, begin)
    else:
        channel.queue(wire.START_OVER, begin + replaces)
    digest = digests.change_digest(v1.SNAPSHOT, version)
    at = 0
    for chunk in snapshot.chunks():
        digest.update(chunk)
        for start in range(max(0, offset_bytes - at), len(chunk), wire.CHUNK_BYTES):
            piece = chunk[start : start + wire.CHUNK_BYTES]
            channel.send(wire.SNAPSHOT_DATA, wire.pack_piece(piece, deflate=deflate))
        at += len(chunk)
    if at != size:
        raise StorageError(
            "The snapshot has another size than it was to have: the database changed while it "
            "was read. Nothing of it was stored; try again."
        )
    channel.queue(wire.SNAPSHOT_END, digest.digest())
    return digest.digest()


def split_start_over(payload: bytes) -> tuple[bytes, bytes]:
    """Of a START_OVER: what a SNAPSHOT_BEGIN has, and the digest of the head to replace.

    Raises `BadPacket`.
    """
    begin, replaced = payload[:-DIGEST_BYTES], payload[-DIGEST_BYTES:]
    wire.unpack_snapshot_begin(begin)
    return begin, replaced


class Arriving:
    """A snapshot while its pieces arrive.

    Attributes:
        version: its data version.
        size_bytes: its size, as announced.
        received_bytes: how much of it has arrived.
    """

    def __init__(self, begin: bytes) -> None:
        """Takes the payload of a SNAPSHOT_BEGIN. Raises `BadPacket`."""
        self.version, self.size_bytes = wire.unpack_snapshot_begin(begin)
        self.received_bytes = 0
        self._digest = digests.change_digest(v1.SNAPSHOT, self.version)

    def take(self, payload: bytes) -> bytes:
        """The bytes in a SNAPSHOT_DATA. Raises `BadPacket`, also for more than was announced."""
        piece = wire.unpack_piece(payload)
        self._digest.update(piece)
        self.received_bytes += len(piece)
        if self.received_bytes > self.size_bytes:
            raise BadPacket("more of a snapshot than it announced")
        return piece

    def is_whole(self, digest: bytes) -> bool:
        """Whether everything arrived, and has the digest in a SNAPSHOT_END."""
        return self.received_bytes == self.size_bytes and self._digest.digest() == digest
