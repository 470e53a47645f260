"""Writes a backup in a database: each change is one statement, in one round trip."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.base import PREPARED, Prepared
from cln_backup.backends.dir.history import Base
from cln_backup.backends.dir.keys import NodeVeil
from cln_backup.backends.dir.record_writer import RecordWriter
from cln_backup.backends.dir.snapshots import last_seal
from cln_backup.backends.dir.stock import marks_of, standing_of
from cln_backup.backends.dir.store import base_name
from cln_backup.backends.postgres.head import HeadWriter
from cln_backup.backends.postgres.link import Link
from cln_backup.backends.postgres.opening import newest_header, open_backup, read_head
from cln_backup.backends.postgres.reader import owner_of
from cln_backup.backends.postgres.stock import generation_of, size_bytes
from cln_backup.backends.postgres.tables import TableObjects
from cln_backup.backends.postgres.upkeep import Start, remove_expired
from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Encoder
from cln_backup.model.errors import Discontinuity, StorageError
from cln_backup.process.channel import Message
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.contract import Standing
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.postgres.opening import HeadRow
    from cln_backup.backends.postgres.place import PostgresPlace
    from cln_backup.backends.postgres.tables import TableStore
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Generation, Statistics, Ticket
    from cln_backup.model.change import Change

SEGMENT_BYTES: Final = 1 << 20
"""A reader that opens the backup reads the newest segment; after so much, another one begins."""

_UNFINISHED: Final = (PREPARED, "snapshot", "drop", "restart")


class PostgresWriter(RecordWriter):
    """The writer of a backup in a database."""

    _store: TableStore

    def __init__(
        self,
        place: PostgresPlace,
        secret: Secret | None,
        on_event: OnEvent,
        limit_s: float,
        *,
        forced: bool = False,
    ) -> None:
        """Opens the backup; see `Place.open_writer`. Older writers are fenced when it returns.

        With `forced`, even if one of them is alive and holds the right to write.
        """
        super().__init__(on_event)
        self.place: PostgresPlace = place
        self._secret = secret
        self._finished = False
        self._unsigned = ""
        self._encoder: Encoder | None = None
        self._digest = hashlib.sha256()
        self._upkeep: Child[Message] | None = None
        self._upkeep_due = False
        self._link = Link(place.at, on_event)
        try:
            with self._link.within(limit_s):
                row = read_head(self._link)
                discreet = newest_header(self._link, row)[2].cipher != v2.PLAIN
                self._head_row = HeadWriter(self._link, on_event, discreet=discreet)
                self._link.use(self._head_row.begins)
                self._take_stock(self._head_row.claim(forced=forced))
                self._discard_prepared(_UNFINISHED)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, row: HeadRow) -> None:
        opened = open_backup(self._link, row, self._secret)
        self._store, self._base, _, self._end, self._tracker = opened
        objects = self._store.objects
        assert isinstance(objects, TableObjects)
        self._objects = objects
        self._epoch, self._owner = row.epoch, row.owner
        if not self._end.segment:
            self._end = self._end._replace(seal=last_seal(self._store, self._base.name))
        self._encoder = None
        self._head = marks_of(self._base, self._tracker).head

    def _require_usable(self) -> None:
        if self._finished:
            raise StorageError(
                f"A change did not reach {self.place.at.path} before, or its answer was lost, so "
                "it is unknown whether it is stored. Nothing more is written until the backup is "
                "opened again."
            )

    @contextlib.contextmanager
    def _last_request(self, timeout_s: float | None) -> Iterator[None]:
        """Any error inside makes this the writer's last request."""
        self._finished = True
        with self._link.within(timeout_s):
            yield
        self._finished = False

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        marks = marks_of(self._base, self._tracker)
        return standing_of(self._base, self._tracker, marks, self._epoch)

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        return size_bytes(self._store, self.place.at)

    def generation(self) -> Generation:
        """See `Backend.generation`. Does not wait for a database that does not answer."""
        with self._link.within(_GENERATION_S):
            return self._generation()

    def _generation(self) -> Generation:
        return generation_of(self._store, self._base, self._end, self.standing.version_count)

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.claim`. The head's row records it, with the first change."""
        self._require_usable()
        key = self._store.master_key
        if self._owner:
            owner = owner_of(self._owner, key)
            if owner != node_id:
                raise Discontinuity(
                    f"{self.place.at.path} is the backup of another node: "
                    f"{owner or 'recorded with another key'}, not {node_id}. Nothing was written. "
                    "Correct backup.lock: it must name this node's own backup."
                )
        else:
            self._unsigned = node_id if key is None else NodeVeil(key).hide(node_id)

    def _next_place(self) -> tuple[int, int]:
        """Segment and offset of the next record; an offset of 0 if it begins the segment."""
        end = self._end
        if self._encoder is None or end.end_bytes > SEGMENT_BYTES:
            return end.last_number + 1, 0
        return end.segment, end.end_bytes

    def _numbers_from(self, segment: int) -> Sequence[int]:
        return range(segment, self._end.segment + 1)

    def _put(
        self, record_type: v2.Type, version: int, content: bytes, stored_ms: int
    ) -> v2.LogOffset:
        segment, at = self._next_place()
        header = b""
        if not at:
            header = self._begin(segment)
        encoder, digest = self._encoder, self._digest
        assert encoder is not None
        start = v2.LogOffset(segment, at + len(header), encoder.seal)
        data = header + encoder.encode(record_type, version, content, stored_ms)
        owner = self._owner or self._unsigned
        self._head_row.append(segment, at, data, encoder.seal, owner)
        self._owner, self._unsigned = owner, ""
        digest.update(data)
        self._end = self._end._replace(
            segment=segment,
            end_bytes=at + len(data),
            seal=encoder.seal,
            epoch=self._epoch,
            last_number=segment,
        )
        return start

    def _begin(self, segment: int) -> bytes:
        """The header of a new segment, which is stored with its first record."""
        end, tracker = self._end, self._tracker
        before = end.digest if self._encoder is None else self._digest.digest()
        self._upkeep_due = self._encoder is not None
        state = v2.LogState(
            *(end.segment, end.end_bytes, end.seal, before),
            *(tracker.ordinal, tracker.may_rewind, tracker.head, tracker.before),
            v2.HEADER_BYTES,  # its rows are never cut, nor zeros
        )
        header, sealer = self._store.new_header(
            v2.FileKind.TIMED_LOG, segment, self._epoch, v2.pack_log_state(state)
        )
        self._encoder = Encoder(sealer, header[-v2.SEAL_BYTES :], timed=True)
        self._digest = hashlib.sha256()
        return header

    def _settled(self) -> None:
        if self._upkeep_due:
            self._start_upkeep()

    def _start_upkeep(self) -> None:
        """Starts the child process that removes what has expired.

        If it cannot be started, the backup still works, and is larger.
        """
        self._upkeep_due = False
        if self._upkeep is not None:
            if self._upkeep.is_running():
                return
            self._upkeep.close()
            self._upkeep = None
        with contextlib.suppress(StorageError):
            self._upkeep = Child(
                "cln_backup.backends.postgres.upkeep",
                Start(self.place.url),
                (Message,),
                work="removes expired rows",
                lowest_priority=True,
            )

    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        """See `Writer.take_over`. One statement."""
        if ticket is None:
            return MoreNeeded.PREPARE
        if ticket.done is not None:
            return ticket.done
        self._require_usable()
        prepared = Prepared(*json.loads(ticket.content))
        where = self._objects.where(prepared.name)
        if prepared.made_from != self._base.generation:
            raise StorageError(f"{where} is not the prepared base; the backup is unchanged.")
        generation = self._base.generation + 1
        with self._link.within(timeout_s):
            with self._objects.open(prepared.name, op="open new base") as source:
                header = self._store.read_header(
                    source, prepared.name, v2.FileKind.BASE, generation, self.version
                )
            if header is None:
                raise StorageError(f"{where} was removed; the backup is unchanged.")
            state = v2.unpack_base_state(header.state)
            name = base_name(generation, state.start.segment)
            number = -self._objects.part(prepared.name)
            if not self._head_row.swap(self._base.generation, number, name):
                raise StorageError(
                    f"Another process compacted {self.place.at.path}, or removed {where}. This "
                    "compaction was given up; the backup is unchanged. Restart the node, so that "
                    "it continues from the other compaction."
                )
            self._base = Base(generation, name, state, header.open.epoch)
            self._head = marks_of(self._base, self._tracker).head
            self._start_upkeep()
            return {"before": ticket.before, "after": size_of(self)}

    def remove_expired(self) -> None:
        """Removes all that has expired, unless it is being read. Raises `StorageError`."""
        remove_expired(self._objects, *self.place.keeps)

    @property
    def can_start_over(self) -> bool:
        """See `Writer.can_start_over`."""
        return True

    def start_over(self, change: Change, timeout_s: float | None = None) -> str:
        """See `Writer.start_over`. The earlier history has a name of its own in the database."""
        from cln_backup.backends.postgres.create import with_node
        from cln_backup.backends.postgres.restart import start_over

        self._require_usable()
        with self._last_request(timeout_s):
            segment = self._end.last_number + 1
            head, generation = self._head_row, self._base.generation
            kept = start_over(self._link, self._store, generation, segment, head, change)
            self._take_stock(head.adopt())
        return with_node(self.place.url, kept)

    def discard(self) -> None:
        """See `Writer.discard`."""
        self._discard_prepared((PREPARED,))

    def _discard_prepared(self, purposes: Sequence[str]) -> None:
        for purpose in purposes:
            for prepared in self._objects.prepared(purpose):
                self._objects.discard(prepared)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._upkeep is not None:
            self._upkeep.close()
            self._upkeep.wait(_UPKEEP_WAIT_S)
            self._upkeep = None
        head_row = getattr(self, "_head_row", None)
        if head_row is not None:
            head_row.release()
        self._link.close()


_GENERATION_S: Final = 5.0
_UPKEEP_WAIT_S: Final = 3.0
