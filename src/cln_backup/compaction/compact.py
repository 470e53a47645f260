"""Folds the history of a backup into one snapshot."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from cln_backup.backends import place_at
from cln_backup.backends.events import ignore
from cln_backup.backends.ticket import Folded
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import MigrationOpen
from cln_backup.model.migration import MigrationTracker
from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.replica import DatabaseFile, replay
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Statistics


def compact(
    url: str,
    progress: Callable[[Change], None] | None = None,
    scratch_dir: str | None = None,
    *,
    secret: Secret | None = None,
    on_event: OnEvent = ignore,
    if_it_pays: bool = False,
) -> Statistics:
    """Compacts a backup that no node writes to; the head stays as it is.

    A server compacts by itself, even while a node writes. The history is replayed in
    `scratch_dir`; the default is as for `verify`. The compacted backup is on stable storage, and
    has replaced the old one, when this returns; with `if_it_pays`, only if it is worth it
    (`Ticket.pays`) and would not fold the state before a migration that is not finished; otherwise
    the backup is unchanged.

    Raises:
        MigrationOpen: see above.
        WriterConflict: a node writes to it; let its plugin do it (`lightning-cli backup-compact`).
        NotFound, Damaged, ReplayFailed, StorageError: the backup is unchanged.
    """
    place = place_at(url)
    with ExitStack() as work:

        def fold_here(reader: Reader) -> Folded:
            beside = scratch.place(scratch_dir, place.scratch_dir)
            directory = work.enter_context(scratch.directory(beside, op="compact"))
            return fold(reader, directory, progress, keep_migration=if_it_pays)

        return place.compact(fold_here, if_it_pays=if_it_pays, secret=secret, on_event=on_event)


def fold(
    reader: Reader,
    directory: str,
    progress: Callable[[Change], None] | None = None,
    *,
    alone: bool = False,
    keep_migration: bool = False,
) -> Folded:
    """Makes one snapshot of everything before the head: a checked database in the directory.

    Raises:
        MigrationOpen: with `keep_migration`, if the state before a migration would be folded.
        Damaged, ReplayFailed, StorageError: the directory can be removed.
    """
    head, storage_dir = reader.standing.head, reader.place.storage_dir
    assert head is not None
    path = os.path.join(directory, "replica.sqlite3")
    with_head = head.kind is Kind.SNAPSHOT
    tracker = MigrationTracker()
    reading = nullcontext(reader.stream_changes(head=with_head))
    with reading if alone else read_ahead(reader, head=with_head) as changes:
        followed = _with_room(_followed(changes, tracker), directory)
        replica = replay(followed, path, progress)
    try:
        if keep_migration:
            _require_kept(tracker, reader, replica.applied)
        replica.check()
    finally:
        replica.close()
    if with_head:  # it was replayed too, so it is proved
        return Folded(None, foreign_keys=True)
    snapshot = DatabaseFile(path)
    if storage_dir is not None:
        scratch.require_room(storage_dir, op="compact", needed_bytes=snapshot.size_bytes)
    base = Change(replica.applied, snapshot, None, replica.stored_ms)
    return Folded(base, replica.foreign_keys)


def require_no_migration(reader: Reader) -> None:
    """Makes sure that a compaction would not fold the state before a migration.

    Reads the whole history, for a compaction that does not replay it. Raises `MigrationOpen`.
    """
    tracker, folded = MigrationTracker(), 0
    for change in reader.stream_changes(head=False):
        tracker.follow(change)
        folded = change.version
    _require_kept(tracker, reader, folded)


def _require_kept(tracker: MigrationTracker, reader: Reader, folded: int) -> None:
    """`folded` is the version of a new base; `tracker` has followed all changes up to it."""
    if tracker.open_at is None or tracker.open_at == folded:
        return
    for change in reader.stream_changes(folded):
        if change.version > folded or change.snapshot is not None:
            tracker.follow(change)  # the head may end the migration
    if tracker.open_at is not None:
        raise MigrationOpen(
            f"Not compacted: a migration of the database that began after data version "
            f"{tracker.open_at} is not finished, and a compaction would fold the way back. The "
            "backup is unchanged. Start the node, so that the migration is completed; or undo it: "
            "backup-cli undo-migration.",
            version=tracker.open_at,
        )


def _followed(changes: Iterator[Change], tracker: MigrationTracker) -> Iterator[Change]:
    for change in changes:
        tracker.follow(change)
        yield change


def _with_room(changes: Iterator[Change], place: str) -> Iterator[Change]:
    """Passes the changes on as long as the disk has room for their database, and a reserve."""
    for change in changes:
        needed = 0 if change.snapshot is None else change.snapshot.size_bytes
        scratch.require_room(place, op="compact", needed_bytes=needed)
        yield change
