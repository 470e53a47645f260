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
from cln_backup.backends.file.entries import Entry, entries
from cln_backup.backends.file.ledger import ledger_of
from cln_backup.backends.file.rewrite import Staged
from cln_backup.backends.file.scan import Layout, scan
from cln_backup.backends.file.stock import generation_of, last_change_of, tell_of
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
    from cln_backup.backends.ticket import Generation, Statistics, Ticket
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
        self._ledger = ledger_of(layout)
        tell_of(layout, self._on_event)
        header = self._mend(layout)
        self._written = FileEnd(self._path, self._fd, header, layout.head)

    def _tell(self, noticed: Noticed, text: str) -> None:
        self._on_event(Event(noticed, text))

    def _mend(self, layout: Layout) -> v1.Header:
        """Repairs what an interrupted write left; returns the current header of the file."""
        header = self._ledger.header()
        if layout.torn_bytes:
            kept = file_rewrite.keep_torn(self._fd, self._path, layout)
            self._tell(Noticed.FOUND, f"What was cut is kept as {kept}.")
        elif header[:2] == layout.header[:2]:
            return layout.header
        self._write_header(header, op="repair header")
        fsio.sync(self._fd, op="sync repaired header")
        if layout.torn_bytes:
            fsio.truncate(self._fd, layout.end_bytes, op="cut off torn entry")
            fsio.sync(self._fd, op="sync cut")
        return header

    def _use(self, fd: int) -> None:
        """Continues with the file that has replaced the backup."""
        self._lock.lock_too(fd, self._path)
        os.close(self._fd)
        self._fd = fd

    def _repair(self, layout: Layout) -> Layout:
        fd, kept = file_rewrite.repair(self._fd, self._path, layout)
        self._use(fd)
        self._tell(
            Noticed.FOUND,
            f"The backup held changes that the node never committed ({layout.stale}), as the "
            "community's plugin leaves them after a crash. They were removed; the original file is "
            f"kept as {kept}.",
        )
        return scan(fd, self._path)

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
        self._written.require(self._ledger.end_bytes, now=look)
        self._last_write.failed = False
        return self._written

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        return self._ledger.standing()

    @property
    def version(self) -> int:
        """See `Backend.version`."""
        return self._ledger.version

    @property
    def size_bytes(self) -> int:
        """The file's length."""
        return fsio.size_bytes(self._fd)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        return generation_of(self._fd, self._ledger.version_count)

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self._fd, self._ledger.head)

    def claim(self, node_id: str, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.claim`. `PATH.writer` records it."""
        self._require_writer()
        self._lock.claim(node_id, self._path)

    def store_change(self, change: Change, timeout_s: float | None = None) -> None:  # noqa: ARG002
        """See `Writer.store_change`. One write of the entry, one of the header, one sync."""
        written = self._require_writer(look=change.transaction is None)
        ledger = self._ledger
        last = ledger.head
        check_follows(change, ledger.version, empty=last is None)
        self._lock.sign()
        start = ledger.end_bytes
        kind = change.kind
        foreign_keys = last is None or last.foreign_keys
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
        ledger = ledger.with_entry(entry, end)
        with self._last_write:
            self._write_header(ledger.header(), op="write header")
            fsio.sync(self._fd, op="sync change")
        self._ledger = ledger
        self._stored_ms = change.stored_ms
        if payload is None:
            with interruption.held():  # the snapshot is stored
                written.read_payload(self._fd, entry)
        else:
            written.appended(payload)

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
        head = self._ledger.head
        if head is None or not self._ledger.droppable:
            raise nothing_to_drop()
        self._lock.sign()
        self.discard()  # a replacement has the old head
        with self._last_write:
            kept = file_rewrite.set_aside(self._fd, self._path, head)
            self._ledger = ledger = self._ledger.without_head()
            # The header first: if the file were cut first, the head would look lost, not dropped.
            self._write_header(ledger.header(), op="write header of rewind")
            fsio.sync(self._fd, op="sync header of rewind")
            fsio.truncate(self._fd, ledger.end_bytes, op="cut off head")
            fsio.sync(self._fd, op="sync cut")
            written.read_payload(self._fd, ledger.head)
        self._tell(Noticed.KEPT, f"The dropped change is kept as {kept}.")

    @property
    def can_start_over(self) -> bool:
        """See `Writer.can_start_over`."""
        return True

    def start_over(self, change: Change, timeout_s: float | None = None) -> str:  # noqa: ARG002
        """See `Writer.start_over`. The earlier history becomes `PATH.before-undo`."""
        self._require_writer(look=True)
        self._lock.sign()
        self.discard()  # a replacement has the old history
        with self._last_write:
            fd, kept = file_rewrite.start_over(self._path, change)
            self._use(fd)
            layout = scan(fd, self._path)
            self._ledger, self._stored_ms = ledger_of(layout), None
            self._written = FileEnd(self._path, fd, layout.header, layout.head)
        return kept

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
        if self._ledger.end_bytes - staged.copied_bytes > _SWAP_BYTES:
            return MoreNeeded.COPY
        self._replace(staged)
        return {"before": ticket.before, "after": size_of(self)}

    def _replace(self, staged: Staged) -> None:
        written = self._require_writer(look=True)
        shift = staged.shift_bytes
        before, ledger = self._ledger.before, self._ledger.moved(shift, staged.folded)
        header = ledger.header()
        fd = fsio.open_existing(staged.name, writable=True, op="open compacted backup")
        try:
            file_rewrite.copy_to_staged(self._fd, fd, staged, self._ledger.end_bytes)
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
        written.replaced(fd, header)
        assert ledger.head is not None
        if before is not None and before.offset_bytes >= staged.fold_bytes:
            before = before._replace(offset_bytes=before.offset_bytes + shift)
        elif before is not None:  # it was folded: find the entry before the head
            before = None
            for entry in entries(fd, ledger.head.offset_bytes):
                before = entry
        self._ledger = ledger._replace(before=before)

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
