"""The state of a `dir:` backup that reader and writer know after opening it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.contract import LastChange, Standing
from cln_backup.backends.dir.store import list_files, segment_name, snapshot_name
from cln_backup.backends.dir.upkeep import expired
from cln_backup.backends.ticket import Generation
from cln_backup.model.change import Head
from cln_backup.model.position import UNKNOWN, Position

if TYPE_CHECKING:
    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.dir.tracker import Tracker
    from cln_backup.backends.dir.url import DirUrl
    from cln_backup.formats import v2


class Marks(NamedTuple):
    """The last two changes, from the log or the base."""

    head: v2.Mark | None
    before: v2.Mark | None


def marks_of(base: Base, tracker: Tracker) -> Marks:
    """The last two changes; folded ones come from the base."""
    head, before = tracker.head, tracker.before
    if head is not None and base.holds(head):  # folded by a compaction
        head, before = base.marks()
    elif before is not None and base.holds(before):
        before = base.marks()[0]
    return Marks(head, before)


def standing_of(base: Base, tracker: Tracker, marks: Marks, epoch: int) -> Standing:
    """The state of a backup."""
    head, before = marks
    version = 0 if head is None else head.version
    state = base.state
    # With a rider, the base replaces two changes, and the position is after the second one.
    snapshot_alone = state.snapshot and state.foreign_keys
    origin = _position(state.version, state.ordinal, state.digest) if snapshot_alone else None
    return Standing(
        _position(version, tracker.ordinal, tracker.digest),
        base.state.changes + tracker.ordinal - base.state.ordinal,
        before.version if before is not None and tracker.may_rewind else 0,
        None if head is None else Head(version, head.kind, head.foreign_keys),
        head is not None and tracker.may_rewind,
        epoch,
        origin,
    )


def _position(version: int, changes: int, digest: bytes) -> Position:
    return Position(version, changes, None if digest == UNKNOWN else digest)


def last_change_of(store: Store, base: Base, head: v2.Mark | None, end: LogEnd) -> LastChange:
    """When the head was stored; by the file's time if its record has none."""
    if head is None:
        return LastChange(None, by_file=False)
    if head.stored_ms:
        return LastChange(head.stored_ms / 1000, by_file=False)
    name = segment_name(end.segment) if end.segment else base.name
    status = store.objects.status(name)
    return LastChange(None if status is None else status.stored_at, by_file=True)


def size_of_files(store: Store, at: DirUrl, end: LogEnd) -> int:
    """The size of all files of the backup, without expired ones."""
    gone = expired(store.objects, at.keep, at.keep_days)
    return store.size_bytes(end.segment, end.end_bytes, gone)


def generation_of(store: Store, base: Base, end: LogEnd, version_count: int) -> Generation:
    """The base, and the log from where it continues. Raises `StorageError`."""
    state, objects = base.state, store.objects
    found = objects.status(base.name)
    first, listing = state.start.segment, list_files(objects)
    names = [segment_name(number) for number in listing.segments if first <= number < end.segment]
    names += [snapshot_name(*one) for one in listing.snapshots if one[0] >= first]
    log_bytes = sum(map(store.object_bytes, names)) + end.end_bytes - state.start.offset_bytes
    return Generation(
        found.size_bytes if state.snapshot and found is not None else 0,
        max(0, log_bytes),
        version_count - state.changes,
        None if found is None else found.stored_at,
    )


def torn_notice(end: LogEnd, version: int) -> str:
    """The notice about a torn end."""
    return (
        f"The backup ended with {end.torn_bytes} bytes of a change that was cut off by a crash or "
        "a loss of power, before the node was answered. A copy that was made while the node wrote "
        f"can look the same, and lack newer changes. The backup is at version {version}."
    )
