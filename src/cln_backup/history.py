"""What can be told of a backup by reading it, without replaying it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup import statements
from cln_backup.backends import redacted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.base import Backend


class Status(NamedTuple):
    """Where a backup stands.

    Attributes:
        backend_url: without secrets.
        version: data version of the head.
        version_count: number of changes.
        backupsize: bytes on its storage.
        head: kind of the last change; `None` when the backup is empty.
        last_change_at: seconds since 1970, where that is known.
    """

    backend_url: str
    version: int
    version_count: int
    backupsize: int
    head: str | None
    last_change_at: float | None


class LogLine(NamedTuple):
    """One change, without its contents.

    Attributes:
        size_bytes: of its statements or of its database file.
        statements: how many it has.
        tables: those that its statements touch, each once, in order.
    """

    version: int
    kind: str
    size_bytes: int
    statements: int
    tables: tuple[str, ...]


def status(backend: Backend) -> Status:
    """Where the backup stands."""
    head = backend.head
    return Status(
        redacted(backend.url),
        backend.version,
        backend.version_count,
        backend.size_bytes,
        None if head is None else head.kind.value,
        backend.last_change_at,
    )


def log(backend: Backend, start: int = 0, *, dropped: bool = False) -> Iterator[LogLine]:
    """One line a change, from version `start` on; or those that were dropped and are kept in place.

    Raises:
        Damaged, StorageError.
    """
    for change in backend.dropped_changes() if dropped else backend.stream_changes(start):
        if change.version < start:
            continue
        kind = change.kind.value
        if change.transaction is None:
            assert change.snapshot is not None
            yield LogLine(change.version, kind, change.snapshot.size_bytes, 0, ())
            continue
        touched = map(statements.table, change.transaction)
        yield LogLine(
            change.version,
            kind,
            sum(len(text.encode("utf-8", "surrogateescape")) for text in change.transaction),
            len(change.transaction),
            tuple(dict.fromkeys(name for name in touched if name is not None)),
        )
