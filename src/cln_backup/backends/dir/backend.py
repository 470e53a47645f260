"""`dir:///path`: a directory of format 2, a log of sealed records that is only ever appended to."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cln_backup.backends import incomplete_copies_are_accepted
from cln_backup.backends.contract import Backend, Key, Staged, check_follows, nothing_to_drop
from cln_backup.backends.dir.base import (
    identity,
    is_encrypted,
    list_keys,
    lock_path,
    open_base,
    take_inventory,
)
from cln_backup.backends.dir.create import build_inside, create_backup, creating_backup
from cln_backup.backends.dir.dropped import check_dropped, dropped, set_aside
from cln_backup.backends.dir.history import Base, History
from cln_backup.backends.dir.keys import NodeVeil, add_holder, holders, remove_holder
from cln_backup.backends.dir.snapshots import (
    NewSnapshot,
    StoredSnapshot,
    last_seal,
    read_back,
)
from cln_backup.backends.dir.store import (
    base_name,
    list_files,
    segment_name,
    snapshot_name,
    stored_now_ms,
)
from cln_backup.backends.dir.upkeep import expired, removal_takes_long, remove_expired
from cln_backup.backends.dir.url import Place, place_of
from cln_backup.backends.dir.whole import note_of, take_stock
from cln_backup.backends.inventory import Inventory, noted_node
from cln_backup.backends.opening import Opening
from cln_backup.backends.secrets import given_secret
from cln_backup.backends.writer import LastWrite, WriterLock
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import pack_transaction
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.errors import (
    Locked,
    StorageError,
)
from cln_backup.model.position import (
    UNKNOWN,
    Position,
    after_snapshot,
    after_statements,
    digest_of_snapshot,
)
from cln_backup.model.statements import foreign_keys_after
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.dir.writer import SegmentWriter
    from cln_backup.backends.secrets import Secret
    from cln_backup.storage.source import Source

_STAGED = "compaction"
_ALL_COPIED = 1 << 62  # the log goes on as it is, so there is never more to copy
_DROP_BYTES = v2.FRAME_BYTES + v2.BODY_BYTES


class DirBackend(Backend):
    """A backup in a directory.

    An append writes one record into zeros that were put on stable storage before, and syncs it.
    """

    can_encrypt = True

    def __init__(self, url: str, place: Place) -> None:
        self.url = url
        self.notices = []
        self._place = place
        self._lock: WriterLock | None = None
        self._writer: SegmentWriter | None = None
        self._held_base: Source | None = None
        self._noted_segment = 0
        self._last_write = LastWrite()
        self._secret = given_secret()
        self._accepts_incomplete = incomplete_copies_are_accepted()

    @classmethod
    def path_at(cls, url: str) -> str:
        """See `Backend.path_at`."""
        return place_of(url).path

    @classmethod
    def create(cls, url: str, base: Change | None) -> None:
        """See `Backend.create`."""
        create_backup(place_of(url), base)

    @classmethod
    @contextlib.contextmanager
    def creating(cls, url: str, base: Change | None) -> Iterator[None]:
        """See `Backend.creating`."""
        with creating_backup(place_of(url), base):
            yield

    @classmethod
    @contextlib.contextmanager
    def building(cls, url: str) -> Iterator[str]:
        """See `Backend.building`."""
        place = place_of(url)
        with build_inside(place.path) as path:
            yield f"dir://{path}" + url.removeprefix(url.partition("?")[0])

    @classmethod
    def open(cls, url: str, *, writable: bool) -> DirBackend:
        """See `Backend.open`. Nothing is written before the first append."""
        place = place_of(url)
        backend = cls(url, place)
        try:
            if writable:
                backend._lock = WriterLock(
                    place.path, lock_path(place), discreet=is_encrypted(place)
                )
            backend._take_stock()
        except BaseException:
            backend.close()
            raise
        return backend

    @classmethod
    def inventory(cls, url: str) -> Inventory:
        """See `Backend.inventory`."""
        return take_inventory(place_of(url))

    @property
    def node_id(self) -> str | None:
        """See `Backend.node_id`."""
        key = self._store.master_key
        return noted_node(lock_path(self._place), None if key is None else NodeVeil(key))

    @classmethod
    def list_keys(cls, url: str) -> list[Key]:
        """See `Backend.list_keys`."""
        return list_keys(place_of(url))

    def add_key(self, secret: Secret, label: str) -> None:
        """See `Backend.add_key`."""
        store = self._store
        if store.master_key is None:
            raise Locked("This backup is not encrypted, so it has no keys. A copy of it can be.")
        add_holder(store.path, store.backup_id, store.master_key, secret, label)

    @classmethod
    def remove_key(cls, url: str, label: str) -> None:
        """See `Backend.remove_key`."""
        cls.list_keys(url)  # none at all is an error of its own
        remove_holder(*identity(place_of(url)), label)

    def _take_stock(self) -> None:
        writable = self._lock is not None
        self._store, self._base, self._held_base = open_base(self._place)
        if writable:
            self._let_go_of_base()  # nothing expires but by a writer
            self._discard_prepared()
        stock = take_stock(self._store, self._base, alone=writable)
        self._segments, self._end, self._tracker, notice = stock
        if notice:
            self.notices.append(notice)
        elif self._end.torn_bytes:
            self.notices.append(
                f"The backup ended with {self._end.torn_bytes} bytes of a change that was cut "
                "while it was written, as a crash or a loss of power leaves it, before the node is "
                "answered. A copy that was made while the node wrote can look the same, and lack "
                f"newer changes. The backup is at version {self._tracker.version}."
            )
        if writable:
            from cln_backup.backends.dir.writer import SegmentWriter

            seal = last_seal(self._store, self._base.name)
            keep = (self._place.keep, self._place.keep_days)
            self._writer = SegmentWriter(self._store, self._end, seal, keep)
        self._set_position()

    def _set_position(self) -> None:
        head, before = self._tracker.head, self._tracker.before
        if head is not None and self._base.holds(head):  # or it was folded, as in a compaction
            head, before = self._base.marks()
        elif before is not None and self._base.holds(before):
            before = self._base.marks()[0]
        self._head = head
        self.version = 0 if head is None else head.version
        self.prev_version = before.version if before and self._tracker.may_rewind else 0
        self.version_count = (
            self._base.state.changes + self._tracker.ordinal - self._base.state.ordinal
        )

    def _require_writer(self) -> SegmentWriter:
        assert self._writer is not None, "opened for reading"
        self._last_write.require_none_failed(self._place.path)
        return self._writer

    @property
    def head(self) -> Head | None:
        """See `Backend.head`."""
        head = self._head
        return None if head is None else Head(head.version, head.kind, head.foreign_keys)

    @property
    def position(self) -> Position:
        """See `Backend.position`."""
        known = None if self._tracker.digest == UNKNOWN else self._tracker.digest
        return Position(self.version, self._tracker.ordinal, known)

    @property
    def size_bytes(self) -> int:
        """What all files take that hold something of the backup, expired ones left out."""
        end = self._end if self._writer is None else self._writer.end
        gone = expired(self._store.objects, self._place.keep, self._place.keep_days)
        return self._store.size_bytes(end.segment, end.end_bytes, gone)

    @property
    def last_change_at(self) -> float | None:
        """See `Backend.last_change_at`: as the head's record has it, or the state of the base."""
        if self._head is None:
            return None
        if not self.dated_by_file:
            return self._head.stored_ms / 1000
        end = self._end if self._writer is None else self._writer.end
        name = segment_name(end.segment) if end.segment else self._base.name
        status = self._store.objects.status(name)
        return None if status is None else status.stored_at

    @property
    def opening(self) -> Opening:
        """See `Backend.opening`."""
        return Opening(self.url, self._secret, self._accepts_incomplete)

    @property
    def dated_by_file(self) -> bool:
        """See `Backend.dated_by_file`: the head is of before records had times."""
        return self._head is not None and self._head.stored_ms == 0

    @property
    def scratch_dir(self) -> str | None:
        """See `Backend.scratch_dir`."""
        return self._place.path if self._store.master_key is None else None

    @property
    def storage_dir(self) -> str:
        """See `Backend.storage_dir`."""
        return self._place.path

    def claim(self, node_id: str) -> None:
        """See `Backend.claim`. It is noted in the lock file; of an encrypted backup, hidden."""
        self._require_writer()
        assert self._lock is not None
        key = self._store.master_key
        self._lock.claim(node_id, self._place.path, None if key is None else NodeVeil(key))

    def _sign(self) -> None:
        assert self._lock is not None
        self._lock.sign()

    def add_change(self, change: Change) -> None:
        """See `Backend.add_change`. A snapshot is published in a file of its own before."""
        writer = self._require_writer()
        check_follows(change, self.version, empty=self._head is None)
        if writer.look_is_due():
            with self._last_write:
                writer.look()
        self._sign()
        if change.transaction is None:
            v2.pack_body(v2.Type.SNAPSHOT, change.version)
            record_type, content = v2.Type.SNAPSHOT, b""
            room_bytes = v2.HEADER_BYTES
        else:
            content = pack_transaction(change.transaction)
            record_type = v2.Type.TRANSACTION
            if change.kind is Kind.RIDER:
                enforced = self._head is None or self._head.foreign_keys
                enforced = foreign_keys_after(change.transaction, enforced)
                record_type = v2.Type.RIDER if enforced else v2.Type.RIDER_WITHOUT_KEYS
            # More than the worst that compression makes of it.
            room_bytes = len(content) + len(content) // 128 + v2.HEADER_BYTES
        with self._last_write:
            digest = self._tracker.digest
            if change.transaction is None:
                content, content_digest = self._write_snapshot(writer, change, room_bytes)
                digest = after_snapshot(digest, change.version, content_digest)
            else:
                self._prepare(writer, room_bytes)
                digest = after_statements(digest, change.version, content)
            stored_ms = stored_now_ms(change)
            start = writer.append(record_type, change.version, content, stored_ms)
            self._tracker.apply(record_type, change.version, start, stored_ms, digest)
        self.prev_version, self.version = self.version, change.version
        self.version_count += 1
        self._head = self._tracker.head

    def _prepare(self, writer: SegmentWriter, size_bytes: int) -> int:
        """As `SegmentWriter.prepare`; a segment that is begun is noted, so that it is missed."""
        segment = writer.prepare(self._tracker, size_bytes)
        if segment != self._noted_segment:
            assert self._lock is not None
            self._lock.note(note_of(self._store, segment))
            self._noted_segment = segment
        return segment

    def _write_snapshot(
        self, writer: SegmentWriter, change: Change, room_bytes: int
    ) -> tuple[bytes, bytes]:
        """Writes a snapshot's file, then claims room for its record.

        In this order, what is stopped while it is written leaves nothing. Returns the content of
        the record, and the digest of the snapshot.
        """
        assert change.snapshot is not None
        # Where the record will be, which no other one can.
        segment, number = writer.next_place(room_bytes)
        objects = self._store.objects
        with interruption.let_through():
            digest = digest_of_snapshot(change.snapshot)
            state = v2.SnapshotState(change.version, change.snapshot.size_bytes, digest)
            header = self._store.new_header(
                v2.FileKind.SNAPSHOT, number, writer.epoch, v2.pack_snapshot_state(state)
            )
            content = NewSnapshot(header, change.version, change.snapshot, digest)
            built = objects.prepare("snapshot", content.chunks())
        try:
            writer.look()  # that may have taken long
            self._prepare(writer, room_bytes)
            objects.publish(built, snapshot_name(segment, number), op="publish snapshot")
        except BaseException:
            objects.discard(built)
            raise
        size = change.snapshot.size_bytes
        return v2.pack_reference(v2.Reference(number, size, content.seal)), digest

    def rewind(self) -> None:
        """See `Backend.rewind`. The dropped change is set aside first; then a record drops it."""
        writer = self._require_writer()
        head = self._head
        if head is None or not self._tracker.may_rewind:
            raise nothing_to_drop()
        with self._last_write:
            writer.look(at_all_names=True)
        self._sign()
        with self._last_write:
            kept = set_aside(self._store, self._change_at(head.at), writer.end.epoch)
            self._prepare(writer, _DROP_BYTES)
            start = writer.append(v2.Type.DROP, head.version, b"")
            self._tracker.apply(v2.Type.DROP, head.version, start, 0)
        self._set_position()
        self.notices.append(
            f"The dropped change is kept as {kept}, out of the way of a restore. "
            "`backup-cli log --dropped` lists it."
        )

    def _change_at(self, start: v2.Position) -> Change:
        if start == v2.NOWHERE:
            return self._base.changes(self._store)[-1]
        return self._history().change_at(start)

    def stream_changes(self, start: int = 0, *, head: bool = True) -> Iterator[Change]:
        """See `Backend.stream_changes`."""
        stop = None if head or self._head is None else self._head.at
        changes = self._history().changes(stop)
        yield from changes if start == 0 else (c for c in changes if c.version >= start)

    def dropped_changes(self) -> Iterator[Change]:
        """See `Backend.dropped_changes`. Each has its own file, which no compaction removes."""
        return dropped(self._store)

    def _history(self) -> History:
        """What stands in the log now, for a writer; what stood there when opened, for a reader."""
        if self._writer is None:
            return History(self._store, self._base, self._segments, self._end)
        first = self._base.state.start.segment
        segments = [n for n in list_files(self._store.objects).segments if n >= first]
        return History(self._store, self._base, segments, self._writer.end)

    def read_through(self, progress: Callable[[Change], None] | None = None) -> None:  # noqa: ARG002
        """See `Backend.read_through`. Every seal or digest of the current generation is checked."""
        holders(self._place.path, self._store.backup_id)
        self._history().check()
        check_dropped(self._store)

    def stage(self, base: Change | None, *, foreign_keys: bool) -> Staged:
        """See `Backend.stage`. The next base; the log itself stays where it is."""
        assert self._head is not None, "nothing to fold in an empty backup"
        start, ordinal = self._head.at, self._tracker.ordinal - 1
        digest = self._head.prev_digest
        if start == v2.NOWHERE:  # the head is the rider of the base that there is
            start, ordinal = self._base.state.start, self._base.state.ordinal
            digest = self._base.state.digest
            foreign_keys = self._head.foreign_keys
        version, snapshot = (0, None) if base is None else (base.version, base.snapshot)
        foreign_keys = foreign_keys or base is None
        size = 0 if snapshot is None else snapshot.size_bytes
        count = (snapshot is not None) + (not foreign_keys)
        stored_ms = (base and base.stored_ms) or 0
        state = v2.BaseState(
            *(version, snapshot is not None, foreign_keys, count, size),
            *(start, ordinal, stored_ms, digest),
        )
        generation = self._base.generation + 1
        kind, objects = v2.FileKind.BASE, self._store.objects
        header = self._store.new_header(
            kind, generation, self._end.epoch, v2.pack_base_state(state)
        )
        content = NewSnapshot(header, version, snapshot)
        built = objects.prepare(_STAGED, content.chunks())
        try:
            read_back(StoredSnapshot(self._store, built, kind, generation, version, size, None))
        except BaseException:
            objects.discard(built)
            raise
        # Whoever stages has read what it needs; its lock would keep the old generation.
        self._let_go_of_base()
        count_now = count + self._tracker.ordinal - ordinal
        made_from, folded = self._base.generation, self.version_count - count_now
        saved = self._store.folded_bytes(self._base.name, start.segment, built)
        path = objects.where(built)
        return Staged(path, made_from, start.offset_bytes, _ALL_COPIED, 0, folded, saved)

    def stage_more(self, staged: Staged) -> Staged:
        """See `Backend.stage_more`. There is nothing to copy: the log goes on as it is."""
        return staged

    def replace(self, staged: Staged) -> None:
        """See `Backend.replace`. One name is published.

        What has expired is removed, by the process beside where that may take long.
        """
        writer = self._require_writer()
        if staged.source != self._base.generation:
            raise StorageError(f"{staged.name} is not what was staged; the backup is as before.")
        with self._last_write:
            writer.look(at_all_names=True)
        generation = self._base.generation + 1
        self._require_newest_base()
        objects, built = self._store.objects, os.path.basename(staged.name)
        with objects.open(built, op="open new base") as source:
            header = self._store.read_header(
                source, built, v2.FileKind.BASE, generation, self.version
            )
        assert header is not None
        state = v2.unpack_base_state(header.state)
        name = base_name(generation, state.start.segment)
        with self._last_write:
            objects.publish(built, name, op="publish compacted backup")
        self._base = Base(generation, name, state)
        self._set_position()
        keep = objects, self._place.keep, self._place.keep_days
        # The next process beside removes what is left, as one may do at this moment.
        with contextlib.suppress(StorageError, OSError):
            if removal_takes_long(*keep):
                writer.start_upkeep()
            else:
                remove_expired(*keep)

    def _require_newest_base(self) -> None:
        """Another one's compaction leaves the log as it is: only the next one must not follow."""
        found = list_files(self._store.objects).bases[-1]
        if found[0] > self._base.generation:
            newer = self._store.objects.where(base_name(*found))
            raise StorageError(
                f"Another process compacted this backup: {newer} is not "
                "ours. This compaction is given up; the backup is as before. Start the node anew, "
                "so that it goes on from the other one."
            )

    def discard(self) -> None:
        """See `Backend.discard`."""
        self._discard_prepared(_STAGED)

    def _discard_prepared(self, purpose: str = "") -> None:
        """Removes what was built and got no name; all of it is the writer's, when it opens."""
        objects = self._store.objects
        for prepared in objects.prepared(purpose):
            objects.discard(prepared)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._writer is not None:
            self._writer.close()
        self._let_go_of_base()
        if self._lock is not None:
            self._lock.release()

    def _let_go_of_base(self) -> None:
        if self._held_base is not None:
            self._held_base.close()
            self._held_base = None
