"""What can be told of a backup by reading it, without replaying it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import backend_class, redacted
from cln_backup.model import statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Backend


class Holdings(NamedTuple):
    """What a backup consists of; nothing needs to be unlocked to know it. `None` is unknown.

    Attributes:
        encrypted: whether it is.
        cipher: what it is encrypted with.
        keys: the label, the kind and the time of each key slot.
        generations: how many are kept, with the current one.
        oldest_generation_at: when the oldest one was made, in seconds since 1970.
        space_bytes: what all files take on the disk; see `Inventory`.
    """

    encrypted: bool | None
    cipher: str | None
    keys: list[dict[str, str | float]] | None
    generations: int | None
    oldest_generation_at: float | None
    space_bytes: int | None


class Status(NamedTuple):
    """Where a backup stands.

    Attributes:
        backend_url: without secrets.
        version: data version of the head.
        version_count: number of changes.
        backupsize: bytes on its storage.
        head: kind of the last change; `None` when the backup is empty.
        last_change_at: seconds since 1970, where that is known.
        dated_by_file: whether that is only when a file was last written.
        node_id: the node whose backup it is, where that is known.
    """

    backend_url: str
    version: int
    version_count: int
    backupsize: int
    head: str | None
    last_change_at: float | None
    dated_by_file: bool
    node_id: str | None


class LogLine(NamedTuple):
    """One change, without its contents.

    Attributes:
        size_bytes: of its statements or of its database file.
        statements: how many it has.
        tables: those that its statements touch, each once, in order.
        stored_at: when it was stored, in seconds since 1970; `None` where that is not known.
    """

    version: int
    kind: str
    size_bytes: int
    statements: int
    tables: tuple[str, ...]
    stored_at: float | None


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
        backend.dated_by_file,
        backend.node_id,
    )


def holdings(url: str) -> Holdings:
    """What the backup at a URL consists of; it need not be unlocked.

    Raises:
        NotFound, Damaged, BadUrl, StorageError.
    """
    found = backend_class(url).inventory(url)
    if found is None:
        return Holdings(None, None, None, None, None, None)
    keys = [key._asdict() for key in found.keys]
    return Holdings(found.cipher is not None, found.cipher, keys, *found[2:])


def log(backend: Backend, start: int = 0, *, dropped: bool = False) -> Iterator[LogLine]:
    """One line a change, from version `start` on; or those that were dropped and are kept in place.

    Raises:
        Damaged, StorageError.
    """
    for change in backend.dropped_changes() if dropped else backend.stream_changes(start):
        if change.version < start:
            continue
        kind = change.kind.value
        stored_at = change.stored_ms / 1000 if change.stored_ms else None
        if change.transaction is None:
            assert change.snapshot is not None
            yield LogLine(change.version, kind, change.snapshot.size_bytes, 0, (), stored_at)
            continue
        touched = map(statements.table, change.transaction)
        yield LogLine(
            change.version,
            kind,
            sum(len(text.encode("utf-8", "surrogateescape")) for text in change.transaction),
            len(change.transaction),
            tuple(dict.fromkeys(name for name in touched if name is not None)),
            stored_at,
        )
