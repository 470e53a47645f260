"""Writes records of format 2 to a place that has no files: the part that is the same for each."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from cln_backup.backends.contract import Writer
from cln_backup.backends.dir.dropped import set_aside
from cln_backup.backends.dir.history import History
from cln_backup.backends.dir.snapshots import NewSnapshot
from cln_backup.backends.dir.stock import last_change_of, marks_of, standing_of
from cln_backup.backends.dir.store import snapshot_name, stored_now_ms
from cln_backup.backends.dir.tracker import rider_type
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.follows import check_follows, nothing_to_drop
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import pack_transaction
from cln_backup.model.change import Kind
from cln_backup.model.position import digest_of_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.dir.history import Base
    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.dir.tracker import Tracker
    from cln_backup.backends.events import OnEvent
    from cln_backup.formats.v2 import Mark
    from cln_backup.model.change import Change

# In the hot path: asking an enumeration for its member costs more than the rest of its line.
_IS_TRANSACTION: Final = Kind.TRANSACTION
_TRANSACTION: Final = v2.Type.TRANSACTION
_SNAPSHOT: Final = v2.Type.SNAPSHOT


class RecordWriter(Writer):
    """A writer whose records, each stored by one request, are those of a `dir:` backup."""

    _store: Store
    _base: Base
    _end: LogEnd
    _tracker: Tracker
    _head: Mark | None
    _epoch: int

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._added: tuple[v2.Type, int, int, bytes, v2.LogOffset] | None = None  # not settled

    @abstractmethod
    def _require_usable(self) -> None:
        """Raises `StorageError` if a request failed before."""

    @abstractmethod
    def _last_request(self, timeout_s: float | None) -> AbstractContextManager[None]:
        """Bounds the requests in the block; any error inside makes them the writer's last."""

    def _ready(self) -> None:
        """Stores what must precede the first record."""

    @abstractmethod
    def _next_place(self) -> tuple[int, int]:
        """Segment and offset of the next record."""

    @abstractmethod
    def _put(
        self, record_type: v2.Type, version: int, content: bytes, stored_ms: int
    ) -> v2.LogOffset:
        """Stores one record; returns where it starts."""

    @abstractmethod
    def _numbers_from(self, segment: int) -> Sequence[int]:
        """The numbers of the log's segments from one on."""

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        marks = marks_of(self._base, self._tracker)
        return standing_of(self._base, self._tracker, marks, self._end.epoch)

    @property
    def version(self) -> int:
        """See `Backend.version`."""
        return 0 if self._head is None else self._head.version

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self._store, self._base, self._head, self._end)

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:
        """See `Writer.store_change`. A snapshot is published in an object of its own first.

        Raises:
            Unreachable: as `StorageError`; there was no answer before the deadline.
            WriterConflict: another writer has taken this backup over.
        """
        self._require_usable()
        assert self._added is None, "not settled"
        head = self._head
        kind = check_follows(change, 0 if head is None else head.version, empty=head is None)
        transaction = change.transaction
        if transaction is None:
            record_type, content = _SNAPSHOT, b""
            v2.pack_body(record_type, change.version)  # raises if it does not fit
        else:
            content = pack_transaction(transaction)
            record_type = _TRANSACTION if kind is _IS_TRANSACTION else rider_type(transaction, head)
        with self._last_request(timeout_s):
            self._ready()
            hashed = content
            if transaction is None:
                content, hashed = self._write_snapshot(change)
            stored_ms = stored_now_ms(change)
            start = self._put(record_type, change.version, content, stored_ms)
        self._added = record_type, change.version, stored_ms, hashed, start

    def settle(self) -> None:
        """See `Writer.settle`. Updates the digests and the head."""
        if self._added is None:
            return
        (record_type, version, stored_ms, hashed, start), self._added = self._added, None
        self._tracker.append(record_type, version, start, stored_ms, hashed)
        self._head = self._tracker.head
        self._settled()

    def _settled(self) -> None:
        """Is called after the bookkeeping of each change."""

    def _write_snapshot(self, change: Change) -> tuple[bytes, bytes]:
        """Publishes a snapshot; returns the content of its record, and the snapshot's digest."""
        assert change.snapshot is not None
        segment, at = self._next_place()
        number = at or v2.HEADER_BYTES
        digest = digest_of_snapshot(change.snapshot)
        size = change.snapshot.size_bytes
        state = v2.pack_snapshot_state(v2.SnapshotState(change.version, size, digest))
        header = self._store.new_header(v2.FileKind.SNAPSHOT, number, self._epoch, state)
        content = NewSnapshot(header, change.version, change.snapshot, digest)
        name = snapshot_name(segment, number)
        self._store.objects.put_new(name, "snapshot", content.chunks(), op="publish snapshot")
        return v2.pack_reference(v2.Reference(number, size, content.seal)), digest

    def rewind(self, timeout_s: float | None = None) -> None:
        """See `Writer.rewind`. The dropped change is set aside first; then a record drops it."""
        self._require_usable()
        head = self._head
        if head is None or not self._tracker.may_rewind:
            raise nothing_to_drop()
        with self._last_request(timeout_s):
            self._ready()
            kept = set_aside(self._store, self._change_at(head.at), self._epoch)
            start = self._put(v2.Type.DROP, head.version, b"", 0)
            self._tracker.apply(v2.Type.DROP, head.version, start, 0)
        self._head = marks_of(self._base, self._tracker).head
        text = (
            f"The dropped change is kept as {kept}; a restore does not use it. "
            "`backup-cli log --dropped` lists it."
        )
        self._on_event(Event(Noticed.KEPT, text))

    def _change_at(self, start: v2.LogOffset) -> Change:
        if start == v2.NOWHERE:
            return self._base.changes(self._store)[-1]
        numbers = self._numbers_from(start.segment)
        return History(self._store, self._base, numbers, self._end).change_at(start)
