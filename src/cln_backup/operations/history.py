"""Facts about a backup from reading it, without a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import place_at, redacted
from cln_backup.model import statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change


class Holdings(NamedTuple):
    """The parts of a backup, as known without unlocking it. `None` means unknown.

    Attributes:
        encrypted: whether it is.
        cipher: of the encryption.
        keys: the label, the kind and the time of each key slot.
        generations: how many are kept, including the current one.
        oldest_generation_at: when the oldest one was made, in seconds since 1970.
        space_bytes: the disk space of all files; see `Inventory`.
    """

    encrypted: bool | None
    cipher: str | None
    keys: list[dict[str, str | float]] | None
    generations: int | None
    oldest_generation_at: float | None
    space_bytes: int | None


class Status(NamedTuple):
    """The state of a backup.

    Attributes:
        backend_url: without secrets.
        version: data version of the head.
        version_count: number of changes.
        backupsize: bytes on its storage.
        head: kind of the last change; `None` when the backup is empty.
        last_change_at: seconds since 1970, if known.
        dated_by_file: whether that is only a file's modification time.
        node_id: the node that the backup belongs to, if known.
        proven_version: the data version up to which a server has replayed its backup.
        proven_at: when it found that, in seconds since 1970.
        durability: what an answer of the storage is worth, in words, if it says so.
        node_files_at: when the newest set of the node's small files in it was taken.
    """

    backend_url: str
    version: int
    version_count: int
    backupsize: int
    head: str | None
    last_change_at: float | None
    dated_by_file: bool
    node_id: str | None
    proven_version: int | None = None
    proven_at: float | None = None
    durability: str | None = None
    node_files_at: float | None = None


class LogLine(NamedTuple):
    """One change, without its contents.

    Attributes:
        size_bytes: of its statements or of its database file.
        statements: their number.
        tables: those that its statements touch, each once, in order.
        stored_at: when it was stored, in seconds since 1970; `None` if unknown.
    """

    version: int
    kind: str
    size_bytes: int
    statements: int
    tables: tuple[str, ...]
    stored_at: float | None


def status(reader: Reader) -> Status:
    """The state of the backup."""
    standing, last_change = reader.standing, reader.last_change
    head = standing.head
    proven_version, proven_at = reader.proof or (None, None)
    kept = reader.kept_files
    return Status(
        redacted(reader.place.url),
        standing.version,
        standing.version_count,
        reader.size_bytes,
        None if head is None else head.kind.value,
        last_change.at,
        last_change.by_file,
        reader.node_id,
        proven_version,
        proven_at,
        reader.durability,
        None if kept is None else kept.taken_at(),
    )


def holdings(url: str) -> Holdings:
    """The parts of the backup at a URL; it need not be unlocked.

    Raises:
        NotFound, Damaged, BadUrl, StorageError.
    """
    found = place_at(url).usage()
    if found is None:
        return Holdings(None, None, None, None, None, None)
    keys = [key._asdict() for key in found.keys]
    return Holdings(found.cipher is not None, found.cipher, keys, *found[2:])


def log(reader: Reader, start: int = 0, *, dropped: bool = False) -> Iterator[LogLine]:
    """One line per change, from version `start` on; or the dropped changes that are kept inside.

    Raises:
        Damaged, StorageError.
    """
    for change in reader.dropped_changes() if dropped else reader.stream_changes(start):
        if change.version >= start:
            yield line_of(change)


def line_of(change: Change) -> LogLine:
    """The line of one change."""
    kind = change.kind.value
    stored_at = change.stored_ms / 1000 if change.stored_ms else None
    if change.transaction is None:
        assert change.snapshot is not None
        return LogLine(change.version, kind, change.snapshot.size_bytes, 0, (), stored_at)
    return LogLine(
        change.version,
        kind,
        sum(len(text.encode("utf-8", "surrogateescape")) for text in change.transaction),
        len(change.transaction),
        statements.tables_touched(change.transaction),
        stored_at,
    )
