"""Starts the history of a `dir:` backup over from a snapshot, and keeps the earlier one.

Three steps, each durable: the files of the current generation get second names in a directory of
their own, which is a backup by itself; the next segment is claimed, so that no older writer can
store anything more; the new base gets its name. Interrupted before the last, the backup is as it
was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.dir.history import Base
from cln_backup.backends.dir.snapshots import NewSnapshot, StoredSnapshot, read_back
from cln_backup.backends.dir.store import (
    base_name,
    list_files,
    segment_name,
    snapshot_name,
    stored_now_ms,
)
from cln_backup.formats import v2
from cln_backup.model.position import EMPTY, after_snapshot, digest_of_snapshot
from cln_backup.storage import directories

if TYPE_CHECKING:
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.dir.writer import SegmentWriter
    from cln_backup.model.change import Change

_PURPOSE = "restart"
_KEY = "key-"


def start_over(
    store: Store, current: Base, writer: SegmentWriter, change: Change
) -> tuple[Base, str]:
    """Publishes a new base; returns it, and the directory with the earlier history.

    Raises:
        WriterConflict: another writer is active.
        StorageError: the backup is unchanged, or the base was published.
    """
    snapshot, objects = change.snapshot, store.objects
    assert snapshot is not None
    kept = _keep(store, current)
    digest = digest_of_snapshot(snapshot)
    generation, size = current.generation + 1, snapshot.size_bytes
    start = v2.LogOffset(writer.end.last_number + 1, 0, bytes(v2.SEAL_BYTES))
    state = v2.BaseState(
        *(change.version, True, True, 1, size, start, 1, stored_now_ms(change)),
        after_snapshot(EMPTY, change.version, digest),
    )
    kind = v2.FileKind.BASE
    header = store.new_header(kind, generation, writer.epoch, v2.pack_base_state(state))
    content = NewSnapshot(header, change.version, snapshot, digest)
    built = objects.prepare(_PURPOSE, content.chunks())
    try:
        read_back(StoredSnapshot(store, built, kind, generation, change.version, size, None))
        writer.fence()
        name = base_name(generation, start.segment)
        objects.publish(built, name, op="publish new base")
    except BaseException:
        objects.discard(built)
        raise
    return Base(generation, name, state, writer.epoch), kept


def _keep(store: Store, current: Base) -> str:
    """Gives the files of the current generation second names; returns their directory."""
    listing, first = list_files(store.objects), current.state.start.segment
    names = [current.name, *store.objects.list(_KEY)]
    names += [segment_name(number) for number in listing.segments if number >= first]
    names += [snapshot_name(*found) for found in listing.snapshots if found[0] >= first]
    return directories.keep_files(
        store.path, names, f"before-undo-{current.generation}", op="keep earlier history"
    )
