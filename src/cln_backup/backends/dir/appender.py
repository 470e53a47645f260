"""Writes a `dir:` backup: appends changes, drops the head, swaps the base.

An append writes one record into zeros that are already on stable storage, and syncs it.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final

from cln_backup.backends.contract import Writer
from cln_backup.backends.dir.base import (
    PREPARED,
    Prepared,
    is_encrypted,
    lock_path,
    open_base,
)
from cln_backup.backends.dir.history import Base, History
from cln_backup.backends.dir.keys import NodeVeil
from cln_backup.backends.dir.snapshots import NewSnapshot, last_seal
from cln_backup.backends.dir.stock import (
    generation_of,
    last_change_of,
    marks_of,
    size_of_files,
    standing_of,
    torn_notice,
)
from cln_backup.backends.dir.store import (
    base_name,
    list_files,
    snapshot_name,
    stored_now_ms,
)
from cln_backup.backends.dir.tracker import rider_type
from cln_backup.backends.dir.upkeep import removal_takes_long, remove_expired
from cln_backup.backends.dir.whole import note_of, take_stock
from cln_backup.backends.dir.writer import SegmentWriter
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.follows import check_follows, nothing_to_drop
from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.backends.writer import LastWrite, WriterLock
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import pack_transaction
from cln_backup.model.change import Kind
from cln_backup.model.errors import StorageError
from cln_backup.model.position import digest_of_snapshot
from cln_backup.storage import interruption
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.place import DirPlace
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Generation, Statistics, Ticket
    from cln_backup.model.change import Change

_DROP_BYTES = v2.FRAME_BYTES + v2.BODY_BYTES
_SNAPSHOT_BYTES = v2.HEADER_BYTES  # more than its record has

# In the hot path: asking an enumeration for its member costs more than the rest of its line.
_IS_TRANSACTION: Final = Kind.TRANSACTION
_TRANSACTION: Final = v2.Type.TRANSACTION
_SNAPSHOT: Final = v2.Type.SNAPSHOT


class DirWriter(Writer):
    """The writer of a directory."""

    def __init__(self, place: DirPlace, secret: Secret | None, on_event: OnEvent) -> None:
        """Opens the backup; see `Place.open_writer`. Nothing is written before the first append."""
        self.place: DirPlace = place
        self._on_event = on_event
        self._writer: SegmentWriter | None = None
        self._noted_segment = 0
        self._last_write = LastWrite()
        self._added: tuple[v2.Type, int, int, bytes] | None = None  # and not settled
        at = place.at
        self._lock = WriterLock(at.path, lock_path(at), discreet=is_encrypted(at))
        try:
            self._take_stock(secret)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, secret: Secret | None) -> None:
        at = self.place.at
        self._store, self._base, held = open_base(at, secret)
        held.close()  # only a writer removes expired files
        self._discard_prepared()
        _, end, self._tracker, _ = take_stock(self._store, self._base, alone=True)
        if end.torn_bytes:
            self._tell(Noticed.FOUND, torn_notice(end, self._tracker.version))
        self._writer = self._writer_from(end)
        self._find_head()

    def _writer_from(self, end: LogEnd) -> SegmentWriter:
        at, base = self.place.at, self._base
        start = base.state.start.segment, last_seal(self._store, base.name)
        return SegmentWriter(self._store, end, start, (at.keep, at.keep_days))

    def _find_head(self) -> None:
        """The head, from the tracker's records of the log, and from the base."""
        self._head = marks_of(self._base, self._tracker).head

    def _tell(self, noticed: Noticed, text: str) -> None:
        self._on_event(Event(noticed, text))

    def _require_writer(self) -> SegmentWriter:
        assert self._writer is not None
        if self._last_write.failed:
            self._last_write.require_none_failed(self.place.at.path)
        return self._writer

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        assert self._writer is not None
        marks = marks_of(self._base, self._tracker)
        return standing_of(self._base, self._tracker, marks, self._writer.end.epoch)

    @property
    def version(self) -> int:
        """See `Backend.version`."""
        return 0 if self._head is None else self._head.version

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        assert self._writer is not None
        return size_of_files(self._store, self.place.at, self._writer.end)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        assert self._writer is not None
        count = self.standing.version_count
        return generation_of(self._store, self._base, self._writer.end, count)

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        assert self._writer is not None
        return last_change_of(self._store, self._base, self._head, self._writer.end)

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.claim`. The lock file records it; encrypted, if the backup is."""
        self._require_writer()
        key = self._store.master_key
        self._lock.claim(node_id, self.place.at.path, None if key is None else NodeVeil(key))

    def claim_segment(self) -> None:
        """Claims the next segment, which refuses an older writer; its name is durable then.

        Raises:
            WriterConflict: another writer stored more before the claim, which this one has not
                read: open the backup again. That writer stores nothing more.
            StorageError.
        """
        writer = self._require_writer()
        with self._last_write:
            self._prepare(writer, _DROP_BYTES)

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.store_change`. A snapshot is published in a file of its own first."""
        writer = self._require_writer()
        assert self._added is None, "not settled"
        head = self._head
        version = 0 if head is None else head.version
        kind = check_follows(change, version, empty=head is None)
        if writer.schedule.is_due():
            with self._last_write:
                writer.look()
        self._lock.sign()
        transaction = change.transaction
        if transaction is None:
            record_type, content = _SNAPSHOT, b""
            v2.pack_body(record_type, change.version)  # raises if it does not fit
        else:
            content = pack_transaction(transaction)
            record_type = _TRANSACTION if kind is _IS_TRANSACTION else rider_type(transaction, head)
        with self._last_write:
            if transaction is None:
                content, hashed = self._write_snapshot(writer, change)
            else:
                # More than the worst case of compression.
                room_bytes = len(content) + len(content) // 128 + v2.HEADER_BYTES
                if not writer.has_room(room_bytes):
                    self._prepare(writer, room_bytes)
                hashed = content
            stored_ms = stored_now_ms(change)
            writer.append(record_type, change.version, content, stored_ms)
        self._added = record_type, change.version, stored_ms, hashed

    def settle(self) -> None:
        """See `Writer.settle`. Updates the digests, the head and the unused space."""
        if self._added is None:
            return
        writer = self._require_writer()
        (record_type, version, stored_ms, hashed), self._added = self._added, None
        with self._last_write:
            start = writer.settle()
            self._tracker.append(record_type, version, start, stored_ms, hashed)
            self._head = self._tracker.head
            writer.clear_up()

    def _prepare(self, writer: SegmentWriter, size_bytes: int) -> None:
        """As `SegmentWriter.prepare`; records a new segment, so that its loss is detected."""
        segment = writer.prepare(self._tracker, size_bytes)
        if segment != self._noted_segment:
            self._lock.note(note_of(self._store, segment))
            self._noted_segment = segment

    def _write_snapshot(self, writer: SegmentWriter, change: Change) -> tuple[bytes, bytes]:
        """Writes a snapshot's file, then reserves space for its record.

        In this order, an interrupted write leaves nothing. Returns the content of the record, and
        the digest of the snapshot.
        """
        assert change.snapshot is not None
        # The place of the record, which is unique.
        segment, number = writer.next_place(_SNAPSHOT_BYTES)
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
            writer.look()  # writing the snapshot may have taken long
            self._prepare(writer, _SNAPSHOT_BYTES)
            objects.publish(built, snapshot_name(segment, number), op="publish snapshot")
        except BaseException:
            objects.discard(built)
            raise
        size = change.snapshot.size_bytes
        return v2.pack_reference(v2.Reference(number, size, content.seal)), digest

    def rewind(self, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.rewind`. The dropped change is set aside first; then a record drops it."""
        writer = self._require_writer()
        head = self._head
        if head is None or not self._tracker.may_rewind:
            raise nothing_to_drop()
        with self._last_write:
            writer.look(at_all_names=True)
        self._lock.sign()
        with self._last_write:
            from cln_backup.backends.dir.dropped import set_aside

            kept = set_aside(self._store, self._change_at(head.at), writer.end.epoch)
            self._prepare(writer, _DROP_BYTES)
            writer.append(v2.Type.DROP, head.version, b"")
            self._tracker.apply(v2.Type.DROP, head.version, writer.settle(), 0)
            writer.clear_up()
        self._find_head()
        self._tell(
            Noticed.KEPT,
            f"The dropped change is kept as {kept}; a restore does not use it. "
            "`backup-cli log --dropped` lists it.",
        )

    def _change_at(self, start: v2.LogOffset) -> Change:
        if start == v2.NOWHERE:
            return self._base.changes(self._store)[-1]
        assert self._writer is not None
        first = self._base.state.start.segment
        segments = [n for n in list_files(self._store.objects).segments if n >= first]
        return History(self._store, self._base, segments, self._writer.end).change_at(start)

    def take_over(
        self,
        ticket: Ticket | None,
        timeout_s: float | None = None,  # noqa: ARG002
    ) -> Statistics | MoreNeeded:
        """See `Writer.take_over`. One name is published.

        Expired files are removed, by a child process if that may take long.
        """
        if ticket is None:
            return MoreNeeded.PREPARE
        if ticket.done is not None:
            return ticket.done
        writer = self._require_writer()
        prepared, objects = Prepared(*json.loads(ticket.content)), self._store.objects
        if (
            prepared.made_from != self._base.generation
            or last_seal(self._store, prepared.name).hex() != prepared.seal
        ):
            raise StorageError(
                f"{objects.where(prepared.name)} is not the prepared base; the backup is unchanged."
            )
        with self._last_write:
            writer.look(at_all_names=True)
        generation = self._base.generation + 1
        self._require_newest_base()
        built = prepared.name
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
        self._find_head()
        at = self.place.at
        assert isinstance(objects, LocalObjects)
        keep = objects, at.keep, at.keep_days
        # The next child process removes what is left; one may be doing so at this moment.
        with contextlib.suppress(StorageError, OSError):
            if removal_takes_long(*keep):
                writer.start_upkeep()
            else:
                remove_expired(*keep)
        return {"before": ticket.before, "after": size_of(self)}

    @property
    def can_start_over(self) -> bool:
        """See `Writer.can_start_over`."""
        return True

    def start_over(self, change: Change, timeout_s: float | None = None) -> str:  # noqa: ARG002
        """See `Writer.start_over`. The earlier history is in a directory inside the backup."""
        from cln_backup.backends.dir.restart import start_over

        writer = self._require_writer()
        with self._last_write:
            writer.look(at_all_names=True)
        self._lock.sign()
        self._require_newest_base()
        with self._last_write:
            self._base, kept = start_over(self._store, self._base, writer, change)
        with self._last_write, interruption.held():
            writer.close()
            _, end, self._tracker, _ = take_stock(self._store, self._base, alone=True)
            self._writer = self._writer_from(end)
            # Older releases expect that a log without segments is the first one.
            self._prepare(self._writer, _DROP_BYTES)
            self._writer.sync()
        self._find_head()
        return kept

    def _require_newest_base(self) -> None:
        """Another process's compaction does not change the log, but ours must not follow it."""
        found = list_files(self._store.objects).bases[-1]
        if found[0] > self._base.generation:
            newer = self._store.objects.where(base_name(*found))
            raise StorageError(
                f"Another process compacted this backup: {newer} was not made by this process. "
                "This compaction was given up; the backup is unchanged. Restart the node, so that "
                "it continues from the other compaction."
            )

    def discard(self) -> None:
        """See `Writer.discard`."""
        self._discard_prepared(PREPARED)

    def _discard_prepared(self, purpose: str = "") -> None:
        """Removes unfinished objects; when a writer opens the backup, all of them are its own."""
        objects = self._store.objects
        for prepared in objects.prepared(purpose):
            objects.discard(prepared)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._writer is not None:
            self._writer.close()
        self._lock.release()
