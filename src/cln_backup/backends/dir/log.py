"""Reads the log of a `dir:` backup: the chain of its segments, and the state after its records."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir import store as dir_store
from cln_backup.backends.dir.records import (
    Tail,
    Unreadable,
    is_torn_drop,
    judge_tail,
    last_byte,
    records,
)
from cln_backup.backends.dir.snapshots import snapshot_state
from cln_backup.backends.dir.store import damaged, segment_name
from cln_backup.backends.dir.walk import Walks
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Decoder
from cln_backup.model.errors import Damaged
from cln_backup.model.position import UNKNOWN, after_snapshot, after_statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.dir.store import Header, Store
    from cln_backup.backends.dir.tracker import Tracker
    from cln_backup.backends.dir.walk import Walk
    from cln_backup.formats.v2_stream import Record
    from cln_backup.storage.source import Source

_SETTLE_TRIES: Final = 20
_SETTLE_S: Final = 0.01
_BEGIN_TRIES: Final = 2
_BLOCK_BYTES: Final = 4096


class Segment(NamedTuple):
    """A segment that was started: its header was written."""

    number: int
    header: Header
    state: v2.LogState

    def decoder(self) -> Decoder:
        """A decoder of its records, starting with the first."""
        timed = self.header.open.kind is v2.FileKind.TIMED_LOG
        return Decoder(self.header.sealer, self.header.seal, timed=timed)


class LogEnd(NamedTuple):
    """The end of the log, with everything that the next writer must know.

    Attributes:
        segment: number of the last one that was started; 0 if there is none.
        end_bytes, seal, digest: its end, its last seal, SHA-256 of everything before.
        epoch: of its writer.
        last_number: of the last segment, started or not.
        torn_bytes: length of the torn record after the end.
        lacks: the evidence that the end of the log is missing; usually empty.
    """

    segment: int
    end_bytes: int
    seal: bytes
    digest: bytes
    epoch: int
    last_number: int
    torn_bytes: int
    lacks: str


def open_segment(store: Store, number: int, version: int = 0) -> tuple[Source, Segment | None]:
    """Opens a segment for reading; returns its source, which the caller closes, and its header.

    The header is `None` if the segment was not started.
    """
    name = segment_name(number)
    source = store.objects.open(name, op="open segment")
    try:
        header = store.read_header(source, name, v2.FileKind.LOG, number, version)
        if header is None:
            return source, None
        try:
            state = v2.unpack_log_state(header.state)
        except v2.Malformed as error:
            damaged(store.objects.where(name), 0, version, f"it has {error}")
        return source, Segment(number, header, state)
    except BaseException:
        source.close()
        raise


def find_end(
    store: Store,
    numbers: Sequence[int],
    tracker: Tracker,
    *,
    alone: bool,
    walks: Walks | None = None,
) -> tuple[LogEnd, Tracker]:
    """Finds the end of the log; `tracker` is the result for a log without segments.

    Args:
        store: the backup.
        numbers: of all segments, in order.
        tracker: the state after the base.
        alone: whether no writer can be active. Otherwise apparent damage at the very end may be
            a record that is being written at this moment, and is read again.
        walks: the readings of the newest segment, to continue the last one.

    Raises:
        Damaged: the last segment contains invalid bytes.
        StorageError.
    """
    tries = 0 if alone else min(_SETTLE_TRIES, _BEGIN_TRIES)
    walks = walks or Walks()
    while True:
        try:
            return _find_end(store, numbers, tracker, walks, alone=alone)
        except Damaged:  # or a header that is being written at this moment
            walks.last = None
            if tries == 0:
                raise
            tries -= 1
            time.sleep(_SETTLE_S)
        except BaseException:
            walks.last = None
            raise


def _find_end(
    store: Store, numbers: Sequence[int], tracker: Tracker, walks: Walks, *, alone: bool
) -> tuple[LogEnd, Tracker]:
    last_number = numbers[-1] if numbers else 0
    none = LogEnd(0, 0, bytes(v2.SEAL_BYTES), bytes(v2.DIGEST_BYTES), 0, last_number, 0, "")
    found = none, tracker
    successor_was_sent = False
    lacks = ""
    for number in reversed(numbers):
        source, segment = open_segment(store, number)
        try:
            if segment is not None:
                walk = walks.of(segment)
                found = _walk(store, source, segment, walk, last_number, alone=alone)
                break
            tail = judge_tail(source, v2.HEADER_BYTES, cut_before=True)
            if tail is Tail.DAMAGED:
                path = store.log_path(number)
                damaged(path, 0, tracker.version, "its header is missing, but the rest is there")
            if tail is Tail.TORN and not is_torn_drop(source, v2.HEADER_BYTES):
                successor_was_sent = True
            size, least = source.size_bytes(), dir_store.FIRST_SEGMENT_BYTES
            if size < least:
                lacks = f"{store.log_path(number)} has {size} of at least {least} bytes"
        finally:
            source.close()
    if successor_was_sent:
        found[1].may_rewind = False
    return found[0]._replace(lacks=found[0].lacks or lacks), found[1]


def _walk(
    store: Store, source: Source, segment: Segment, walk: Walk, last_number: int, *, alone: bool
) -> tuple[LogEnd, Tracker]:
    path = store.log_path(segment.number)
    tracker, decoder, end = walk.tracker, walk.decoder, walk.end
    tries = 0 if alone else _SETTLE_TRIES
    torn_bytes, may_rewind = 0, True
    while True:
        size = source.size_bytes()
        started = end
        try:
            for record in records(source, decoder, segment.number, size, end):
                content = None
                if record.type in v2.COMPRESSED:
                    content = walk.inflater.inflate(record.payload)
                after = _digest_after(store, segment.number, tracker.digest, record, content)
                tracker.apply(record.type, record.version, record.start, record.stored_ms, after)
                walk.passed(record, content)
                end = walk.end
        except Unreadable as error:
            found, cut = error.found, error.cut
        except v2.Malformed as error:
            damaged(path, end, tracker.version, f"it has {error}")
        else:
            break
        tail = judge_tail(source, end)
        if tail is Tail.TORN:
            torn_bytes = (last_byte(source, end, size) or end) + 1 - end
            # The node sent the torn change, so it had committed the head; unless it is a DROP.
            may_rewind = is_torn_drop(source, end)
        if tail is not Tail.DAMAGED or (cut and _lacks(source, segment, end, path)):
            break
        # An active writer may have appended since, or may be writing at this moment.
        if tries == 0 and end == started:
            version = tracker.version
            what = f"expected the record that follows version {version}, found {found}"
            damaged(path, end, version, what)
        if end == started:
            tries -= 1
            time.sleep(_SETTLE_S)
    tracker = walk.tracker_now()
    tracker.may_rewind = tracker.may_rewind and may_rewind
    log_end = LogEnd(
        segment.number,
        end,
        decoder.seal,
        walk.digest(source),
        segment.header.open.epoch,
        last_number,
        torn_bytes,
        _lacks(source, segment, end, path),
    )
    return log_end, tracker


def _digest_after(
    store: Store, segment: int, digest: bytes, record: Record, content: bytes | None
) -> bytes:
    """The digest of the history after a record; `content` is that of statements."""
    if content is not None:
        return after_statements(digest, record.version, content)
    if record.type is not v2.Type.SNAPSHOT:
        return UNKNOWN
    number, _, _ = v2.unpack_reference(record.payload)
    return after_snapshot(digest, record.version, snapshot_state(store, segment, number).digest)


def _lacks(source: Source, segment: Segment, end: int, path: str) -> str:
    """The evidence that the end of the last started segment is missing; empty if there is none.

    Until the next segment has a record, a segment has the length that it was made with.
    """
    size = source.size_bytes()
    least = segment.state.capacity_bytes or _least_bytes_where_not_said(source, size)
    if size >= least:
        return ""
    if size == end:
        return (
            f"{path} is cut to its last change, as is done when the next segment has a newer one; "
            "that segment is missing"
        )
    return f"{path} has {size} of {least} bytes"


def _least_bytes_where_not_said(source: Source, size: int) -> int:
    """The minimum length of a segment of this size that does not record its own length.

    It was made with one of two lengths, or longer if its first record did not fit.
    """
    first, spare = dir_store.FIRST_SEGMENT_BYTES, dir_store.SPARE_BYTES
    head = source.read_at(v2.HEADER_BYTES, v2.HEAD_BYTES)
    record_end = v2.HEADER_BYTES + (v2.unpack_head(head) or 0) + v2.FRAME_BYTES
    made_longer = first < record_end <= size < record_end + _BLOCK_BYTES
    if size in (first, spare) or made_longer:
        return size
    return first if size < first else spare
