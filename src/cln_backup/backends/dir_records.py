"""Reads the records of one file of a `dir:` backup, and judges what stands behind the last one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from cln_backup import fsio
from cln_backup.backends.dir_store import READ
from cln_backup.formats import v2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.formats.v2_stream import Decoder, Record

_WINDOW_BYTES: Final = 1 << 18
_ZEROS_BY_CHANCE: Final = 2


class Unreadable(Exception):
    """No record stands at an offset, and the file goes on."""

    def __init__(self, offset_bytes: int, found: str) -> None:
        super().__init__(found)
        self.offset_bytes = offset_bytes
        self.found = found


def records(
    fd: int, decoder: Decoder, segment: int, end_bytes: int, offset: int = v2.HEADER_BYTES
) -> Iterator[Record]:
    """The records from one offset up to another. Memory: the largest record that stands there.

    Raises:
        Unreadable: what stands there is not the next record.
    """
    window, window_at = b"", 0
    while offset < end_bytes:
        at = offset - window_at
        if len(window) - at < v2.HEAD_BYTES:
            window, window_at, at = _window(fd, offset, end_bytes, 0), offset, 0
        if len(window) - at < v2.HEAD_BYTES:
            raise Unreadable(offset, "less than a record has")
        length = v2.unpack_head(window[at : at + v2.HEAD_BYTES])
        if length is None:
            raise Unreadable(offset, "no start of a record")
        whole = length + v2.FRAME_BYTES
        if offset + whole > end_bytes:
            raise Unreadable(offset, f"a record of {whole} bytes, which the file does not hold")
        if len(window) - at < whole:
            window, window_at, at = _window(fd, offset, end_bytes, whole), offset, 0
        try:
            position = v2.Position(segment, offset, decoder.seal)
            record = decoder.decode(window[at : at + whole], position)
        except v2.Malformed as error:
            raise Unreadable(offset, str(error)) from None
        if record is None:
            raise Unreadable(offset, "a record that is not what was written")
        yield record
        offset = record.end_bytes


def _window(fd: int, offset: int, end: int, at_least: int) -> bytes:
    return fsio.read_at(fd, min(end - offset, max(_WINDOW_BYTES, at_least)), offset, op=READ)


class Tail(Enum):
    """What stands behind the last record that holds."""

    CLEAN = "nothing but zeros"
    TORN = "a record that was cut while it was written"
    DAMAGED = "what no cut leaves behind"


def judge_tail(fd: int, offset: int, *, cut_before: bool = False) -> Tail:
    """Judges what stands in a file of the log from `offset` to its end.

    A record is written into zeros by one write, and answered after the sync of it; so at most one
    is unfinished, and of that one each sector was written whole or not at all. It is torn where it
    explains all that stands here, and at least one of its sectors is missing (`cut_before`: the
    one before, with the header, is). Everything else is damage.
    """
    size = fsio.size_bytes(fd)
    last = _last_byte(fd, offset, size)
    if last is None:
        return Tail.CLEAN
    end = last + 1
    head = fsio.read_at(fd, v2.HEAD_BYTES, offset, op=READ).ljust(v2.HEAD_BYTES, b"\x00")
    length = v2.unpack_head(head)
    ended_by = _length_before(fd, offset, end)
    if ended_by is not None and offset + ended_by + v2.FRAME_BYTES != end:
        if offset + ended_by + v2.FRAME_BYTES < end:
            return Tail.DAMAGED  # another record ends there, behind the one that starts here
        ended_by = None  # chance
    if head[0] == v2.MARK:
        # Where the head itself crosses into a sector that is missing, its length is not known.
        split = offset % v2.SECTOR_BYTES > v2.SECTOR_BYTES - v2.HEAD_BYTES
        if length is None and not split:
            return Tail.DAMAGED
        if length is not None:
            whole = offset + length + v2.FRAME_BYTES
            if end <= whole and ended_by in (None, length):
                explained = end == whole or _is_full_up_to(end)
                missing = cut_before or _misses_a_sector(fd, offset, whole)
                return Tail.TORN if explained and missing else Tail.DAMAGED
            if not split:
                return Tail.DAMAGED
        boundary = _next_sector(offset)
        if _has_data(fd, boundary, boundary + v2.SECTOR_BYTES):
            return Tail.DAMAGED
        if end <= boundary:
            return Tail.TORN
    elif head[0] != 0 or _has_data(fd, offset, _next_sector(offset)):
        return Tail.DAMAGED
    return Tail.TORN if _explains(fd, offset, end, ended=ended_by is not None) else Tail.DAMAGED


def is_torn_drop(fd: int, offset: int) -> bool:
    """Whether the torn record at `offset` is a drop, the only kind with so short a body."""
    head = fsio.read_at(fd, v2.HEAD_BYTES, offset, op=READ).ljust(v2.HEAD_BYTES, b"\x00")
    if head[0] == v2.MARK:
        return v2.unpack_head(head) == v2.BODY_BYTES
    last = _last_byte(fd, offset, fsio.size_bytes(fd))
    return last is not None and _length_before(fd, offset, last + 1) == v2.BODY_BYTES


def _explains(fd: int, offset: int, end: int, *, ended: bool) -> bool:
    """Whether one record of unknown length, from which sectors are missing, reaches up to `end`."""
    start = _next_sector(offset)
    while start < end:
        stop = start + v2.SECTOR_BYTES
        sector = fsio.read_at(fd, v2.SECTOR_BYTES, start, op=READ)
        data = v2.SECTOR_BYTES - sector.count(0) - (v2.SECTOR_BYTES - len(sector))
        lone_end = ended and start == end - 1
        if data == 1 and not lone_end:
            return False
        start = stop
    # The last sector that is there holds the end of the record, or is full.
    return ended or _is_full_up_to(end)


def _is_full_up_to(end: int) -> bool:
    """Whether the sector in which the data end may be full, but for zeros by chance."""
    return -end % v2.SECTOR_BYTES <= _ZEROS_BY_CHANCE


def _next_sector(offset: int) -> int:
    return (offset // v2.SECTOR_BYTES + 1) * v2.SECTOR_BYTES


def _has_data(fd: int, start: int, stop: int) -> bool:
    return any(fsio.read_at(fd, stop - start, start, op=READ))


def _misses_a_sector(fd: int, start: int, end: int) -> bool:
    while start < end:
        stop = min(end, _next_sector(start))
        if not _has_data(fd, start, stop):
            return True
        start = stop
    return False


def _length_before(fd: int, offset: int, end: int) -> int | None:
    if end - offset < v2.FOOT_BYTES:
        return None
    return v2.unpack_foot(fsio.read_at(fd, v2.FOOT_BYTES, end - v2.FOOT_BYTES, op=READ))


def _last_byte(fd: int, start: int, size: int) -> int | None:
    """Where the last byte stands that is not zero."""
    while size > start:
        chunk_at = max(start, size - _WINDOW_BYTES)
        chunk = fsio.read_at(fd, size - chunk_at, chunk_at, op=READ).rstrip(b"\x00")
        if chunk:
            return chunk_at + len(chunk) - 1
        size = chunk_at
    return None
