"""Folds the history of a backup into one snapshot."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import open_backend
from cln_backup.backends.contract import size_of
from cln_backup.model.change import Change, Kind
from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.replica import DatabaseFile, replay
from cln_backup.storage import interruption, scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Backend, Size, Staged, Statistics

_MANY_CHANGES = 100_000
"""A restore replays so many in about 6 s, a small computer in a minute."""


def compact(
    url: str,
    progress: Callable[[Change], None] | None = None,
    log: Callable[[str], None] = lambda _notice: None,
    scratch_dir: str | None = None,
    *,
    if_it_pays: bool = False,
) -> Statistics:
    """Compacts a backup that no node writes to; the head stays as it is.

    A server compacts by itself, even while a node writes. Notices from opening the backup go to
    `log`. The history is replayed in `scratch_dir`; the default is as for `verify`. The compacted
    backup is on stable storage, and has replaced the old one, when this returns; with `if_it_pays`,
    only if it is worth it (`pays`), otherwise the backup is unchanged.

    Raises:
        WriterConflict: a node writes to it; let its plugin do it (`lightning-cli backup-compact`).
        NotFound, Damaged, ReplayFailed, StorageError: the backup is unchanged.
    """
    with open_backend(url) as reader:
        statistics = reader.compact()
    if statistics is not None:
        return statistics
    with interruption.deferred(), open_backend(url, writable=True) as writer:
        for notice in writer.notices:
            log(notice)
        before = size_of(writer)
        with open_backend(url) as reader:
            if worth_folding(reader):
                place = scratch.place(scratch_dir, reader.scratch_dir)
                with scratch.directory(place, op="compact") as directory:
                    folded = fold(reader, directory, progress)
                    staged = reader.stage(folded.base, foreign_keys=folded.foreign_keys)
                if if_it_pays and not pays(staged):
                    writer.discard()
                    return {"before": before, "after": before, "would_be": after(reader, staged)}
                with interruption.held():
                    writer.replace(staged)
                    interruption.finished()
        return {"before": before, "after": size_of(writer)}


def worth_folding(reader: Backend) -> bool:
    """Whether a snapshot would replace more than one change."""
    return reader.head is not None and reader.version_count > 1


def pays(staged: Staged) -> bool:
    """Whether a compaction is worth it: for the disk space, or for the time of a restore."""
    return staged.saved_bytes > 0 or staged.folded >= _MANY_CHANGES


def after(backend: Backend, staged: Staged) -> Size:
    """The size that the backup would have with the replacement."""
    return {
        "backupsize": backend.size_bytes - staged.saved_bytes,
        "version_count": backend.version_count - staged.folded,
    }


class Folded(NamedTuple):
    """The arguments of `Backend.stage`."""

    base: Change | None
    """The snapshot to start with; `None` if the head is a snapshot."""

    foreign_keys: bool
    """Whether they are enforced after the base."""


def fold(
    reader: Backend,
    directory: str,
    progress: Callable[[Change], None] | None = None,
    *,
    alone: bool = False,
) -> Folded:
    """Makes one snapshot of everything before the head: a checked database in the directory.

    Raises:
        Damaged, ReplayFailed, StorageError: the directory can be removed.
    """
    assert reader.head is not None
    assert reader.storage_dir is not None
    path = os.path.join(directory, "replica.sqlite3")
    with_head = reader.head.kind is Kind.SNAPSHOT
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
    scratch.require_room(reader.storage_dir, op="compact", needed_bytes=snapshot.size_bytes)
    base = Change(replica.applied, snapshot, None, replica.stored_ms)
    return Folded(base, replica.foreign_keys)


def _with_room(changes: Iterator[Change], place: str) -> Iterator[Change]:
    """Passes the changes on as long as the disk has room for their database, and a reserve."""
    for change in changes:
        needed = 0 if change.snapshot is None else change.snapshot.size_bytes
        scratch.require_room(place, op="compact", needed_bytes=needed)
        yield change
