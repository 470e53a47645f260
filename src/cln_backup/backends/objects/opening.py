"""Opens a backup in a bucket: its newest base, and the end of its log; publishes a newer base."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.dir.history import Base
from cln_backup.backends.dir.keys import unlock
from cln_backup.backends.dir.log import find_end
from cln_backup.backends.dir.store import base_name, damaged, read_open
from cln_backup.backends.dir.tracker import Tracker
from cln_backup.backends.objects.log_objects import LogObjects, ObjectsStore
from cln_backup.formats import v2
from cln_backup.model.errors import (
    AlreadyExists,
    Damaged,
    IncompleteCopy,
    NotFound,
    StorageError,
    WriterConflict,
)
from cln_backup.storage.machine_lock import MachineLock, Taken

if TYPE_CHECKING:
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.walk import Walks
    from cln_backup.backends.objects.numbers import Numbers
    from cln_backup.backends.objects.place import ObjectsAt
    from cln_backup.backends.secrets import Secret
    from cln_backup.storage.bucket import Bucket, Listed


class Opened(NamedTuple):
    """A backup as one listing has it.

    Attributes:
        listed: the base, as it was listed.
        numbers: of the log's objects from the base on, without fences.
        end, tracker: the end of the log, and the state there.
    """

    objects: LogObjects
    store: ObjectsStore
    base: Base
    listed: Listed
    numbers: Numbers
    end: LogEnd
    tracker: Tracker


def newest_header(place: ObjectsAt, bucket: Bucket) -> tuple[LogObjects, v2.Open]:
    """The open part of the newest base's header. Raises `NotFound`, `Damaged`, `StorageError`."""
    objects = LogObjects(bucket)
    return objects, _newest(place, objects)[1]


def newest_id(objects: LogObjects) -> bytes | None:
    """The id of the backup that the last listing has; `None` if it has no base."""
    if not objects.layout.bases:
        return None
    name = base_name(*objects.layout.bases[-1])
    with objects.open(name, op="open base") as source:
        return read_open(source, objects.where(name)).backup_id


def _newest(place: ObjectsAt, objects: LogObjects) -> tuple[str, v2.Open]:
    layout = objects.refresh()
    if not layout.bases:
        if layout.last_number:
            damaged(place.path, 0, 0, "it has no base, from which the history starts")
        raise NotFound(
            f"There is no backup at {place.path}. If there was one, first check the bucket, the "
            "prefix and the endpoint in the URL. `backup-cli init` makes a new one."
        )
    name = base_name(*layout.bases[-1])
    with objects.open(name, op="open base") as source:
        return name, read_open(source, objects.where(name))


def open_backup(
    place: ObjectsAt,
    bucket: Bucket,
    secret: Secret | None,
    known: ObjectsStore | None = None,
    walks: Walks | None = None,
) -> Opened:
    """Reads the newest base and the end of the log.

    Reuses the master key of the `known` store, if there is one. `walks` are as for `find_end`.

    Raises:
        NotFound, Locked, Damaged, StorageError.
    """
    objects = LogObjects(bucket)
    try:
        name, found = _newest(place, objects)
    except StorageError:  # a newer base may have replaced it at this moment
        name, found = _newest(place, objects)
    if found.cipher == v2.PLAIN and (place.key_source or secret) is not None:
        raise Damaged(
            f"The backup in {place.path} is not encrypted, but a key was given for it. Your "
            "backup may have been replaced by another one. If you know that it is not "
            "encrypted, leave out the key."
        )
    key = None
    if found.cipher != v2.PLAIN:
        same = known is not None and known.backup_id == found.backup_id
        key = (
            known.master_key if known and same else unlock(place, objects, found.backup_id, secret)
        )
    store = ObjectsStore(objects, found.backup_id, key)
    generation, first = objects.layout.bases[-1]
    path = objects.where(name)
    with objects.open(name, op="open base") as source:
        header = store.read_header(source, name, v2.FileKind.BASE, generation)
    if header is None:
        damaged(path, 0, 0, "its header is missing")
    state = v2.unpack_base_state(header.state)
    if state.start.segment != first:
        damaged(path, 0, 0, "its name and its header have different numbers")
    base = Base(generation, name, state, found.epoch)
    return _with_end(objects, store, base, walks)


