"""Appends to the log of a `dir:` backup: one writer's segments, its epoch.

A writer claims a segment by giving its name to a file of zeros, which no two writers can do; only
then it checks that the log still ends where it found it. A writer looks for the claim of a later
one before each record, and again when the record is synced, before it is answered. So of two
writers that do not know of each other, on machines that share the directory, at least one sees the
other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir import store as dir_store
from cln_backup.backends.dir.blocks import BlockFile
from cln_backup.backends.dir.records import Tail, judge_tail
from cln_backup.backends.dir.store import SPARE, list_files, newest_segment, segment_name
from cln_backup.backends.dir.upkeep import Start
from cln_backup.backends.look import LookSchedule, conflict, moved
from cln_backup.formats import v2
from cln_backup.formats.v2_stream import Encoder
from cln_backup.model.errors import AlreadyExists, StorageError, WriterConflict
from cln_backup.process.channel import Message
from cln_backup.process.child import Child
from cln_backup.storage import directories, fsio
from cln_backup.storage.local_objects import LocalObjects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.backends.dir.log import LogEnd
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.dir.tracker import Tracker

MAX_NUMBER: Final = 10**10 - 1
"""The largest number that fits in a segment's name."""

_SPARE_AFTER_BYTES: Final = 1 << 15
_UPKEEP_WAIT_S: Final = 3.0


