"""Writes a `file:` backup: appends changes, drops the head, swaps the file.

An append writes the entry and the header, then syncs both together: if only one of the two reached
the disk, the other shows it (`scan`).
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Writer
from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.file import rewrite as file_rewrite
from cln_backup.backends.file.end import FileEnd
from cln_backup.backends.file.rewrite import Staged
from cln_backup.backends.file.scan import Entry, Layout, entries, scan
from cln_backup.backends.file.stock import last_change_of, standing_of, tell_of
from cln_backup.backends.follows import check_follows, nothing_to_drop
from cln_backup.backends.look import moved
from cln_backup.backends.paths import require_backup_file
from cln_backup.backends.ticket import MoreNeeded, size_of
from cln_backup.backends.writer import LastWrite, WriterLock
from cln_backup.formats import v1
from cln_backup.model.change import Kind
from cln_backup.model.errors import StorageError
from cln_backup.model.statements import foreign_keys_after
from cln_backup.storage import fsio, interruption

if TYPE_CHECKING:
    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.file.place import FilePlace
    from cln_backup.backends.ticket import Statistics, Ticket
    from cln_backup.model.change import Change

_SWAP_BYTES = 1 << 16
"""How much may be left to copy when the file is swapped: about the size of a large change."""


class FileWriter(Writer):
    """The writer of one file."""

    def __init__(self, place: FilePlace, on_event: OnEvent) -> None:
        """Opens the backup; see `Place.open_writer`."""
        self.place: FilePlace = place
        self._on_event = on_event
        self._path = place.path
        self._fd = -1
        self._last_write = LastWrite()
        self._written: FileEnd | None = None
        self._stored_ms: int | None = None
        require_backup_file(self._path)
        self._lock = WriterLock(self._path, f"{self._path}.writer")
        try:
            self._fd = fsio.open_existing(self._path, writable=True, op="open backup")
            self._lock.lock_too(self._fd, self._path)
            self._take_stock()
        except BaseException:
            self.close()
            raise

    def _take_stock(self) -> None:
        layout = scan(self._fd, self._path)
        self.discard()
        if layout.stale:
            layout = self._repair(layout)
        self._end = layout.end_bytes
        self._head = layout.head
        self._before = layout.before
        self._may_rewind = layout.head_may_be_dropped
        self._set_position(layout.version_count)
        tell_of(layout, self._on_event)
        header = self._mend(layout)
        self._written = FileEnd(self._path, self._fd, header, self._head)

    def _tell(self, noticed: Noticed, text: str) -> None:
        self._on_event(Event(noticed, text))

    def _mend(self, layout: Layout) -> v1.Header:
        """Repairs what an interrupted write left; returns the current header of the file."""
        header = self._header()
        if layout.torn_bytes:
            kept = file_rewrite.keep_torn(self._fd, self._path, layout)
            self._tell(Noticed.FOUND, f"What was cut is kept as {kept}.")
        elif header[:2] == layout.header[:2]:
            return layout.header
        self._write_header(header, op="repair header")
        fsio.sync(self._fd, op="sync repaired header")
        if layout.torn_bytes:
            fsio.truncate(self._fd, self._end, op="cut off torn entry")
            fsio.sync(self._fd, op="sync cut")
        return header

    def _repair(self, layout: Layout) -> Layout:
        fd, kept = file_rewrite.repair(self._fd, self._path, layout)
        self._lock.lock_too(fd, self._path)
        os.close(self._fd)
        self._fd = fd
        self._tell(
            Noticed.FOUND,
            f"The backup held changes that the node never committed ({layout.stale}), as the "
            "community's plugin leaves them after a crash. They were removed; the original file is "
            f"kept as {kept}.",
        )
        return scan(fd, self._path)

    def _set_position(self, version_count: int) -> None:
        self._version = 0 if self._head is None else self._head.version
        before = self._before if self._may_rewind else None
        self._prev_version = 0 if before is None else before.version
        self._version_count = version_count

    def _header(self) -> v1.Header:
        """The header as it must be now; the fields for a rewind are 0 if there is none."""
        prev_offset = 0
        if self._may_rewind and self._head is not None:
            prev_offset = self._head.offset_bytes
        return v1.Header(
            self._version, self._end, self._prev_version, prev_offset, self._version_count
        )

    def _write_header(self, header: v1.Header, *, op: str) -> None:
        packed = v1.pack_header(header)
        fsio.write_at(self._fd, [packed], 0, op=op)
        if self._written is not None:
            self._written.header = packed

    def _require_writer(self, *, look: bool = False) -> FileEnd:
        """Makes sure that no other process wrote since; otherwise this writer is finished."""
        assert self._written is not None
        self._last_write.require_none_failed(self._path)
        self._last_write.failed = True
        if not self._lock.is_held():
            raise moved(self._path, f"{self._path}.writer")
        self._written.require(self._end, now=look)
        self._last_write.failed = False
        return self._written

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        count = self._version_count
        return standing_of(self._head, self._before, count, may_rewind=self._may_rewind)

    @property
    def version(self) -> int:
        """See `Backend.version`."""
        return self._version

    @property
    def size_bytes(self) -> int:
        """The file's length."""
        return fsio.size_bytes(self._fd)

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self._fd, self._head)

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.claim`. `PATH.writer` records it."""
        self._require_writer()
        self._lock.claim(node_id, self._path)

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.store_change`. One write of the entry, one of the header, one sync."""
        written = self._require_writer(look=change.transaction is None)
        check_follows(change, self._version, empty=self._head is None)
        self._lock.sign()
        start = self._end
        kind = change.kind
        foreign_keys = self._head is None or self._head.foreign_keys
        if change.transaction is None:
            assert change.snapshot is not None
            v1.pack_entry_head(change.snapshot.size_bytes, change.version, v1.SNAPSHOT)
            with self._last_write:
                end = self._write_snapshot(change, start)
            foreign_keys = True
            payload = None
        else:
            payload = v1.pack_transaction(change.transaction)
            if kind is Kind.RIDER:
                foreign_keys = foreign_keys_after(change.transaction, foreign_keys)
            head = v1.pack_entry_head(len(payload), change.version, v1.TRANSACTION)
            with self._last_write:
                end = fsio.write_at(self._fd, (head, payload), start, op="append entry")
        entry = Entry(start, end - start - v1.ENTRY_BYTES, change.version, kind, foreign_keys)
        count = self._version_count + 1
        with self._last_write:
            header = v1.Header(change.version, end, self._version, start, count)
            self._write_header(header, op="write header")
            fsio.sync(self._fd, op="sync change")
        self._before, self._head, self._end, self._may_rewind = self._head, entry, end, True
        self._stored_ms = change.stored_ms
        if payload is None:
            with interruption.held():  # the snapshot is stored
                written.read_payload(self._fd, entry)
        else:
            written.appended(payload)
        self._set_position(count)

    def _write_snapshot(self, change: Change, start: int) -> int:
        """Writes a snapshot's entry; returns the offset after it. On failure it is cut off."""
        try:
            with interruption.let_through():
                end = file_rewrite.write_snapshot(self._fd, change, start)
            fsio.sync(self._fd, op="sync snapshot")
        except BaseException:
            fsio.truncate(self._fd, start, op="cut off unfinished snapshot")
            raise
        return end

    def rewind(self, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.rewind`. The dropped change becomes `PATH.dropped-VERSION`, in format 1."""
        written = self._require_writer(look=True)
        if self._head is None or not self._may_rewind:
            raise nothing_to_drop()
        self._lock.sign()
        self.discard()  # a replacement has the old head
        with self._last_write:
            kept = file_rewrite.set_aside(self._fd, self._path, self._head)
            self._end = self._head.offset_bytes
            self._head, self._before, self._may_rewind = self._before, None, False
            self._set_position(self._version_count - 1)
            # The header first: if the file were cut first, the head would look lost, not dropped.
            self._write_header(self._header(), op="write header of rewind")
            fsio.sync(self._fd, op="sync header of rewind")
            fsio.truncate(self._fd, self._end, op="cut off head")
            fsio.sync(self._fd, op="sync cut")
            written.read_payload(self._fd, self._head)
        self._tell(Noticed.KEPT, f"The dropped change is kept as {kept}.")

    def take_over(
        self,
        ticket: Ticket | None,
        timeout_s: float | None = None,  # noqa: ARG002
    ) -> Statistics | MoreNeeded:
        """See `Writer.take_over`."""
        if ticket is None:
            return MoreNeeded.PREPARE
        if ticket.done is not None:
            return ticket.done
        staged = Staged(*json.loads(ticket.content))
        if self._end - staged.copied_bytes > _SWAP_BYTES:
            return MoreNeeded.COPY
        self._replace(staged)
        return {"before": ticket.before, "after": size_of(self)}

    def _replace(self, staged: Staged) -> None:
        written = self._require_writer(look=True)
        assert self._head is not None
        shift = staged.shift_bytes
        count = self._version_count - staged.folded
        fd = fsio.open_existing(staged.name, writable=True, op="open compacted backup")
        try:
            file_rewrite.copy_to_staged(self._fd, fd, staged, self._end)
            header = self._header()._replace(
                offset_bytes=self._end + shift,
                prev_offset_bytes=self._head.offset_bytes + shift if self._may_rewind else 0,
                version_count=count,
            )
            fsio.write_at(fd, [v1.pack_header(header)], 0, op="write header of compacted backup")
            fsio.keep_times(fd, self._fd)
            fsio.sync(fd, op="sync compacted backup")
            self._lock.lock_too(fd, staged.name)
            with self._last_write:
                fsio.replace(staged.name, self._path, op="publish compacted backup")
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self._end += shift
        written.replaced(fd, header)
        self._head = self._head._replace(offset_bytes=self._head.offset_bytes + shift)
        if self._before is not None and self._before.offset_bytes >= staged.fold_bytes:
            self._before = self._before._replace(offset_bytes=self._before.offset_bytes + shift)
        elif self._before is not None:  # it was folded: find the entry before the head
            self._before = None
            for entry in entries(fd, self._head.offset_bytes):
                self._before = entry
        self._set_position(count)

    def discard(self) -> None:
        """See `Writer.discard`."""
        file_rewrite.discard(self._path)

    def close(self) -> None:
        """See `Backend.close`. Sets the file's time to the head's, if the head came with one."""
        if self._fd >= 0:
            if self._stored_ms:
                with contextlib.suppress(StorageError):  # the file belongs to another user
                    fsio.set_time(self._fd, self._stored_ms)
            os.close(self._fd)
            self._fd = -1
        self._lock.release()
