"""Folds the history of a backup into one snapshot."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from cln_backup.backends import place_at
from cln_backup.backends.events import ignore
from cln_backup.backends.ticket import Folded
from cln_backup.model.change import Change, Kind
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
    (`Ticket.pays`), otherwise the backup is unchanged.

    Raises:
        WriterConflict: a node writes to it; let its plugin do it (`lightning-cli backup-compact`).
        NotFound, Damaged, ReplayFailed, StorageError: the backup is unchanged.
    """
    place = place_at(url)
    with ExitStack() as work:

        def fold_here(reader: Reader) -> Folded:
            beside = scratch.place(scratch_dir, place.scratch_dir)
            directory = work.enter_context(scratch.directory(beside, op="compact"))
            return fold(reader, directory, progress)

        return place.compact(fold_here, if_it_pays=if_it_pays, secret=secret, on_event=on_event)


def fold(
    reader: Reader,
    directory: str,
    progress: Callable[[Change], None] | None = None,
    *,
    alone: bool = False,
) -> Folded:
    """Makes one snapshot of everything before the head: a checked database in the directory.

    Raises:
        Damaged, ReplayFailed, StorageError: the directory can be removed.
    """
    head, storage_dir = reader.standing.head, reader.place.storage_dir
    assert head is not None
    assert storage_dir is not None
    path = os.path.join(directory, "replica.sqlite3")
    with_head = head.kind is Kind.SNAPSHOT
    reading = nullcontext(reader.stream_changes(head=with_head))
    with reading if alone else read_ahead(reader, head=with_head) as changes:
        replica = replay(_with_room(changes, directory), path, progress)
    try:
        replica.check()
    finally:
        replica.close()
    if with_head:  # it was replayed too, so it is proved
        return Folded(None, foreign_keys=True)
    snapshot = DatabaseFile(path)
    scratch.require_room(storage_dir, op="compact", needed_bytes=snapshot.size_bytes)
    base = Change(replica.applied, snapshot, None, replica.stored_ms)
    return Folded(base, replica.foreign_keys)


def _with_room(changes: Iterator[Change], place: str) -> Iterator[Change]:
    """Passes the changes on as long as the disk has room for their database, and a reserve."""
    for change in changes:
        needed = 0 if change.snapshot is None else change.snapshot.size_bytes
        scratch.require_room(place, op="compact", needed_bytes=needed)
        yield change
