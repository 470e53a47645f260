"""A compaction from a kept replica: without a replay, and without a second database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.ticket import Folded
from cln_backup.compaction.pace import PacedSnapshot
from cln_backup.model.change import Kind
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.ticket import Ticket
    from cln_backup.model.position import Position
    from cln_backup.replay.kept import KeptReplica


class Prepared(NamedTuple):
    """A compaction that was prepared from a replica.

    Attributes:
        ticket: for the writer.
        base: the position of the snapshot, as it was before the compaction.
    """

    ticket: Ticket
    base: Position


def prepare(
    replica: KeptReplica,
    reader: Reader,
    stage: Callable[[Callable[[], Ticket]], Ticket],
    check: Callable[[], None] | None = None,
) -> Prepared | None:
    """Prepares a compaction of the reader's view, with the replica's own file as the snapshot.

    First the replica replays what it lacks, and is checked. Then `stage` is called with the long
    part, and returns its result. That part only reads the replica's file and uses the reader: it
    may be done in another thread while the replica follows another reader; it calls `check` often.

    Returns `None` if there is nothing that a replica could be for: the head is not a transaction,
    which only a start and a migration make, or the storage compacts by itself.

    Raises:
        ReplayFailed: the backup does not replay, or the replica is not sound.
        StorageError: the disk has no room, or failed; the backup is unchanged.
        Damaged.
    """
    storage_dir, standing = reader.place.storage_dir, reader.standing
    if standing.head is None or standing.head.kind is not Kind.TRANSACTION:
        return None
    if reader.generation() is None:
        return None
    replica.catch_up(reader)
    replica.without_head()
    position = replica.position
    if position is None or position.changes != standing.position.changes - 1:
        return None
    replica.check()
    with replica.snapshot() as folded:
        assert folded.base is not None
        assert folded.base.snapshot is not None
        snapshot = folded.base.snapshot
        if storage_dir is not None:
            scratch.require_room(storage_dir, op="compact", needed_bytes=snapshot.size_bytes)
        paced = replace(folded.base, snapshot=PacedSnapshot(snapshot, storage_dir, check))
        ready = Folded(paced, folded.foreign_keys)
        return Prepared(stage(lambda: reader.prepare_compaction(lambda _: ready)), position)
