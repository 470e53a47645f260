"""Reads the segments of a `dir:` log in order, each checked against the one after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.dir.log import LogEnd, Segment, open_segment
from cln_backup.backends.dir.records import Tail, Unreadable, judge_tail, records
from cln_backup.backends.dir.store import damaged, segment_name
from cln_backup.formats import v2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.dir.store import Store
    from cln_backup.formats.v2_stream import Record
    from cln_backup.storage.source import Source


class Piece(NamedTuple):
    """A segment and its valid part.

    Attributes:
        end_bytes: its end.
        seal, digest: of it, from the next segment; `None` if there is no next one.
    """

    source: Source
    segment: Segment
    end_bytes: int
    seal: bytes | None
    digest: bytes | None


def pieces(store: Store, numbers: Sequence[int], end: LogEnd) -> Iterator[Piece]:
    """The segments up to the end of the log, in order, each checked against the next.

    A segment is closed when the next one is asked for.

    Raises:
        Damaged: one is missing, or does not continue the previous one.
    """
    last: tuple[Source, Segment] | None = None
    try:
        for number in numbers:
            if number > end.segment:
                break
            if store.objects.status(segment_name(number)) is None:
                continue  # claimed, never started, and removed meanwhile; else the chain shows it
            version = (
                0 if last is None or last[1].state.head is None else last[1].state.head.version
            )
            source, segment = open_segment(store, number, version)
            if segment is None:
                source.close()
                continue
            try:
                if last is not None:
                    _check_link(store, last[1], segment)
                    state = segment.state
                    yield Piece(*last, state.prev_end_bytes, state.prev_seal, state.prev_digest)
                    last[0].close()
            except BaseException:
                source.close()
                raise
            last = source, segment
        if end.segment and (last is None or last[1].number != end.segment):
            damaged(store.log_path(end.segment), 0, 0, "it is missing")
        if last is not None:
            yield Piece(*last, end.end_bytes, None, None)
    finally:
        if last is not None:
            last[0].close()


def _check_link(store: Store, last: Segment, segment: Segment) -> None:
    path = store.log_path(segment.number)
    version = 0 if segment.state.head is None else segment.state.head.version
    if segment.state.prev_segment != last.number:
        damaged(
            path,
            0,
            version,
            f"it continues segment {segment.state.prev_segment}, but the one before it is "
            f"{last.number}; a segment is missing",
        )
    if segment.header.open.epoch < last.header.open.epoch:
        damaged(path, 0, version, "its writer is older than that of the previous segment")


def read_piece(store: Store, piece: Piece) -> Iterator[Record]:
    """The records of a segment up to its end.

    Raises:
        Damaged: a record is not valid, or the segment's end does not match the next one.
    """
    path = store.log_path(piece.segment.number)
    decoder = piece.segment.decoder()
    version = 0 if piece.segment.state.head is None else piece.segment.state.head.version
    end = v2.HEADER_BYTES
    try:
        for record in records(piece.source, decoder, piece.segment.number, piece.end_bytes):
            yield record
            version = record.version - (record.type is v2.Type.DROP)
            end = record.end_bytes
    except Unreadable as error:
        damaged(
            path,
            error.offset_bytes,
            version,
            f"expected the record that follows version {version}, found {error.found}",
        )
    if end != piece.end_bytes or piece.seal not in (None, decoder.seal):
        damaged(path, end, version, "the next segment continues from a different end")
    if piece.seal is not None:
        check_tail_of_closed(store, piece, version)


def check_tail_of_closed(store: Store, piece: Piece, version: int) -> None:
    """Checks the bytes after the end of a segment that is followed by another.

    An interrupted write may have left a torn record there, and a writer that did not know of its
    successor yet a complete one; neither was answered. A writer looks after each record, so if
    there are two, the first was answered.
    """
    if judge_tail(piece.source, piece.end_bytes) is not Tail.DAMAGED:
        return
    count = _whole_records_after(piece)
    if count != 1:
        path = store.log_path(piece.segment.number)
        what = f"after its end is {Tail.DAMAGED.value}"
        if count:
            what = f"{count} changes that were stored after its end are not in the next segment"
        damaged(path, piece.end_bytes, version, what)


def _whole_records_after(piece: Piece) -> int:
    """The number of valid records after the end of a segment, if nothing else follows."""
    decoder = piece.segment.decoder()
    end = v2.HEADER_BYTES
    count = 0
    try:
        size = piece.source.size_bytes()
        for record in records(piece.source, decoder, piece.segment.number, size):
            end = record.end_bytes
            count += end > piece.end_bytes
    except Unreadable:
        if judge_tail(piece.source, end) is Tail.DAMAGED:
            return 0
    return count
