"""Reads a `file:` backup, as it was when it was opened or last updated."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Reader
from cln_backup.backends.events import ignore
from cln_backup.backends.file import rewrite
from cln_backup.backends.file.changes import changes
from cln_backup.backends.file.entries import is_there
from cln_backup.backends.file.ledger import ledger_of
from cln_backup.backends.file.rewrite import Staged
from cln_backup.backends.file.scan import scan
from cln_backup.backends.file.stock import generation_of, last_change_of, tell_of
from cln_backup.backends.follows import SeenHeads, changes_after, numbered
from cln_backup.backends.inventory import noted_node
from cln_backup.backends.opening import Opening
from cln_backup.backends.paths import require_backup_file
from cln_backup.backends.ticket import Ticket, nothing_to_fold, size_of, worth_folding
from cln_backup.formats import v1
from cln_backup.formats.digests import change_digest
from cln_backup.model.change import Kind
from cln_backup.model.errors import Damaged
from cln_backup.storage import fsio, giving_back, scratch
from cln_backup.storage.path_watch import PathWatch
from cln_backup.storage.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.file.entries import Entry
    from cln_backup.backends.file.place import FilePlace
    from cln_backup.backends.file.scan import Known, Layout
    from cln_backup.backends.ticket import Folded, Generation, Size
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position

READ = "read backup"
_TAIL_BYTES = 4096
_SCANS = 200
_PLACES = 16


class FileReader(Reader):
    """A reader of one file, which it keeps open: a compaction replaces the file."""

    def __init__(self, place: FilePlace, on_event: OnEvent) -> None:
        """Opens the backup; see `Place.open_reader`."""
        self.place: FilePlace = place
        self._fd = -1
        self._places: deque[Known] = deque(maxlen=_PLACES)
        self._heads = SeenHeads()
        try:
            self._take_stock(on_event)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, on_event: OnEvent) -> None:
        self._path = self.place.path
        require_backup_file(self._path)
        fd = fsio.open_existing(self._path, writable=False, op="open backup")
        known = None
        if self._fd >= 0 and os.path.sameopenfile(fd, self._fd):
            known = self._places[-1] if self._places else None
        else:
            self._places.clear()
        self.close()
        self._fd = fd
        self._watch = PathWatch(self._path, fd, size=True)
        layout = self._scan(known)
        self._seen = self._look(layout.size_bytes, layout.end_bytes)
        self._end, self._head = layout.end_bytes, layout.head
        self._standing = ledger_of(layout).standing()
        head = layout.head
        if head is not None and head.kind is Kind.TRANSACTION:
            digest = change_digest(v1.TRANSACTION, head.version)
            for chunk in fsio.chunks_at(fd, head.length_bytes, head.payload_bytes, op=READ):
                digest.update(chunk)
            self._heads.remember(self._standing.position, digest.digest())
        if layout.known is not None:
            self._places.append(layout.known)
        tell_of(layout, on_event)

    def _scan(self, known: Known | None) -> Layout:
        """Scans the file; again if its writer dropped or appended a change meanwhile."""
        for _ in range(_SCANS):
            before = self._look(fsio.size_bytes(self._fd), 0)
            try:
                return scan(self._fd, self._path, known)
            except Damaged:
                if known is None and before == self._look(fsio.size_bytes(self._fd), 0):
                    raise
                known = None
        return scan(self._fd, self._path)

    @property
    def opening(self) -> Opening:
        """See `Reader.opening`."""
        return Opening(self.place.url)

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        return self._standing

    @property
    def size_bytes(self) -> int:
        """The file's length."""
        return fsio.size_bytes(self._fd)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        return generation_of(self._fd, self._standing.version_count)

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self._fd, self._head)

    @property
    def node_id(self) -> str | None:
        """See `Reader.node_id`."""
        return noted_node(f"{self._path}.writer")

    def stream_changes(
        self, start: int = 0, *, after: Position | None = None, head: bool = True
    ) -> Iterator[Change]:
        """See `Reader.stream_changes`."""
        if after is not None:
            last = None if head else self._standing.version_count
            seen = self._heads.digest_at(after)
            first, number = self._place_of(after)
            found = numbered(changes(self._fd, self._path, 0, self._end, first), number)
            return changes_after(found, after, last, seen)
        end = self._end
        if not head and self._head is not None:
            end = self._head.offset_bytes
        return changes(self._fd, self._path, start, end)

    def _place_of(self, after: Position) -> tuple[Entry | None, int]:
        """An entry of the file and its number, from which the position can be found."""
        for place in reversed(self._places):
            if place.number <= after.changes and is_there(self._fd, place.entry):
                return place.entry, place.number
        return None, 1

    def wait_for_more(self, timeout_s: float) -> bool:
        """See `Reader.wait_for_more`. The file is read again then."""
        return wait_until(self._has_gone_on, timeout_s, os.path.dirname(self._path))

    def _look(self, size_bytes: int | None, end_bytes: int) -> tuple[int | None, bytes, bytes]:
        """Properties that differ after each change: the size, the header, the end of the head."""
        tail_bytes = min(end_bytes, _TAIL_BYTES)
        header = fsio.read_at(self._fd, v1.HEADER_BYTES, 0, op=READ)
        tail = fsio.read_at(self._fd, tail_bytes, end_bytes - tail_bytes, op=READ)
        return size_bytes, header, tail

    def _has_gone_on(self) -> bool:
        """Whether the backup has changed; if so, updates this reader's view."""
        if self._look(self._watch.size_bytes(), self._end) == self._seen:
            return False
        before = self._standing, self._seen[2]
        self._take_stock(ignore)
        return before != (self._standing, self._seen[2])

    def prepare_compaction(self, fold: Callable[[Reader], Folded]) -> Ticket:
        """See `Reader.prepare_compaction`. The replacement is `PATH.compacting-PID`."""
        if self._head is None or not worth_folding(self._standing):
            return nothing_to_fold(self)
        base, foreign_keys = fold(self)
        before, count = size_of(self), self._standing.version_count
        staged = rewrite.stage(
            *(self._fd, self._path, self._head, count, base), foreign_keys=foreign_keys
        )
        would_have: Size = {
            "backupsize": before["backupsize"] + staged.shift_bytes,
            "version_count": count - staged.folded,
        }
        return Ticket(before, would_have, None, json.dumps(staged).encode())

    def prepare_more(self, ticket: Ticket) -> Ticket:
        """See `Reader.prepare_more`. Copies only complete entries."""
        staged = Staged(*json.loads(ticket.content))
        staged = rewrite.stage_more(self._fd, staged)
        return ticket._replace(content=json.dumps(staged).encode())

    def discard(self, ticket: Ticket) -> None:
        """See `Reader.discard`."""
        if ticket.content:
            name = Staged(*json.loads(ticket.content)).name
            scratch.empty_file(name, op="compact")
            fsio.remove(name, op="remove unfinished compaction")

    def close(self) -> None:
        """See `Backend.close`."""
        if self._fd >= 0:
            giving_back.close_reader(self._fd)
            self._fd = -1