def updated(known: Opened, walks: Walks | None) -> Opened | None:
    """As `open_backup`, by the listing that `known.objects` has now; `None` if the base differs.

    Only the end of the log is read again. Raises `Damaged`, `StorageError`.
    """
    layout, name = known.objects.layout, known.base.name
    if layout.objects.get(name) != known.listed or base_name(*layout.bases[-1]) != name:
        return None
    return _with_end(known.objects, known.store, known.base, walks)


def _with_end(objects: LogObjects, store: ObjectsStore, base: Base, walks: Walks | None) -> Opened:
    state, layout = base.state, objects.layout
    numbers = layout.numbers(state.start.segment)
    head, before = base.marks()
    in_base = Tracker(state.ordinal, head, before, may_rewind=head is not None)
    end, tracker = find_end(store, numbers, in_base, alone=True, walks=walks)
    last_number = max(layout.last_number, state.start.segment - 1)
    end = end._replace(last_number=last_number)
    if not end.segment:
        end = end._replace(epoch=base.epoch)
    if end.torn_bytes or end.lacks:  # an object is stored as a whole or not at all
        damaged(store.log_path(end.segment), end.end_bytes, tracker.version, "it is cut off")
    if state.start.offset_bytes:
        if not numbers or end.segment < state.start.segment:
            error = IncompleteCopy(
                f"Incomplete copy of a backup: the log in {objects.bucket.where} ends before the "
                f"place where it continues after {base.name}. Nothing was changed. Copy all of "
                "its objects again."
            )
            error.good_version = tracker.version
            raise error
        if numbers[0] != state.start.segment:
            what = f"the log continues with object {state.start.segment}, which is missing"
            damaged(objects.where(base.name), 0, state.version, what)
    return Opened(objects, store, base, layout.objects[base.name], numbers, end, tracker)


def publish_base(
    place: ObjectsAt, store: ObjectsStore, base: Base, prepared: str, newest: int
) -> Base:
    """Publishes a prepared base, as the next generation; returns it.

    It must be of a history up to the object `newest` of the log, the writer's own last one.

    No right to write is needed: all that it replaces is before the head. It is read back from the
    store before anything that it replaces may be removed.

    Raises:
        StorageError: the backup is unchanged.
    """
    objects = store.objects
    assert isinstance(objects, LogObjects)
    generation = base.generation + 1
    with objects.open(prepared, op="open new base") as source:
        header = store.read_header(source, prepared, v2.FileKind.BASE, generation)
    assert header is not None
    state = v2.unpack_base_state(header.state)
    if state.start.segment > newest + 1:
        raise StorageError(
            f"Another process writes to the backup in {place.path}: the compaction contains "
            "changes that this process does not have. The backup is unchanged."
        )
    name = base_name(generation, state.start.segment)
    newer = [found for found in objects.refresh().bases if found[0] > base.generation]
    try:
        if newer:
            raise AlreadyExists(base_name(*newer[-1]))
        objects.publish(prepared, name, op="publish compacted backup")
    except AlreadyExists:
        raise StorageError(
            f"Another process compacted the backup in {place.path}. This compaction was given "
            "up; the backup is unchanged. Restart the node, so that it continues from the other "
            "compaction."
        ) from None
    return Base(generation, name, state, header.open.epoch)


def machine_lock(at: ObjectsAt) -> MachineLock:
    """The right to write among the processes of this machine. Raises `WriterConflict`."""
    try:
        return MachineLock(at.lock)
    except Taken as taken:
        raise WriterConflict(
            f"{at.path} is being written by process {taken.pid} on this machine; this process "
            "wrote nothing. If a running node uses this backup, use its commands (lightning-cli "
            "backup-compact, backup-status). Two nodes must never share a backup.",
            holder=taken.pid,
        ) from None
