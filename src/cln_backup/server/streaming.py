"""Sends the changes of a backup, in protocol 1 and in its extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.formats import digests, v1
from cln_backup.model.errors import StorageError
from cln_backup.storage.spool import Spool
from cln_backup.wire import packets as wire
from cln_backup.wire.pieces import queue_snapshot
from cln_backup.wire.plain_snapshot import pack_snapshot, send_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change
    from cln_backup.wire.channel import Channel

_CHANGED = "The backup changed since the stream was interrupted; start again."


def send_changes(
    channel: Channel, reader: Reader, start: wire.StreamStart, *, deflate: bool
) -> None:
    """Sends the changes from a place on, then STREAM_END.

    Raises:
        StorageError: the changes that the client has are not those of the backup.
        Discontinuity: the client's position is not in the backup's history.
        BackupError: as `Reader.stream_changes` raises.
        OSError: the connection is lost.
    """
    skip, offset = start.skip, start.offset_bytes
    for change in _changes_from(reader, start):
        if skip:
            skip -= 1
            if change.version != start.version or (
                skip == 0 and digests.digest_of_change(change) != start.digest
            ):
                raise StorageError(_CHANGED)
            continue
        if change.snapshot is not None:
            queue_snapshot(channel, change.version, change.snapshot, offset, deflate=deflate)
        else:
            assert change.transaction is not None
            payload = v1.pack_transaction(change.transaction)
            digest = digests.transaction_digest(change.version, payload)
            packed = wire.pack_append(change.version, payload, digest, deflate=deflate)
            channel.queue(wire.APPEND, packed)
        offset = 0
    if skip:
        raise StorageError(_CHANGED)
    channel.send(wire.STREAM_END)


def _changes_from(reader: Reader, start: wire.StreamStart) -> Iterator[Change]:
    if start.after is None:
        return reader.stream_changes(start.version, head=start.head)
    changes = reader.stream_changes(after=start.after, head=start.head)
    return (change for change in changes if change.version >= start.version)


def send_all_plain(channel: Channel, reader: Reader) -> None:
    """Sends all changes in protocol 1, then DONE. Raises as `send_changes`."""
    for change in reader.stream_changes():
        if change.transaction is not None:
            payload = v1.pack_transaction(change.transaction)
            channel.queue(wire.CHANGE, wire.pack_change(change.version, payload))
            continue
        assert change.snapshot is not None
        with Spool(reader.place.scratch_dir) as packed:
            pack_snapshot(change.snapshot, packed)
            send_snapshot(channel, change.version, packed)
    channel.send(wire.DONE)
