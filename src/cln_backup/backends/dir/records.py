"""Reads the records of one file of a `dir:` backup, and judges the bytes after the last one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from cln_backup.formats import v2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.formats.v2_stream import Decoder, Record
    from cln_backup.storage.source import Source

_WINDOW_BYTES: Final = 1 << 18
_ZEROS_BY_CHANCE: Final = 2
_ZEROS_OF_A_LENGTH: Final = 3
"""If the last of the four bytes of a length is in another sector, so many may remain at a sector's
end; a shorter record has no sectors between its first and its last."""


class Unreadable(Exception):
    """There is no valid record at an offset, but the file continues.

    Attributes:
        cut: whether a record starts there that the end of the file cuts off.
    """

    def __init__(self, offset_bytes: int, found: str, *, cut: bool = False) -> None:
        super().__init__(found)
        self.offset_bytes = offset_bytes
        self.found = found
        self.cut = cut


def records(
    source: Source, decoder: Decoder, segment: int, end_bytes: int, offset: int = v2.HEADER_BYTES
) -> Iterator[Record]:
    """The records from one offset up to another. Memory: the largest record among them.

    Raises:
        Unreadable: the next record is not valid.
    """
    asked_bytes = end_bytes
    wanted = _WINDOW_BYTES
    while offset < end_bytes:
        wanted = min(end_bytes - offset, wanted)
        window = source.read_at(offset, wanted)
        if len(window) < wanted:
            end_bytes = offset + len(window)
        if not window:
            break
        try:
            found = decoder.decode(window, segment, offset)
        except v2.Malformed as error:
            raise Unreadable(offset, str(error)) from None
        if found:
            # A large record is usually followed by one of the same size, as in a snapshot.
            last = found[-1]
            wanted = max(_WINDOW_BYTES, last.end_bytes - last.start.offset_bytes + v2.FRAME_BYTES)
            offset = last.end_bytes
            del last
            window = b""  # it is not kept while the records are used
            found.reverse()
            while found:
                yield found.pop()
        else:
            wanted = _whole_bytes(window, offset, end_bytes)
            if wanted <= len(window):
                raise Unreadable(offset, "a record that was modified")
    if offset < asked_bytes:
        raise Unreadable(offset, "the end of the file, which became shorter")


def _whole_bytes(window: bytes, offset: int, end_bytes: int) -> int:
    """The length of the record at the start of the window."""
    if offset + v2.HEAD_BYTES > end_bytes:
        raise Unreadable(offset, "fewer bytes than a record has", cut=window[0] == v2.MARK)
    length = v2.unpack_head(window)
    if length is None:
        raise Unreadable(offset, "bytes that do not start a record")
    whole = length + v2.FRAME_BYTES
    if offset + whole > end_bytes:
        what = f"a record of {whole} bytes, longer than the rest of the file"
        raise Unreadable(offset, what, cut=True)
    return whole


class Tail(Enum):
    """The bytes after the last valid record."""

    CLEAN = "nothing but zeros"
    TORN = "a record whose write was interrupted"
    DAMAGED = "damage that no interrupted write leaves"


def judge_tail(source: Source, offset: int, *, cut_before: bool = False) -> Tail:
    """Judges the bytes of a file of the log from `offset` to its end.

    A record is written into zeros by one write, and answered after its sync; so at most one is
    unfinished, and each of its sectors was written completely or not at all. The tail is torn if
    such a record explains all bytes here, with at least one sector missing (`cut_before`: the
    previous one, with the header, is missing). Everything else is damage.
    """
    last = last_byte(source, offset, source.size_bytes())
    if last is None:
        return Tail.CLEAN
    end = last + 1
    boundary = _next_sector(offset)
    starts = _has_data(source, offset, boundary)
    head = source.read_at(offset, v2.HEAD_BYTES).ljust(v2.HEAD_BYTES, b"\x00")
    if starts and head[0] != v2.MARK:
        return Tail.DAMAGED
    crosses = offset + v2.HEAD_BYTES > boundary
    if not starts or (crosses and not _has_data(source, boundary, boundary + v2.SECTOR_BYTES)):
        explained = _explained_by_some_length(source, offset, end)
    else:
        length = v2.unpack_head(head)
        explained = length is not None and _explained_by(source, offset, end, length)
        if length is not None and not cut_before:
            explained = explained and _misses_a_sector(
                source, offset, offset + length + v2.FRAME_BYTES
            )
    return Tail.TORN if explained else Tail.DAMAGED


def _explained_by(source: Source, offset: int, end: int, length: int) -> bool:
    """Whether the data end where a record of this length can, whichever sectors are missing."""
    whole = offset + length + v2.FRAME_BYTES
    if end >= whole:
        return end == whole and _ends_there(source, offset, end)
    if (
        _sector_end(end) >= whole
        or _ends_there(source, offset, end)
        or _other_ends(source, offset, end)
    ):
        return False
    # Its last sector is missing. The part of the length in its foot before that may be zeros.
    foot_at = whole - v2.FOOT_BYTES
    zeros_from = max(end, foot_at)
    before = v2.pack_foot(length)[zeros_from - foot_at : max(0, _sector_end(end) - foot_at)]
    return not any(before) and min(_sector_end(end), zeros_from) - end <= _ZEROS_BY_CHANCE


def _explained_by_some_length(source: Source, offset: int, end: int) -> bool:
    """As `_explained_by`, if the length is in a missing sector."""
    if _other_ends(source, offset, end):
        return False
    ends = _ends_there(source, offset, end)
    start = _next_sector(offset)
    while start < end:
        sector = source.read_at(start, v2.SECTOR_BYTES)
        bytes_there = len(sector) - sector.count(0)
        start += v2.SECTOR_BYTES
        if bytes_there == 1 and not (ends and start >= end):
            return False  # a single flipped bit, unless it is the end mark
    # The last sector present has the end of the record, or is full.
    return ends or _sector_end(end) - end <= _ZEROS_BY_CHANCE + _ZEROS_OF_A_LENGTH


def _ends_there(source: Source, offset: int, end: int) -> bool:
    """Whether a record from `offset` to `end` would have the foot that is there.

    If the foot crosses into its last sector from a missing one, the remaining bytes must match.
    """
    length = end - offset - v2.FRAME_BYTES
    if length < v2.BODY_BYTES:
        return False
    known = _known_of_foot(source, offset, end)
    return known == v2.pack_foot(length)[-len(known) :]


def _other_ends(source: Source, offset: int, end: int) -> bool:
    """Whether a shorter record ends there: another one, after the one that starts at `offset`."""
    known = _known_of_foot(source, offset, end)
    length = v2.unpack_foot(known) if len(known) == v2.FOOT_BYTES else None
    return length is not None and offset + length + v2.FRAME_BYTES < end


def _known_of_foot(source: Source, offset: int, end: int) -> bytes:
    """The bytes of a foot that ends at `end`, without those of a missing sector."""
    start = max(offset, end - v2.FOOT_BYTES)
    sector = (end - 1) // v2.SECTOR_BYTES * v2.SECTOR_BYTES
    if start < sector and not _has_data(source, max(offset, sector - v2.SECTOR_BYTES), sector):
        start = sector
    return source.read_at(start, end - start)


def is_torn_drop(source: Source, offset: int) -> bool:
    """Whether the torn record at `offset` is a drop, the only kind with so short a body."""
    head = source.read_at(offset, v2.HEAD_BYTES).ljust(v2.HEAD_BYTES, b"\x00")
    if head[0] == v2.MARK:
        return v2.unpack_head(head) == v2.BODY_BYTES
    last = last_byte(source, offset, source.size_bytes())
    whole = v2.BODY_BYTES + v2.FRAME_BYTES
    return last == offset + whole - 1 and _ends_there(source, offset, offset + whole)


def _sector_end(end: int) -> int:
    """The end of the sector with the byte before `end`."""
    return -(-end // v2.SECTOR_BYTES) * v2.SECTOR_BYTES


def _next_sector(offset: int) -> int:
    return (offset // v2.SECTOR_BYTES + 1) * v2.SECTOR_BYTES


def _has_data(source: Source, start: int, stop: int) -> bool:
    return any(source.read_at(start, stop - start))


def _misses_a_sector(source: Source, start: int, end: int) -> bool:
    while start < end:
        stop = min(end, _next_sector(start))
        if not _has_data(source, start, stop):
            return True
        start = stop
    return False


def last_byte(source: Source, start: int, size: int) -> int | None:
    """The offset of the last nonzero byte."""
    while size > start:
        chunk_at = max(start, size - _WINDOW_BYTES)
        chunk = source.read_at(chunk_at, size - chunk_at).rstrip(b"\x00")
        if chunk:
            return chunk_at + len(chunk) - 1
        size = chunk_at
    return None
