"""The size of a backup in a database, and the removal of expired rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import list_files
from cln_backup.backends.dir.upkeep import expired
from cln_backup.backends.postgres.tables import LOCK, REMOVED_AT_ONCE, part_of_segment
from cln_backup.backends.ticket import Generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.postgres.session import Session
    from cln_backup.backends.postgres.tables import TableObjects, TableStore
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


class Upkeep:
    """Removes what has expired, a few rows at a time, so that no writer waits for it."""

    def __init__(self, objects: TableObjects, keep: int, keep_days: int) -> None:
        self._objects = objects
        self._keep = keep, keep_days
        self._names: Sequence[str] | None = None

    def look(self) -> None:
        """Looks again at the next step: a compaction has replaced a generation."""
        self._names = None

    def step(self) -> bool:
        """Removes a few rows; returns whether there may be more. Raises `StorageError`."""
        if self._names is None:
            self._names = expired(self._objects, *self._keep)
            if self._names and self._is_read(self._names[0]):
                self._names = []
        if not self._names:
            return False
        name = self._names[0]
        if self._removed(name):
            self._names = self._names[1:]
        return True

    def _removed(self, name: str) -> bool:
        segment = part_of_segment(name)
        objects = self._objects
        if segment is not None:
            return len(objects.remove_some(segment, segment)) < REMOVED_AT_ONCE
        part = objects.part_of(name)
        if part is not None and len(objects.remove_some(part, part)) == REMOVED_AT_ONCE:
            return False
        objects.delete(name, op="remove expired object")
        return True

    def _is_read(self, base: str) -> bool:
        """Whether a reader holds a generation, which the oldest one's name tells."""
        if not base.startswith("base-"):
            return False
        number = int(base.split("-")[1])

        def attempt(session: Session, until: float) -> bool:
            values = (str(self._objects.backup), READING, str(number))
            if not session.run(f"SELECT pg_try_advisory_lock({LOCK})", values, until=until)[0][0]:
                return True
            session.run(f"SELECT pg_advisory_unlock({LOCK})", values, until=until)
            return False

        return self._objects.link.until(attempt)
