"""Reads a file of format 1 from end to end, and tells torn and stale entries from damage.

A file may have been cut off at any write, by this program or by the community's plugin, which also
leaves stale transactions that the node never committed: it goes back in its header but always
appends at the end of the file. So the entries are authoritative, and the header is a promise that
everything up to its version was there. `docs/format.md` has the rules with their reasons.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from cln_backup.backends.file.entries import (
    MAY_START_PRAGMA,
    Entry,
    Unreadable,
    entries,
    is_there,
    is_whole,
)
from cln_backup.formats import v1
from cln_backup.model.change import Kind
from cln_backup.model.errors import Damaged
from cln_backup.storage import fsio

_READ = "read backup"
_SECTOR_BYTES = 512


class Known(NamedTuple):
    """An entry that no writer drops any more, for a later scan to start at.

    Attributes:
        number: its number among those that are not stale.
        stale: the number of stale ones before it.
    """

    entry: Entry
    number: int
    stale: int


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
        known: where a later scan may start.
    """

    header: v1.Header
    end_bytes: int
    size_bytes: int
    head: Entry | None
    before: Entry | None
    version_count: int
    stale: int
    torn_replaces_head: bool
    known: Known | None = None

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


def scan(fd: int, path: str, known: Known | None = None) -> Layout:
    """Scans the file; from `known` on, if that is still there.

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
    stale_of_head = stale_of_before = 0
    start, count, stale = None, 0, 0
    if known is not None and known.entry.end_bytes <= size and is_there(fd, known.entry):
        start, count, stale = known.entry, known.number - 1, known.stale
    bad: Unreadable | None = None
    try:
        for entry in entries(fd, size, start):
            if entry.stale:
                stale += 1
                twin = entry
                continue
            head, before = entry, head
            stale_of_head, stale_of_before = stale, stale_of_head
            count += 1
    except Unreadable as unreadable:
        bad = unreadable
    if start is not None and before is None:  # what is before it matters
        return scan(fd, path)
    known = None if before is None else Known(before, count - 1, stale_of_before)
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
        elif not is_whole(fd, head):
            _require_unanswered(fd, path, header, head, twin)
            end, count = head.offset_bytes, count - 1
            head, before = before, None
            if twin is not None:  # without its replacement, the first of the two is valid again
                if not is_whole(fd, twin):
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
        and begun[v1.ENTRY_BYTES] not in b"\x00" + MAY_START_PRAGMA
    )
    return Layout(header, end, size, head, before, count, stale, replaces, known)


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
    fd: int, path: str, header: v1.Header, head: Entry | None, bad: Unreadable, size: int
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
