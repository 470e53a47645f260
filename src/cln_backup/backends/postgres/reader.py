"""Reads a backup in a database, as it was when it was opened or last updated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from cln_backup.backends.dir.dropped import check_dropped
from cln_backup.backends.dir.history import History
from cln_backup.backends.dir.keys import NodeVeil, key_slots
from cln_backup.backends.dir.reader import DirReader
from cln_backup.backends.dir.stock import marks_of, standing_of
from cln_backup.backends.dir.walk import Walks
from cln_backup.backends.postgres.head import read_writer
from cln_backup.backends.postgres.link import Link
from cln_backup.backends.postgres.opening import line_of, open_backup, read_head
from cln_backup.backends.postgres.stock import READING, generation_of, size_bytes
from cln_backup.backends.postgres.tables import LOCK
from cln_backup.storage.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.dir.place import DirPlace
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.postgres.opening import HeadRow
    from cln_backup.backends.postgres.place import PostgresPlace
    from cln_backup.backends.postgres.session import Session
    from cln_backup.backends.postgres.tables import TableStore
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Generation
    from cln_backup.model.change import Change
    from cln_backup.storage.objects import Objects

_LONGEST_PAUSE_S: Final = 0.5
"""A look reads one row by its index. A notification would cost each change a lock at its commit."""


class PostgresReader(DirReader):
    """A reader; above the rows it is that of a `dir:` backup.

    Its shared advisory lock on a generation keeps the rows that it needs from expiring.
    """

    def __init__(
        self, place: PostgresPlace, secret: Secret | None, on_event: OnEvent, limit_s: float
    ) -> None:
        """Opens the backup; see `Place.open_reader`."""
        self.place: DirPlace = cast("DirPlace", place)
        self._at = place.at
        self._secret = secret
        self._accepts_incomplete = False
        self._held = None
        self._walks = Walks()
        self._row: HeadRow | None = None
        self._link = Link(place.at, on_event, self._hold)
        try:
            with self._link.within(limit_s):
                self._take_stock(on_event, None)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, on_event: OnEvent, known: Store | None) -> None:
        del on_event
        while True:
            before = self._row
            row = read_head(self._link)
            if before is not None and _same_generation(before, row):  # which is held
                break
            self._row = row
            self._link.until(lambda session, _until: self._hold(session))
        self._row = row
        store = cast("TableStore | None", known)
        opened = open_backup(self._link, row, self._secret, store, self._walks)
        self.store, self._base, self._segments, self._end, self._tracker = opened
        self._marks = marks_of(self._base, self._tracker)
        self._standing = standing_of(self._base, self._tracker, self._marks, row.epoch)

    def _hold(self, session: Session) -> None:
        """Holds the generation that is read; its rows do not expire then."""
        if self._row is not None:
            until = self._link.until_s()
            session.run("SELECT pg_advisory_unlock_all()", until=until)
            values = (str(self._row.backup), READING, str(self._row.generation))
            session.run(f"SELECT pg_advisory_lock_shared({LOCK})", values, until=until)

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        return size_bytes(cast("TableStore", self.store), self._at)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        store = cast("TableStore", self.store)
        return generation_of(store, self._base, self._end, self._standing.version_count)

    @property
    def node_id(self) -> str | None:
        """See `Reader.node_id`."""
        return owner_of(read_head(self._link).owner, self.store.master_key)

    def _objects_beside_a_writer(self) -> Objects:
        return self.store.objects

    @property
    def is_original(self) -> bool:
        """See `Reader.is_original`. The server has the history that the last writer found there.

        A standby that was promoted since then, or a cluster that was restored, may lack answered
        changes.
        """
        noted = read_writer(read_head(self._link).writer).get("line")
        return bool(noted) and noted == line_of(self._link)

    @property
    def durability(self) -> str | None:
        """See `Reader.durability`."""
        return str(self._link.worth)

    def wait_for_more(self, timeout_s: float) -> bool:
        """See `Reader.wait_for_more`. The head is read after growing pauses, of at most 0.5 s."""
        return wait_until(self._has_gone_on, timeout_s, None, _LONGEST_PAUSE_S)

    def _has_gone_on(self) -> bool:
        """Whether the backup has changed; if so, updates this reader's view."""
        row, known = read_head(self._link), self._row
        assert known is not None
        end = self._end
        at_end = row.segment in (0, end.segment) and row.end_bytes in (0, end.end_bytes)
        if at_end and _same_generation(known, row):
            return False
        if row.backup != known.backup:
            self._walks.last = None
        before = self._sameness()
        self._take_stock(lambda _event: None, self.store)
        return before != self._sameness()

    def check(self, progress: Callable[[Change], None] | None = None) -> None:
        """See `Reader.check`. Every seal or digest of the current generation is checked."""
        del progress
        key_slots(self.store.objects, self.store.backup_id)
        History(self.store, self._base, self._segments, self._end).check()
        check_dropped(self.store)

    def close(self) -> None:
        """See `Backend.close`."""
        self._link.close()


def _same_generation(one: HeadRow, other: HeadRow) -> bool:
    return (one.backup, one.generation) == (other.backup, other.generation)


def owner_of(owner: str, master_key: bytes | None) -> str | None:
    """The node that a backup belongs to; `None` if none has written to it yet, or it is hidden."""
    if not owner:
        return None
    return owner if master_key is None else NodeVeil(master_key).reveal(owner)
