"""Reads the entries of a file of format 1 one after the other, and marks stale ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.formats import v1
from cln_backup.model import statements
from cln_backup.model.change import Kind
from cln_backup.model.errors import Damaged
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = "read backup"
MAY_START_PRAGMA = b"Pp \t\r\n"
_LAST_STATEMENT_BYTES = 512
_MAX_RESUME_BYTES = 1 << 26
_MAX_CANDIDATES = 1000


class Entry(NamedTuple):
    """An entry and its place.

    Attributes:
        stale: the node never committed it, and sent another transaction instead.
        foreign_keys: whether foreign keys are enforced after it.
    """

    offset_bytes: int
    length_bytes: int
    version: int
    kind: Kind
    foreign_keys: bool
    stale: bool = False

    @property
    def payload_bytes(self) -> int:
        """The offset of the payload."""
        return self.offset_bytes + v1.ENTRY_BYTES

    @property
    def end_bytes(self) -> int:
        """The offset of the next entry."""
        return self.offset_bytes + v1.ENTRY_BYTES + self.length_bytes


class Unreadable(Damaged):
    """The bytes at an offset are not a valid next entry."""

    def __init__(self, offset_bytes: int, found: str) -> None:
        super().__init__(
            f"Cannot read the backup at byte {offset_bytes}: {found}. If a node writes to it, it "
            "may have changed meanwhile: try again.",
            offset_bytes=offset_bytes,
        )
        self.found = found


def entries(fd: int, size_bytes: int, start: Entry | None = None) -> Iterator[Entry]:
    """The entries up to `size_bytes`, stale ones marked; from `start` on, which is not stale.

    Raises:
        Damaged: there are bytes that are not an entry.
        StorageError: the operating system failed a read.
    """
    held = start
    replaces = False
    offset = v1.HEADER_BYTES if start is None else start.end_bytes
    while offset < size_bytes:
        try:
            entry = _entry_at(fd, offset, size_bytes, held)
        except Unreadable:
            resumed = _resume(fd, offset, size_bytes, held)
            if resumed is None:
                if held is not None:
                    yield held
                raise
            if resumed > offset:
                yield Entry(
                    offset, resumed - offset - v1.ENTRY_BYTES, 0, Kind.TRANSACTION, True, True
                )
            offset = resumed
            continue
        if held is not None:
            replaced = entry.kind is Kind.TRANSACTION and entry.version == held.version
            if replaces and not replaced and not is_whole(fd, held):
                # It would make an answered change stale, so it must be certain.
                raise Damaged(
                    f"Found a second change for version {held.version} at byte "
                    f"{held.offset_bytes}, which is incomplete. Keep the backup as it is.",
                    offset_bytes=held.offset_bytes,
                    good_version=held.version - 1,
                )
            yield held._replace(stale=True) if replaced else held
            replaces = replaced
        held = entry
        offset = entry.end_bytes
    if held is not None:
        yield held


def _entry_at(fd: int, offset: int, size: int, last: Entry | None) -> Entry:
    data = fsio.read_at(fd, v1.ENTRY_BYTES + len(v1.SQLITE_MAGIC), offset, op=_READ)
    if len(data) < v1.ENTRY_BYTES or offset + v1.ENTRY_BYTES > size:
        raise Unreadable(offset, "less than the 9 bytes that start an entry")
    length, version, entry_type = v1.unpack_entry_head(data)
    if entry_type not in (v1.TRANSACTION, v1.SNAPSHOT):
        raise Unreadable(offset, f"an entry of unknown type {entry_type} (only 1 and 2 exist)")
    if offset + v1.ENTRY_BYTES + length > size:
        raise Unreadable(offset, f"an entry of {length} bytes, longer than the rest of the file")
    foreign_keys = True if last is None else last.foreign_keys
    if entry_type == v1.SNAPSHOT:
        if last is not None and version < last.version:
            raise Unreadable(offset, f"a snapshot of version {version} after {last.version}")
        if not data[v1.ENTRY_BYTES :].startswith(v1.SQLITE_MAGIC):
            raise Unreadable(offset, "a snapshot that is not a SQLite database")
        return Entry(offset, length, version, Kind.SNAPSHOT, True)
    if length == 0:
        raise Unreadable(offset, "a transaction without a statement")
    if data[v1.ENTRY_BYTES] in MAY_START_PRAGMA and length <= v1.MAX_RIDER_BYTES:
        rider = _statements(fd, offset, length)
        if statements.is_rider(rider):
            if last is not None and version != last.version:
                raise Unreadable(offset, f"a rider for version {version} after {last.version}")
            foreign_keys = statements.foreign_keys_after(rider, foreign_keys)
            return Entry(offset, length, version, Kind.RIDER, foreign_keys)
    if last is None and version != 1:
        # A change that was set aside; there is no earlier entry to check its version against.
        alone = Entry(offset, length, version, Kind.TRANSACTION, foreign_keys)
        if not is_whole(fd, alone):
            raise Unreadable(offset, f"version {version} as the first entry")
    if last is not None and version != last.version + 1:
        replaces = version == last.version and last.kind is Kind.TRANSACTION
        if not replaces:
            raise Unreadable(offset, f"version {version} after version {last.version}")
    return Entry(offset, length, version, Kind.TRANSACTION, foreign_keys)


def _resume(fd: int, offset: int, size: int, held: Entry | None) -> int | None:
    """Where the history continues after a transaction that the community's plugin left torn.

    That plugin appends the next one where the torn one stops, so the torn one's length reaches
    into it, or past the end of the file. The torn one was not committed, so the next one has the
    same version; it is accepted only if its last statement proves it complete.
    """
    torn = [(held.offset_bytes, held.version, offset)] if held is not None else []
    torn.append((offset, 1 if held is None else held.version + 1, size))
    for start, version, end in torn:
        head = fsio.read_at(fd, v1.ENTRY_BYTES, start, op=_READ)
        if head[4:] != v1.pack_entry_head(0, version, v1.TRANSACTION)[4:]:
            continue
        first = start + v1.ENTRY_BYTES
        limit = min(end, first + v1.unpack_entry_head(head).length_bytes)  # else it is not torn
        region = fsio.read_at(fd, min(limit + 9 - first, _MAX_RESUME_BYTES), first, op=_READ)
        at = region.find(head[4:])
        for _ in range(_MAX_CANDIDATES):
            if at == -1:
                break
            found = first + at - 4
            if at >= 4 and found < limit:
                length = v1.unpack_entry_head(region[at - 4 : at + 5]).length_bytes
                candidate = Entry(found, length, version, Kind.TRANSACTION, True)
                if candidate.end_bytes <= size and is_whole(fd, candidate):
                    return found
            at = region.find(head[4:], at + 1)
    return None


def _statements(fd: int, offset: int, length: int) -> tuple[str, ...]:
    return v1.unpack_transaction(fsio.read_at(fd, length, offset + v1.ENTRY_BYTES, op=_READ))


def is_whole(fd: int, entry: Entry) -> bool:
    """Whether an entry with a valid length was also written to its end.

    For a transaction this means that its last statement sets its version and that no part of it
    is zeros, which would make an empty statement.
    """
    if entry.kind is not Kind.TRANSACTION:
        return True
    tail_bytes = min(entry.length_bytes, _LAST_STATEMENT_BYTES)
    tail = fsio.read_at(fd, tail_bytes, entry.end_bytes - tail_bytes, op=_READ)
    last = tail.rpartition(b"\x00")[2].decode("utf-8", "replace")
    if statements.bumps_data_version_to(last) != entry.version:
        return False
    before = b"\x00"
    for chunk in fsio.chunks_at(fd, entry.length_bytes, entry.payload_bytes, op=_READ):
        if b"\x00\x00" in before + chunk:
            return False
        before = chunk[-1:]
    return True


def is_there(fd: int, entry: Entry) -> bool:
    """Whether the file has this entry at its place."""
    head = fsio.read_at(fd, v1.ENTRY_BYTES, entry.offset_bytes, op=_READ)
    kind = v1.SNAPSHOT if entry.kind is Kind.SNAPSHOT else v1.TRANSACTION
    return head == v1.pack_entry_head(entry.length_bytes, entry.version, kind)
