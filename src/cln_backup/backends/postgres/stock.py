"""The size of a backup in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import list_files
from cln_backup.backends.dir.upkeep import expired
from cln_backup.backends.ticket import Generation

if TYPE_CHECKING:
    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.postgres.tables import TableStore
    from cln_backup.backends.postgres.url import PostgresUrl

READING: Final = "reading"
"""The purpose of the lock of a reader on a generation; many may hold it, shared."""


def size_bytes(store: TableStore, at: PostgresUrl) -> int:
    """The size of the history, without what has expired."""
    return store.history_bytes(expired(store.objects, at.keep, at.keep_days))


def generation_of(store: TableStore, base: Base, end: LogEnd, version_count: int) -> Generation:
    """The base, and the log from where it continues. Raises `StorageError`."""
    state, objects = base.state, store.objects
    found = objects.status(base.name)
    first = state.start.segment
    log_bytes = store.log_bytes(first, end.segment) - state.start.offset_bytes
    log_bytes += sum(
        store.object_bytes(f"snapshot-{segment:010}-{number:010}")
        for segment, number in list_files(objects).snapshots
        if segment >= first
    )
    return Generation(
        found.size_bytes if state.snapshot and found is not None else 0,
        max(0, log_bytes),
        version_count - state.changes,
        None if found is None else found.stored_at,
    )
