"""Reads a `dir:` backup, as it was when it was opened or last updated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cln_backup.backends.contract import Reader
from cln_backup.backends.dir.base import PREPARED, Prepared, lock_path, open_base
from cln_backup.backends.dir.dropped import check_dropped, dropped
from cln_backup.backends.dir.history import History
from cln_backup.backends.dir.keys import NodeVeil, key_objects, key_slots
from cln_backup.backends.dir.snapshots import NewSnapshot, StoredSnapshot, read_back
from cln_backup.backends.dir.stock import (
    generation_of,
    last_change_of,
    marks_of,
    size_of_files,
    standing_of,
    torn_notice,
)
from cln_backup.backends.dir.store import list_files, segment_name
from cln_backup.backends.dir.walk import Walks
from cln_backup.backends.dir.whole import take_stock
from cln_backup.backends.events import Event, Noticed, ignore
from cln_backup.backends.follows import changes_after
from cln_backup.backends.inventory import noted_node
from cln_backup.backends.node_files import KeptFiles
from cln_backup.backends.opening import Opening
from cln_backup.backends.ticket import Ticket, nothing_to_fold, size_of, worth_folding
from cln_backup.formats import v2
from cln_backup.storage.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import LastChange, Standing
    from cln_backup.backends.dir.place import DirPlace
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Folded, Generation, Size
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position
    from cln_backup.storage.objects import Objects
    from cln_backup.storage.source import Source


class DirReader(Reader):
    """A reader; its lock on the base keeps the files that it needs from expiring."""

    def __init__(
        self, place: DirPlace, secret: Secret | None, on_event: OnEvent, *, accept_incomplete: bool
    ) -> None:
        """Opens the backup; see `Place.open_reader`."""
        self.place: DirPlace = place
        self._secret = secret
        self._accepts_incomplete = accept_incomplete
        self._held: Source | None = None
        self._walks = Walks()
        try:
            self._take_stock(on_event, None)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, on_event: OnEvent, known: Store | None) -> None:
        opened = open_base(self.place.at, self._secret, known)
        self._release_base()
        self.store, self._base, self._held = opened
        stock = take_stock(
            self.store,
            self._base,
            alone=False,
            accept_incomplete=self._accepts_incomplete,
            walks=self._walks,
        )
        self._segments, self._end, self._tracker, notice = stock
        if notice:
            on_event(Event(Noticed.FOUND, notice))
        elif self._end.torn_bytes:
            text = torn_notice(self._end, self._tracker.version)
            on_event(Event(Noticed.FOUND, text))
        self._marks = marks_of(self._base, self._tracker)
        self._standing = standing_of(self._base, self._tracker, self._marks, self._end.epoch)

    @property
    def opening(self) -> Opening:
        """See `Reader.opening`."""
        return Opening(self.place.url, self._secret, self._accepts_incomplete)

    @property
    def standing(self) -> Standing:
        """See `Backend.standing`."""
        return self._standing

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        return size_of_files(self.store, self.place.at, self._end)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        return generation_of(self.store, self._base, self._end, self._standing.version_count)

    @property
    def last_change(self) -> LastChange:
        """See `Backend.last_change`."""
        return last_change_of(self.store, self._base, self._marks.head, self._end)

    @property
    def node_id(self) -> str | None:
        """See `Reader.node_id`."""
        key = self.store.master_key
        return noted_node(lock_path(self.place.at), None if key is None else NodeVeil(key))

    @property
    def kept_files(self) -> KeptFiles:
        """See `Reader.kept_files`."""
        store = self.store
        return KeptFiles(self._objects_beside_a_writer(), store.backup_id, store.master_key)

    def _objects_beside_a_writer(self) -> Objects:
        """The objects, where a writer removes nothing that this process prepares."""
        return key_objects(self.store.path)

    def stream_changes(
        self, start: int = 0, *, after: Position | None = None, head: bool = True
    ) -> Iterator[Change]:
        """See `Reader.stream_changes`."""
        mark = self._marks.head
        history = History(self.store, self._base, self._segments, self._end)
        if after is not None:
            last = None if head else self._tracker.ordinal
            walk = self._walks.last
            recent = None if walk is None else walk.recent(after.changes)
            found = history.numbered(after.changes) if recent is None else recent
            yield from changes_after(found, after, last)
            return
        changes = history.changes(None if head or mark is None else mark.at)
        yield from changes if start == 0 else (c for c in changes if c.version >= start)

    def wait_for_more(self, timeout_s: float) -> bool:
        """See `Reader.wait_for_more`."""
        return wait_until(self._has_gone_on, timeout_s, self.place.at.path)

    def _has_gone_on(self) -> bool:
        """Whether the backup has changed; if so, updates this reader's view.

        Does not read a file's times, see `path_watch`.
        """
        listing = list_files(self.store.objects)
        newest = self._base.generation, self._end.last_number
        if (listing.bases[-1][0], max(listing.segments, default=0)) == newest:
            end = self._end
            begins = [(number, 0) for number in listing.segments if number > end.segment]
            if end.segment:
                begins.append((end.segment, end.end_bytes))
            if not any(self._is_written(*place) for place in begins):
                return False
        before = self._sameness()
        self._take_stock(ignore, self.store)
        return before != self._sameness()

    def _sameness(self) -> tuple[object, ...]:
        """Differs after each change; it is the same after a writer has only begun a segment."""
        return self._standing.position, self._standing.version_count, self._marks.head

    def _is_written(self, segment: int, offset_bytes: int) -> bool:
        """Whether there are no zeros where the next record, or its segment's header, begins."""
        name = segment_name(segment)
        return any(self.store.objects.get(name, offset_bytes, v2.FRAME_BYTES))

    def check(self, progress: Callable[[Change], None] | None = None) -> None:  # noqa: ARG002
        """See `Reader.check`. Every seal or digest of the current generation is checked."""
        key_slots(key_objects(self.place.at.path), self.store.backup_id)
        History(self.store, self._base, self._segments, self._end).check()
        check_dropped(self.store)

    def dropped_changes(self) -> Iterator[Change]:
        """See `Reader.dropped_changes`. Each has its own file, which no compaction removes."""
        return dropped(self.store)

    def prepare_compaction(self, fold: Callable[[Reader], Folded]) -> Ticket:
        """See `Reader.prepare_compaction`. The next base; the log itself stays in place."""
        mark = self._marks.head
        if mark is None or not worth_folding(self._standing):
            return nothing_to_fold(self)
        base, foreign_keys = fold(self)
        state = self._base.state
        start, ordinal, digest = mark.at, self._tracker.ordinal - 1, mark.prev_digest
        if start == v2.NOWHERE:  # the head is the rider of the current base
            start, ordinal, digest = state.start, state.ordinal, state.digest
            foreign_keys = mark.foreign_keys
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
        kind, objects = v2.FileKind.BASE, self.store.objects
        header = self.store.new_header(kind, generation, self._end.epoch, v2.pack_base_state(state))
        content = NewSnapshot(header, version, snapshot)
        built = objects.prepare(PREPARED, content.chunks())
        try:
            read_back(StoredSnapshot(self.store, built, kind, generation, version, size, None))
        except BaseException:
            objects.discard(built)
            raise
        # Preparing has read all it needs; its lock would keep the old generation.
        self._release_base()
        before = size_of(self)
        saved = self.store.folded_bytes(self._base.name, start.segment, built)
        would_have: Size = {
            "backupsize": before["backupsize"] - saved,
            "version_count": count + self._tracker.ordinal - ordinal,
        }
        prepared = Prepared(built, self._base.generation, content.seal.hex())
        return Ticket(before, would_have, None, json.dumps(prepared).encode())

    def prepare_more(self, ticket: Ticket) -> Ticket:
        """See `Reader.prepare_more`. There is nothing to copy: the log itself stays in place."""
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """See `Reader.discard`."""
        if ticket.content:
            prepared = Prepared(*json.loads(ticket.content))
            self.store.objects.discard(prepared.name, in_steps=True)

    def close(self) -> None:
        """See `Backend.close`."""
        self._release_base()

    def _release_base(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
