"""Sends the changes of a backup, in protocol 1 and in its extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.formats import digests, v1
from cln_backup.model.errors import StorageError
from cln_backup.server.standing import digest_of
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.plain_snapshot import pack_snapshot, send_snapshot

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend
    from cln_backup.model.change import Change
    from cln_backup.wire.channel import Channel

_CHANGED = "The backup is another since the stream was cut; start anew."


def send_changes(
    channel: Channel, reader: Backend, position: wire.Position, *, deflate: bool
) -> None:
    """Sends the changes from a position on, then STREAM_END.

    Raises:
        StorageError: what the client has already is not what stands there.
        BackupError: what `Backend.stream_changes` raises.
        OSError: the connection is lost.
    """
    skip, offset = position.skip, position.offset_bytes
    for change in reader.stream_changes(position.start, head=position.head):
        if skip:
            skip -= 1
            if change.version != position.start or (
                skip == 0 and digest_of(change) != position.digest
            ):
                raise StorageError(_CHANGED)
            continue
        if change.transaction is None:
            _send_pieces(channel, change, offset, deflate=deflate)
        else:
            payload = v1.pack_transaction(change.transaction)
            digest = digests.transaction_digest(change.version, payload)
            packed = wire.pack_append(change.version, payload, digest, deflate=deflate)
            channel.queue(wire.APPEND, packed)
        offset = 0
    if skip:
        raise StorageError(_CHANGED)
    channel.send(wire.STREAM_END)


def _send_pieces(channel: Channel, change: Change, offset: int, *, deflate: bool) -> None:
    """Sends a snapshot from an offset on; its digest is over all of it."""
    snapshot = change.snapshot
    assert snapshot is not None
    begin = wire.pack_snapshot_begin(change.version, snapshot.size_bytes)
    channel.queue(wire.SNAPSHOT_BEGIN, begin)
    digest = digests.change_digest(v1.SNAPSHOT, change.version)
    at = 0
    for chunk in snapshot.chunks():
        digest.update(chunk)
        for start in range(max(0, offset - at), len(chunk), wire.CHUNK_BYTES):
            piece = chunk[start : start + wire.CHUNK_BYTES]
            channel.send(wire.SNAPSHOT_DATA, wire.pack_piece(piece, deflate=deflate))
        at += len(chunk)
    channel.queue(wire.SNAPSHOT_END, digest.digest())


def send_all_plain(channel: Channel, reader: Backend) -> None:
    """Sends all changes in protocol 1, then DONE. Raises as `send_changes`."""
    for change in reader.stream_changes():
        if change.transaction is not None:
            payload = v1.pack_transaction(change.transaction)
            channel.queue(wire.CHANGE, wire.pack_change(change.version, payload))
            continue
        assert change.snapshot is not None
        with Spool(reader.scratch_dir) as packed:
            pack_snapshot(change.snapshot, packed)
            send_snapshot(channel, change.version, packed)
    channel.send(wire.DONE)