class SegmentWriter:
    """Appends records; claims its first segment at the first append.

    Attributes:
        schedule: when to `look`, before an append.
    """

    def __init__(
        self, store: Store, end: LogEnd, base: tuple[int, bytes], keep: tuple[int, int]
    ) -> None:
        """Starts after `end`; in an empty log, after the base.

        Of the base, the number of the first segment that it needs, and its last seal. `keep` is the
        minimum number of replaced generations to keep, and for how many days.
        """
        self._first, seal = base
        self._store = store
        self._keep = keep
        self._begun = end if end.segment else end._replace(seal=seal)
        self.epoch = end.epoch + 1
        self._file: BlockFile | None = None
        self._capacity_bytes = self._made_bytes = 0
        self._encoder: Encoder | None = None
        self._digest = hashlib.sha256()
        self._next_path = ""
        self._leftover: LogEnd | None = None
        self._unsettled: tuple[tuple[int, int, bytes], bytes] | None = None
        self._upkeep: Child[Message] | None = None
        self._spare_wanted = True
        self.schedule = LookSchedule()

    @property
    def end(self) -> LogEnd:
        """The end of the log."""
        if self._file is None or self._encoder is None:
            return self._begun
        return self._begun._replace(end_bytes=self._file.end_bytes, seal=self._encoder.seal)

    def look(self, *, at_all_names: bool = False) -> None:
        """Checks that the log is as this writer left it.

        With `at_all_names`, also checks for segments after the next one.

        Raises:
            WriterConflict: another writer continued from there; nothing was written.
            StorageError.
        """
        if self._file is None:
            self._require_end(self._begun)
            at_all_names = True
        else:
            found = self._file.look()
            if found is not None:
                raise conflict(self._store.log_path(self._begun.segment), found)
            # Makes a network file system ask its server for the names again.
            directories.visit(self._store.path, op="look at backup")
            if os.access(self._next_path, os.F_OK):
                raise self._conflict(self._next_path)
        if at_all_names:
            last = newest_segment(self._store.objects)
            if last > self._begun.last_number:
                raise self._conflict(self._store.log_path(last))

    def prepare(self, tracker: Tracker, size_bytes: int) -> int:
        """Makes sure that there is a segment with space for a record of at most this size.

        Returns the segment's number.

        Raises:
            WriterConflict: a later writer is active.
        """
        if not self.has_room(size_bytes):
            self._begin(tracker, v2.HEADER_BYTES + size_bytes)
        return self._begun.segment

    def has_room(self, size_bytes: int) -> bool:
        """Whether a record of at most this size fits into the segment."""
        return self._file is not None and (
            self._file.end_bytes + size_bytes <= self._capacity_bytes
        )

    def next_place(self, size_bytes: int) -> tuple[int, int]:
        """Segment and offset of the next record of about this size; claims nothing."""
        if self.has_room(size_bytes):
            return self._begun.segment, self.end.end_bytes
        return self.end.last_number + 1, v2.HEADER_BYTES

    def _begin(self, tracker: Tracker, least_bytes: int) -> None:
        """Claims the next segment and writes its header. Durable with the first record."""
        if self._file is not None:
            self.look()
            self._require_uncut()
        prev, number = self.end, self.end.last_number + 1
        path = self._claim(number, least_bytes)
        # By its name, not by the descriptor that wrote the zeros: another process makes the
        # spare, and may have replaced it.
        file = BlockFile(path, op="open segment")
        try:
            if self._file is None:
                # `look` was before the claim, so that nothing is written if another writer is
                # active. Up to the claim, that writer could still store a change at this end.
                self._require_end(prev)
            capacity = fsio.size_bytes(file.fd)
            state = v2.LogState(
                prev.segment,
                prev.end_bytes,
                prev.seal,
                prev.digest if self._file is None else self._digest.digest(),
                tracker.ordinal,
                tracker.may_rewind,
                tracker.head,
                tracker.before,
                capacity,
            )
            header, sealer = self._store.new_header(
                v2.FileKind.TIMED_LOG, number, self.epoch, v2.pack_log_state(state)
            )
            file.append(header, op="write segment header")
        except BaseException:
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._made_bytes = file, capacity
        # A segment that was made for a large change is not filled up: opening the backup reads all
        # of its newest segment, and the unused space is freed.
        self._capacity_bytes = min(capacity, dir_store.SPARE_BYTES)
        self._encoder = Encoder(sealer, header[-v2.SEAL_BYTES :], timed=True)
        self._digest = hashlib.sha256(header)
        self._next_path = self._store.log_path(number + 1)
        self._leftover = prev
        self._spare_wanted = True
        self._begun = prev._replace(
            segment=number, end_bytes=v2.HEADER_BYTES, epoch=self.epoch, last_number=number
        )

    def fence(self) -> None:
        """Claims the next segment, in which nothing will be written, when this log has ended.

        Any other writer is refused from then on; its name is durable when this returns.

        Raises:
            WriterConflict: another writer is active.
        """
        self.look(at_all_names=True)
        self._claim(self.end.last_number + 1, dir_store.FIRST_SEGMENT_BYTES)
        self._require_end(self.end)

    def _require_uncut(self) -> None:
        """Makes sure that no later writer has stored anything, without listing all names.

        Its first segment would be the next one, since writers skip no number, and `look` found
        none. If that name has been removed: expired files are removed in order, so this writer's
        segment is gone too, which `look` detects; and a writer that stores a change in the next
        segment trims this one.
        """
        name = segment_name(self._begun.segment)
        status = self._store.objects.status(name)
        if status is None or status.size_bytes < self._made_bytes:
            raise conflict(self._store.objects.where(name), "it was cut off at its end")

    def _claim(self, number: int, least_bytes: int) -> str:
        """Gives a segment's name to zeros that are on stable storage, with space for records.

        So while it is the newest one, the file has its original length after any crash.
        """
        if number > MAX_NUMBER:
            raise StorageError(
                f"{self._store.path} contains segment {MAX_NUMBER}, the last possible number. No "
                "backup gets that far: find out how it got there."
            )
        spares = LocalObjects(self._store.path, building=SPARE)
        built, path = SPARE, spares.path_of(SPARE)
        first_bytes = dir_store.FIRST_SEGMENT_BYTES
        if not fsio.is_sole_name(path) or os.path.getsize(path) < first_bytes:
            # An interrupted claim leaves a spare that is also a segment, and a link may lead
            # anywhere. Data written under one name must not appear under another.
            fsio.remove(path, op="remove unusable spare")
        if not os.path.exists(path) or os.path.getsize(path) < least_bytes:
            length_bytes = -(-least_bytes // first_bytes) * first_bytes
            built = spares.prepare("segment", fsio.zeros(length_bytes))
        try:
            spares.publish(built, segment_name(number), op="claim segment", withdraws=False)
        except AlreadyExists:
            raise self._conflict(self._store.log_path(number)) from None
        return self._store.log_path(number)

    def _require_end(self, prev: LogEnd) -> None:
        """Makes sure that no other writer appended after the end, before this one's claim.

        A record that looked torn may have been another writer's, about to be written.
        """
        if not prev.segment:
            return
        expected = Tail.TORN if prev.torn_bytes else Tail.CLEAN
        with self._store.objects.open(segment_name(prev.segment), op="open segment") as source:
            if judge_tail(source, prev.end_bytes) is not expected:
                path = self._store.log_path(prev.segment)
                raise conflict(path, f"more was written from byte {prev.end_bytes} on")

    def append(
        self, record_type: v2.Type, version: int, content: bytes, stored_ms: int = 0
    ) -> None:
        """Appends one record; it is on stable storage when this returns. Call `settle` next.

        Raises:
            WriterConflict: a later writer is active; the record is not valid.
            StorageError, BadChange.
        """
        encoder, file = self._encoder, self._file
        assert encoder is not None, "no segment is prepared"
        assert file is not None
        if not file.is_in_place():
            raise moved(self._store.path, "its newest segment")
        if os.access(self._next_path, os.F_OK):  # cheaper than an exception
            raise self._conflict(self._next_path)
        start = self._begun.segment, file.end_bytes, encoder.seal
        data = encoder.encode(record_type, version, content, stored_ms)
        file.append(data, op="append record")
        fsio.sync(file.fd, op="sync record")
        if os.access(self._next_path, os.F_OK):
            raise self._conflict(self._next_path)
        self.schedule.appended()
        self._unsettled = start, data

    def settle(self) -> v2.LogOffset:
        """Completes the bookkeeping of the last append; returns the start of its record."""
        assert self._unsettled is not None
        start, data = self._unsettled
        self._unsettled = None
        self._digest.update(data)
        return v2.LogOffset(*start)

    def sync(self) -> None:
        """Makes the header of a segment that has no record yet durable."""
        assert self._file is not None
        fsio.sync(self._file.fd, op="sync segment header")

    def clear_up(self) -> None:
        """Trims the previous segments, and starts the preparation of the next one.

        Raises:
            StorageError: the record is stored.
        """
        file = self._file
        assert file is not None
        if self._leftover is not None:
            self._trim_from(self._leftover)
            self._leftover = None
        if self._spare_wanted and file.end_bytes > _SPARE_AFTER_BYTES:
            self.start_upkeep()

    def _conflict(self, path: str) -> WriterConflict:
        return WriterConflict(
            f"Another process began to write to this backup after this one ({path} was made by "
            "another process); this one has lost the right to write, and stores nothing more. Two "
            "nodes must never share a backup, and a node must never run twice: find the other one. "
            "If this machine was set back to an older state, such as a checkpoint of a virtual "
            "machine, do not start the node from it: restore the newest state of its database with "
            "`backup-cli restore`."
        )

    def _trim_from(self, prev: LogEnd) -> None:
        """Trims the unused space of the previous segments, now that this one is durable.

        Segments that were claimed and never started keep their names: from the name after its own,
        a writer of an older epoch learns that there was another one.
        """
        begun = self._begun.segment
        numbers: Sequence[int] = (prev.segment,)
        if not prev.segment or begun > prev.segment + 1:
            listed = list_files(self._store.objects).segments
            first = prev.segment or self._first  # not those of an earlier generation
            numbers = [number for number in listed if first <= number < begun]
        for number in numbers:
            path = self._store.log_path(number)
            fd = fsio.open_existing(path, writable=True, op="open segment")
            try:
                end = prev.end_bytes if number == prev.segment else 0
                fsio.truncate(fd, end, op="trim segment")
            finally:
                os.close(fd)

    def start_upkeep(self) -> None:
        """Starts the child process that prepares the next segment and removes expired files.

        It runs at low priority, so that the node does not wait for it. If it cannot be started,
        the backup still works: the next segment is then prepared while the node waits.
        """
        self._spare_wanted = False
        if self._upkeep is not None:
            if self._upkeep.is_running():
                return
            self._upkeep.close()
        start = Start(self._store.path, *self._keep, os.getpid())
        with contextlib.suppress(StorageError):
            self._upkeep = Child(
                "cln_backup.backends.dir.upkeep",
                start,
                (Message,),
                work="prepares segments",
                lowest_priority=True,
            )

    def close(self) -> None:
        """Closes the segment, and waits for the child process."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._upkeep is not None:
            self._upkeep.wait(_UPKEEP_WAIT_S)
            self._upkeep.close()
            self._upkeep = None
