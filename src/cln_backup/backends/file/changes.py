"""Reads the changes of a `file:` backup in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.file.entries import entries
from cln_backup.formats import v1
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import Damaged
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.file.entries import Entry

_READ = "read backup"


class FileSnapshot:
    """A snapshot in an open file; it must be read before the backup is closed."""

    def __init__(self, fd: int, path: str, entry: Entry) -> None:
        self._fd = fd
        self._path = path
        self._entry = entry

    @property
    def size_bytes(self) -> int:
        """Size of the database file."""
        return self._entry.length_bytes

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, in pieces."""
        entry = self._entry
        got = 0
        for chunk in fsio.chunks_at(self._fd, entry.length_bytes, entry.payload_bytes, op=_READ):
            got += len(chunk)
            yield chunk
        if got != entry.length_bytes:
            raise _shorter(self._path, entry)


def changes(
    fd: int, path: str, start: int, end_bytes: int, first: Entry | None = None
) -> Iterator[Change]:
    """The changes from version `start` on, up to an offset; the entry `first` is their first.

    Raises:
        Damaged, StorageError.
    """
    for entry in entries(fd, end_bytes, first):
        if entry.stale or entry.version < start:
            continue
        if entry.kind is Kind.SNAPSHOT:
            snapshot = FileSnapshot(fd, path, entry)
            yield Change(entry.version, snapshot, None, 0)
            continue
        payload = fsio.read_at(fd, entry.length_bytes, entry.payload_bytes, op=_READ)
        if len(payload) != entry.length_bytes:
            raise _shorter(path, entry)
        yield Change(entry.version, None, v1.unpack_transaction(payload), 0)


def _shorter(path: str, entry: Entry) -> Damaged:
    return Damaged(
        f"{path} became shorter while it was read, as when its node restarts after a crash. Try "
        "again.",
        offset_bytes=entry.offset_bytes,
        good_version=entry.version - 1,
    )
