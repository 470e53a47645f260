"""Writes a backup in a bucket: each change is one object, put if absent under the next number.

Before its first change a writer puts a fence under the next number, and continues only if it won.
An older writer that is still active finds the fence, or another writer's change, in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.base import PREPARED, Prepared
from cln_backup.backends.dir.keys import NodeVeil
from cln_backup.backends.dir.record_writer import RecordWriter
from cln_backup.backends.dir.snapshots import last_seal
from cln_backup.backends.dir.stock import marks_of
from cln_backup.backends.dir.store import segment_name
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.objects.layout import MAX_NUMBER, NODE, new_fence, packs_of
from cln_backup.backends.objects.merging import LEAST, UNMERGED
from cln_backup.backends.objects.opening import machine_lock, newest_id, open_backup, publish_base
from cln_backup.backends.objects.reader import UNFENCED, noted_node
from cln_backup.backends.objects.stock import generation_of, size_bytes
from cln_backup.backends.objects.upkeep import Done, Start
from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Encoder
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    BadChange,
    Discontinuity,
    StorageError,
    WriterConflict,
)
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.objects.log_objects import ObjectsStore
    from cln_backup.backends.objects.place import ObjectsPlace
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Generation, Statistics, Ticket

_UPKEEP_WAIT_S: Final = 3.0
_OVERTAKE_S: Final = 60.0


class ObjectsWriter(RecordWriter):
    """The writer of a backup in a bucket."""

    _store: ObjectsStore

    def __init__(
        self, place: ObjectsPlace, secret: Secret | None, on_event: OnEvent, limit_s: float
    ) -> None:
        """Opens the backup; see `Place.open_writer`. Nothing is written before the first append."""
        super().__init__(on_event)
        self.place: ObjectsPlace = place
        self._secret = secret
        self._lock = machine_lock(place.at)
        self._finished = ""
        self._fenced = False
        self._unsigned: str | None = None
        self._upkeep: Child[Done] | None = None
        self._upkeep_failure = ""
        try:
            self._bucket = place.bucket(place.at.deadline_s, on_event)
            with contextlib.ExitStack() as on_error:
                on_error.callback(self._bucket.close)
                with self._bucket.within(limit_s):
                    self._open()
                on_error.pop_all()
        except BaseException:
            self._lock.release()
            raise
        if not place.at.fenced:
            on_event(Event(Noticed.FOUND, UNFENCED))

    def _open(self) -> None:
        opened = open_backup(self.place.at, self._bucket, self._secret)
        self._objects, self._store, self._base = opened.objects, opened.store, opened.base
        self._end, self._tracker = opened.end, opened.tracker
        self._epoch = self._end.epoch + 1
        self._number = self._end.last_number + 1
        self._unmerged = len(self._objects.layout.singles)
        self._node = noted_node(self._objects, self._store.master_key)
        if not self._end.segment:
            self._end = self._end._replace(seal=last_seal(self._store, self._base.name))
        self._head = marks_of(self._base, self._tracker).head

    def _require_usable(self) -> None:
        if self._finished:
            raise StorageError(
                f"A write to {self.place.at.path} failed before: {self._finished} Nothing more "
                "is written until the backup is opened again."
            )

    @contextlib.contextmanager
    def _last_request(self, timeout_s: float | None) -> Iterator[None]:
        """Any error inside makes this the writer's last request."""
        self._finished = "whether it arrived is unknown."
        with self._bucket.within(timeout_s):
            yield
        self._finished = ""

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        return size_bytes(self._objects, self.place.at.keep, self.place.at.keep_days)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        return generation_of(self._objects, self._base, self.standing.version_count)

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.claim`. An object records it, with the first change."""
        self._require_usable()
        if self._node is not None and self._node != node_id:
            raise Discontinuity(
                f"{self.place.at.path} is the backup of another node: {self._node}, not {node_id}. "
                "Nothing was written. Use this node's own backup, or make a new one with "
                "`backup-cli init`."
            )
        if self._node is None:
            self._unsigned = node_id

    def _sign(self) -> None:
        """Records the node that the backup belongs to, before its first change."""
        if self._unsigned is None or self._node is not None:
            return
        key = self._store.master_key
        text = self._unsigned if key is None else NodeVeil(key).hide(self._unsigned)
        content = json.dumps({"node_id": text}).encode()
        if not self._bucket.put_new(NODE, content):
            self._node = noted_node(self._objects, key)
            self.claim(self._unsigned)
        self._node, self._unsigned = self._unsigned, None

    def fence(self) -> None:
        """Refuses every older writer, durably.

        Raises:
            WriterConflict: another writer stored more since this one opened the backup.
            StorageError.
        """
        if self._fenced:
            return
        fence = self._claim_number(new_fence())
        # A store forgets the names that it removed: this one may have been another writer's.
        layout, base = self._objects.layout, self._base.name
        opened, now = layout.objects.get(base), self._objects.refresh().objects.get(base)
        same = opened == now or newest_id(self._objects) == self._store.backup_id
        layout = self._objects.layout
        if not same or layout.last_number > fence or any(packs_of(fence, layout.packs)):
            raise self._overtaken(segment_name(fence + 1))
        self._fenced = True

    def overtake(self) -> None:
        """Refuses an older writer that stores more all the time; then this one is opened again.

        Raises:
            WriterConflict: it made no pause for as long as this waits.
            StorageError.
        """
        end_at = time.monotonic() + _OVERTAKE_S
        while True:
            last = self._objects.refresh().last_number
            self._number = max(self._number, last + 1)
            try:
                self._claim_number(new_fence())
            except WriterConflict:
                if time.monotonic() > end_at:
                    raise
            else:
                return

    def _claim_number(self, content: bytes) -> int:
        """Stores an object of the log under the next number; returns the number."""
        if self._number > MAX_NUMBER:
            raise StorageError(
                f"{self.place.at.path} contains object {MAX_NUMBER}, the last possible number. No "
                "backup gets that far; make a new one with `backup-cli init`."
            )
        name = segment_name(self._number)
        try:
            self._objects.put_new(name, "record", [content], op="store change")
        except AlreadyExists:
            raise self._overtaken(name) from None
        self._number += 1
        return self._number - 1

    def _overtaken(self, name: str) -> WriterConflict:
        return WriterConflict(
            f"Another process wrote to this backup: {self._objects.where(name)} was not made "
            "by this process, which writes nothing more. Either another node writes to the "
            "backup, or this machine was set back to an older state, such as a checkpoint of a "
            "virtual machine, and its database is as old. Do not start the node from an old "
            "state, which can lose its funds: find and stop the other writer, or move the "
            "database away and restore the newest state with `backup-cli restore`."
        )

    def _ready(self) -> None:
        """Stores what precedes the first write: the node's name, and the fence."""
        if not self._fenced:
            with contextlib.suppress(BadChange):
                self._sign()
            self.fence()

    def _next_place(self) -> tuple[int, int]:
        return self._number, v2.HEADER_BYTES

    def _numbers_from(self, segment: int) -> Sequence[int]:
        return self._objects.refresh().numbers(segment)

    def _put(
        self, record_type: v2.Type, version: int, content: bytes, stored_ms: int
    ) -> v2.LogOffset:
        end, tracker = self._end, self._tracker
        state = v2.LogState(
            *(end.segment, end.end_bytes, end.seal, end.digest),
            *(tracker.ordinal, tracker.may_rewind, tracker.head, tracker.before),
            v2.HEADER_BYTES,
        )
        header, sealer = self._store.new_header(
            v2.FileKind.TIMED_LOG, self._number, self._epoch, v2.pack_log_state(state)
        )
        encoder = Encoder(sealer, header[-v2.SEAL_BYTES :], timed=True)
        data = header + encoder.encode(record_type, version, content, stored_ms)
        number = self._claim_number(data)
        digest = hashlib.sha256(data).digest()
        self._end = end._replace(
            segment=number, end_bytes=len(data), seal=encoder.seal, digest=digest,
            epoch=self._epoch, last_number=number,
        )  # fmt: skip
        return v2.LogOffset(number, v2.HEADER_BYTES, header[-v2.SEAL_BYTES :])

    def _settled(self) -> None:
        self._unmerged += 1
        if self._unmerged >= LEAST + UNMERGED:
            self._start_upkeep()

    def _start_upkeep(self) -> None:
        """Starts the child process that merges objects, and removes what has expired.

        If it cannot be started, the backup still works, with more objects to list and read.
        """
        if self._upkeep is not None:
            if self._upkeep.is_running():
                return
            self._hear(self._upkeep)
        self._unmerged = UNMERGED
        with contextlib.suppress(StorageError):
            self._upkeep = Child(
                "cln_backup.backends.objects.upkeep",
                Start(self.place.url, type(self.place).__module__, type(self.place).__name__),
                (Done,),
                work="merges objects",
                lowest_priority=True,
            )

    def _hear(self, ended: Child[Done]) -> None:
        """Says why the maintenance failed, if it is not what was said before."""
        try:
            ended.receive()
        except BackupError as error:
            if str(error) != self._upkeep_failure:
                self._upkeep_failure = str(error)
                at = self.place.at.path
                text = f"The maintenance of {at} failed: {error} Each change is stored there."
                self._on_event(Event(Noticed.FOUND, text))
        ended.close()

    def take_over(
        self, ticket: Ticket | None, timeout_s: float | None = None
    ) -> Statistics | MoreNeeded:
        """See `Writer.take_over`. One object is published."""
        if ticket is None:
            return MoreNeeded.PREPARE
        if ticket.done is not None:
            return ticket.done
        self._require_usable()
        prepared = Prepared(*json.loads(ticket.content))
        with self._bucket.within(timeout_s):
            if (
                prepared.made_from != self._base.generation
                or not self._objects.has_parts(prepared.name)
                or last_seal(self._store, prepared.name).hex() != prepared.seal
            ):
                raise StorageError(
                    f"{self._objects.where(prepared.name)} is not the prepared base; the backup is "
                    "unchanged."
                )
            self._base = publish_base(
                self.place.at, self._store, self._base, prepared.name, self._end.last_number
            )
            self._head = marks_of(self._base, self._tracker).head
            self._start_upkeep()
            return {"before": ticket.before, "after": size_of(self)}

    def discard(self) -> None:
        """See `Writer.discard`."""
        for prepared in self._objects.prepared(PREPARED):
            self._objects.discard(prepared)

    def close(self) -> None:
        """See `Backend.close`. A child process that still works is ended."""
        if self._upkeep is not None:
            self._upkeep.close()
            self._upkeep.wait(_UPKEEP_WAIT_S)
            self._upkeep = None
        self._lock.release()
        self._objects.close()
        self._bucket.close()
