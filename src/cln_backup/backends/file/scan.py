"""Reads a file of format 1 from end to end, and tells torn and stale entries from damage.

A file may have been cut off at any write, by this program or by the community's plugin, which also
leaves stale transactions that the node never committed: it goes back in its header but always
appends at the end of the file. So the entries are authoritative, and the header is a promise that
everything up to its version was there. `docs/format.md` has the rules with their reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cln_backup.formats import v1
from cln_backup.model import statements
from cln_backup.model.change import Kind
from cln_backup.model.errors import Damaged
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = "read backup"
_SECTOR_BYTES = 512
_MAY_START_PRAGMA = b"Pp \t\r\n"
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


class Layout(NamedTuple):
    """The contents of a file.

    Attributes:
        end_bytes: after the last valid entry; the rest of the file is torn, and was never answered.
        size_bytes: of the file.
        head: the last entry; `None` in an empty backup.
        before: the entry before it.
        version_count: number of entries that are not stale.
        stale: number of stale entries.
        torn_replaces_head: whether the torn entry is a transaction for the head's version.
    """

    header: v1.Header
    end_bytes: int
    size_bytes: int
    head: Entry | None
    before: Entry | None
    version_count: int
    stale: int
    torn_replaces_head: bool

    @property
    def head_may_be_dropped(self) -> bool:
        """Whether the head was stored last: no later change was started or dropped.

        If the next one was started, the node had committed the head, unless it replaces the head,
        as the community's plugin does after a crash.
        """
        if self.head is None:
            return False
        if self.torn_bytes:
            return self.torn_replaces_head
        if self.head.offset_bytes >= self.header.offset_bytes:
            return True  # it is in flight: the header does not have it yet
        promised_more = (
            self.header.version > self.head.version or self.header.offset_bytes > self.size_bytes
        )
        return not promised_more and self.header.prev_offset_bytes != 0

    @property
    def torn_bytes(self) -> int:
        """Length of the torn end after the last entry."""
        return self.size_bytes - self.end_bytes


class _Unreadable(Damaged):
    """The bytes at an offset are not a valid next entry."""

    def __init__(self, offset_bytes: int, found: str) -> None:
        super().__init__(
            f"Cannot read the backup at byte {offset_bytes}: {found}. If a node writes to it, it "
            "may have changed meanwhile: try again.",
            offset_bytes=offset_bytes,
        )
        self.found = found


def scan(fd: int, path: str) -> Layout:
    """Scans the file.

    Raises:
        Damaged: there are invalid bytes that no interrupted write can explain.
        StorageError: the operating system failed a read.
    """
    # In this order, since a writer may be active: entries are there before the header that
    # promises them.
    header = _read_header(fd, path)
    size = fsio.size_bytes(fd)
    head: Entry | None = None
    before: Entry | None = None
    twin: Entry | None = None
    count = stale = 0
    bad: _Unreadable | None = None
    try:
        for entry in entries(fd, size):
            if entry.stale:
                stale += 1
                twin = entry
                continue
            head, before = entry, head
            count += 1
    except _Unreadable as unreadable:
        bad = unreadable
    end = v1.HEADER_BYTES if head is None else head.end_bytes
    if bad is not None:
        end = bad.offset_bytes
        _require_torn(fd, path, header, head, bad, size)
    elif head is not None:
        if twin is not None and twin.version != head.version:
            twin = None
        unannounced_snapshot = (
            # Its header is written only after it is on stable storage.
            head.kind is Kind.SNAPSHOT and header.offset_bytes < head.end_bytes
        )
        if unannounced_snapshot:
            end, count = head.offset_bytes, count - 1
            head, before = before, None
        elif not _is_whole(fd, head):
            _require_unanswered(fd, path, header, head, twin)
            end, count = head.offset_bytes, count - 1
            head, before = before, None
            if twin is not None:  # without its replacement, the first of the two is valid again
                if not _is_whole(fd, twin):
                    _damaged(path, twin.offset_bytes, twin.version - 1, "two incomplete changes")
                head, before = twin._replace(stale=False), head
                count, stale = count + 1, stale - 1
    version = 0 if head is None else head.version
    missing = version < header.version or header.offset_bytes > size
    if version < header.version - 1 or (missing and header.prev_offset_bytes != end):
        _damaged(
            path,
            end,
            version,
            f"the file ends at version {version}, and its header says that version "
            f"{header.version} was stored, up to byte {header.offset_bytes}",
        )
    # Recognized by its first ten bytes, the last of which belongs to its text.
    begun = fsio.read_at(fd, v1.ENTRY_BYTES + 1, end, op=_READ)
    replaces = (
        len(begun) > v1.ENTRY_BYTES
        and v1.unpack_entry_head(begun)[1:] == (version, v1.TRANSACTION)
        and begun[v1.ENTRY_BYTES] not in b"\x00" + _MAY_START_PRAGMA
    )
    return Layout(header, end, size, head, before, count, stale, replaces)


def entries(fd: int, size_bytes: int) -> Iterator[Entry]:
    """The entries up to `size_bytes`, stale ones marked.

    Raises:
        Damaged: there are bytes that are not an entry.
        StorageError: the operating system failed a read.
    """
    held: Entry | None = None
    replaces = False
    offset = v1.HEADER_BYTES
    while offset < size_bytes:
        try:
            entry = _entry_at(fd, offset, size_bytes, held)
        except _Unreadable:
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
            if replaces and not replaced and not _is_whole(fd, held):
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
        raise _Unreadable(offset, "less than the 9 bytes that start an entry")
    length, version, entry_type = v1.unpack_entry_head(data)
    if entry_type not in (v1.TRANSACTION, v1.SNAPSHOT):
        raise _Unreadable(offset, f"an entry of unknown type {entry_type} (only 1 and 2 exist)")
    if offset + v1.ENTRY_BYTES + length > size:
        raise _Unreadable(offset, f"an entry of {length} bytes, longer than the rest of the file")
    foreign_keys = True if last is None else last.foreign_keys
    if entry_type == v1.SNAPSHOT:
        if last is not None and version < last.version:
            raise _Unreadable(offset, f"a snapshot of version {version} after {last.version}")
        if not data[v1.ENTRY_BYTES :].startswith(v1.SQLITE_MAGIC):
            raise _Unreadable(offset, "a snapshot that is not a SQLite database")
        return Entry(offset, length, version, Kind.SNAPSHOT, True)
    if length == 0:
        raise _Unreadable(offset, "a transaction without a statement")
    if data[v1.ENTRY_BYTES] in _MAY_START_PRAGMA and length <= v1.MAX_RIDER_BYTES:
        rider = _statements(fd, offset, length)
        if statements.is_rider(rider):
            if last is not None and version != last.version:
                raise _Unreadable(offset, f"a rider for version {version} after {last.version}")
            foreign_keys = statements.foreign_keys_after(rider, foreign_keys)
            return Entry(offset, length, version, Kind.RIDER, foreign_keys)
    if last is None and version != 1:
        # A change that was set aside; there is no earlier entry to check its version against.
        alone = Entry(offset, length, version, Kind.TRANSACTION, foreign_keys)
        if not _is_whole(fd, alone):
            raise _Unreadable(offset, f"version {version} as the first entry")
    if last is not None and version != last.version + 1:
        replaces = version == last.version and last.kind is Kind.TRANSACTION
        if not replaces:
            raise _Unreadable(offset, f"version {version} after version {last.version}")
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
                if candidate.end_bytes <= size and _is_whole(fd, candidate):
                    return found
            at = region.find(head[4:], at + 1)
    return None


def _statements(fd: int, offset: int, length: int) -> tuple[str, ...]:
    return v1.unpack_transaction(fsio.read_at(fd, length, offset + v1.ENTRY_BYTES, op=_READ))


def _is_whole(fd: int, entry: Entry) -> bool:
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


def _require_unanswered(
    fd: int, path: str, header: v1.Header, head: Entry, twin: Entry | None
) -> None:
    """Accepts an incomplete last entry if it was never answered; raises otherwise."""
    announced = header.offset_bytes >= head.end_bytes or (
        header.version >= head.version and twin is None
    )
    if announced and not _has_hole(fd, header, head.offset_bytes, head.end_bytes):
        _damaged(
            path,
            head.offset_bytes,
            head.version - 1,
            f"the transaction for version {head.version} does not end with the statement that "
            "sets this version",
        )
    if header.version < head.version - 1:
        _damaged(path, head.offset_bytes, head.version - 1, "an incomplete change")


def _read_header(fd: int, path: str) -> v1.Header:
    data = b""
    while data != (data := fsio.read_at(fd, v1.HEADER_BYTES, 0, op=_READ)):
        pass  # read until two reads agree: a writer may be replacing it
    if len(data) < v1.HEADER_BYTES:
        _not_begun_as_one(path, f"it has {len(data)} bytes, less than a header (512)")
    file_version, header = v1.unpack_header(data)
    if file_version != v1.FILE_VERSION:
        _not_begun_as_one(path, f"its header has version {file_version}, not 1")
    return header


def _not_begun_as_one(path: str, why: str) -> NoReturn:
    raise Damaged(
        f"{path} is not a backup in the format of the community's plugin, or is damaged at byte 0: "
        f"{why}. Nothing was changed. Did you mean another file?"
    )


def _require_torn(
    fd: int, path: str, header: v1.Header, head: Entry | None, bad: _Unreadable, size: int
) -> None:
    """Accepts invalid bytes as a torn change that was never answered; raises otherwise."""
    version = 0 if head is None else head.version
    at = bad.offset_bytes
    if at >= header.offset_bytes:
        # At the header's offset one entry is written next, so everything before is promised.
        torn = version == header.version
    elif at == header.prev_offset_bytes and version == header.prev_version:
        torn = _has_hole(fd, header, at, size)
    else:
        torn = False
    if not torn:
        wanted = "the first entry" if head is None else f"the entry that follows version {version}"
        _damaged(path, at, version, f"expected {wanted}, found {bad.found}")


def _has_hole(fd: int, header: v1.Header, start: int, end: int) -> bool:
    """Whether a part of the last entry never reached the disk.

    The header and the entry are synced together, and only then the node is answered; so the
    header may be there without the entry, or with only some sectors of it. Missing sectors are
    beyond the end of the file, or read as zeros, which statements do not contain. A single flipped
    bit does not make such a hole.
    """
    if end < header.offset_bytes:
        return True
    length = header.offset_bytes - start - v1.ENTRY_BYTES
    if not 0 < length <= v1.MAX_PAYLOAD_BYTES:
        return False
    wanted = v1.pack_entry_head(length, header.version, v1.TRANSACTION)
    sector = b""
    while start < end:
        stop = min(end, (start // _SECTOR_BYTES + 1) * _SECTOR_BYTES)
        sector = fsio.read_at(fd, stop - start, start, op=_READ)
        if not any(sector) and (len(sector) > len(wanted) or any(wanted[: len(sector)])):
            return True
        wanted = wanted[len(sector) :]
        start = stop
    return sector[-1:] == b"\x00"


def _damaged(path: str, offset_bytes: int, version: int, what: str) -> NoReturn:
    raise Damaged(
        f"{path} is damaged at byte {offset_bytes}: {what}. "
        "Nothing was changed; keep the file as it is.",
        offset_bytes=offset_bytes,
        good_version=version,
    )
