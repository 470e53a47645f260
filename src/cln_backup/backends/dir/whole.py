"""The state of a `dir:` backup's log, and whether its end is there.

A copy that stopped early is a backup of an older state, which costs a node its funds. The evidence:
a segment without a successor has the length that it was made with; the writer records beside its
lock which segment it started last; a snapshot has its record in the log, and a base the place where
the log continues.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.base import LOCK_NAME
from cln_backup.backends.dir.log import find_end
from cln_backup.backends.dir.store import damaged, list_files, segment_name, snapshot_name
from cln_backup.backends.dir.tracker import Tracker
from cln_backup.formats import v2
from cln_backup.model.errors import IncompleteCopy, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.store import Listing, Store
    from cln_backup.backends.dir.walk import Walks

_MAX_NOTE_BYTES: Final = 4096
_TRIES: Final = 2
_SETTLE_S: Final = 0.01


class Stock(NamedTuple):
    """The state of a log.

    Attributes:
        segments: the numbers of those that its base needs, in order.
        end, tracker: its end, and the state there.
        notice: if its end is missing and that was accepted, a note about it.
    """

    segments: Sequence[int]
    end: LogEnd
    tracker: Tracker
    notice: str


def take_stock(
    store: Store,
    base: Base,
    *,
    alone: bool,
    accept_incomplete: bool = False,
    walks: Walks | None = None,
) -> Stock:
    """Reads the end of the log; `alone` if no writer can be active. `walks` as for `find_end`.

    Raises:
        IncompleteCopy: the end is missing, and that was not accepted.
        Damaged, StorageError.
    """
    tries = 0 if alone else _TRIES
    while True:
        noted = _noted_segment(store)  # before the listing, so what it names is there by then
        listing = list_files(store.objects)
        segments, end, tracker = _read(store, base, listing, walks, alone=alone)
        lacks = end.lacks or _lacks(store, base, listing, end, noted)
        if not lacks:
            return Stock(segments, end, tracker, "")
        if tries == 0:
            break
        # An active writer may have started the next segment meanwhile, perhaps each time.
        if list_files(store.objects).segments[-1:] == listing.segments[-1:]:
            tries -= 1
            time.sleep(_SETTLE_S)
    version = tracker.version
    text = (
        f"Incomplete copy of a backup, or its disk lost the end: {lacks}. Changes up to version "
        f"{version} are there; newer ones may be missing, and a node that continues from an older "
        "state can lose its funds. "
    )
    if accept_incomplete:
        return Stock(segments, end, tracker, text + "It was requested by --to.")
    error = IncompleteCopy(
        f"{text}Nothing was changed. Copy the whole directory again, with the node stopped. If "
        f"the original is lost, `backup-cli restore --to {version}` restores the changes that are "
        "there."
    )
    error.good_version = version  # its message says so already
    raise error


def _read(
    store: Store, base: Base, listing: Listing, walks: Walks | None, *, alone: bool
) -> tuple[list[int], LogEnd, Tracker]:
    state = base.state
    segments = [number for number in listing.segments if number >= state.start.segment]
    if state.start.offset_bytes and segments[:1] != [state.start.segment]:
        # Otherwise the log would start again at a place that no reader of this base knows.
        what = f"the log continues in segment {state.start.segment}, which is missing"
        damaged(store.objects.where(base.name), 0, state.version, what)
    head, before = base.marks()
    in_base = Tracker(state.ordinal, head, before, may_rewind=head is not None)
    end, tracker = find_end(store, segments, in_base, alone=alone, walks=walks)
    if not end.segment:  # the first writer, or the first one after the history was started over
        last_number = max(end.last_number, state.start.segment - 1)
        end = end._replace(epoch=base.epoch, last_number=last_number)
    return segments, end, tracker


def _lacks(store: Store, base: Base, listing: Listing, end: LogEnd, noted: int) -> str:
    """The evidence outside the last segment that the end of the log is missing."""
    start = base.state.start
    if start.offset_bytes and (end.segment, end.end_bytes) <= start[:2]:
        path = store.objects.where(base.name)
        return f"the log ends before the place where it continues after {path}"
    if noted > end.last_number and store.objects.status(segment_name(noted)) is None:
        return f"{store.log_path(noted)}, which its writer had started, is missing"
    for segment, at in listing.snapshots:
        if segment < start.segment:  # of an earlier generation
            continue
        begun = segment <= end.last_number
        there = end.end_bytes if segment == end.segment else v2.HEADER_BYTES if begun else 0
        if segment >= end.segment and at > there:
            path = store.objects.where(snapshot_name(segment, at))
            return f"{path} is there, but its record in the log is missing"
    return ""


def note_of(store: Store, segment: int) -> dict[str, object]:
    """The note beside a writer's lock about the segment that it started last."""
    return {"backup_id": store.backup_id.hex(), "segment": segment}


def _noted_segment(store: Store) -> int:
    """The segment that was started last, by its writer's note; 0 if unknown."""
    with suppress(StorageError, ValueError, RecursionError):
        note = json.loads(store.objects.get(LOCK_NAME, 0, _MAX_NOTE_BYTES))
        if isinstance(note, dict) and note.get("backup_id") == store.backup_id.hex():
            segment = note.get("segment")
            return segment if isinstance(segment, int) and segment > 0 else 0
    return 0
