"""Reads a backup in a bucket, as it was when it was opened or last updated."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from cln_backup.backends.dir.dropped import check_dropped
from cln_backup.backends.dir.history import History
from cln_backup.backends.dir.keys import NodeVeil, key_slots
from cln_backup.backends.dir.reader import DirReader
from cln_backup.backends.dir.stock import marks_of, standing_of
from cln_backup.backends.dir.store import segment_name
from cln_backup.backends.dir.walk import Walks
from cln_backup.backends.events import Event, Noticed, ignore
from cln_backup.backends.objects.layout import NODE
from cln_backup.backends.objects.opening import open_backup, updated
from cln_backup.backends.objects.stock import generation_of, size_bytes
from cln_backup.storage.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.dir.place import DirPlace
    from cln_backup.backends.dir.store import Store
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.objects.log_objects import LogObjects, ObjectsStore
    from cln_backup.backends.objects.opening import Opened
    from cln_backup.backends.objects.place import ObjectsPlace
    from cln_backup.backends.secrets import Secret
    from cln_backup.backends.ticket import Generation
    from cln_backup.model.change import Change
    from cln_backup.storage.objects import Objects

_MAX_NODE_BYTES: Final = 4096
_LISTED_EVERY: Final = 8
"""Looks for the next change between two for a new base, which cost more."""

UNFENCED: Final = (
    "The URL says fencing=none: nothing keeps two nodes from writing to this backup, and the loser "
    "is not told. Use a store that supports put if absent (docs/engines.md)."
)


class ObjectsReader(DirReader):
    """A reader; what is below the log is that of a `dir:` backup."""

    def __init__(
        self, place: ObjectsPlace, secret: Secret | None, on_event: OnEvent, limit_s: float
    ) -> None:
        """Opens the backup; see `Place.open_reader`."""
        self.place: DirPlace = cast("DirPlace", place)
        self._at = place.at
        self._secret = secret
        self._accepts_incomplete = False
        self._held = None
        self._walks = Walks()
        self._looks = 0
        self._opened: Opened | None = None
        self._bucket = place.bucket(limit_s, on_event)
        try:
            self._take_stock(on_event, None)
        except BaseException:
            self.close()
            raise
        if not place.at.fenced:
            on_event(Event(Noticed.FOUND, UNFENCED))

    def _take_stock(self, on_event: OnEvent, known: Store | None) -> None:  # noqa: ARG002
        before = cast("ObjectsStore | None", known)
        opened = None if self._opened is None else updated(self._opened, self._walks)
        if opened is None:
            opened = open_backup(self._at, self._bucket, self._secret, before, self._walks)
            self.close()
        self._opened = opened
        self.store, self._base, self._segments = opened.store, opened.base, opened.numbers
        self._end, self._tracker = opened.end, opened.tracker
        self._marks = marks_of(self._base, self._tracker)
        self._standing = standing_of(self._base, self._tracker, self._marks, self._end.epoch)

    @property
    def objects(self) -> LogObjects:
        """The objects of the backup."""
        assert self._opened is not None
        return self._opened.objects

    @property
    def size_bytes(self) -> int:
        """See `Backend.size_bytes`."""
        return size_bytes(self.objects, self._at.keep, self._at.keep_days)

    def generation(self) -> Generation:
        """See `Backend.generation`."""
        return generation_of(self.objects, self._base, self._standing.version_count)

    @property
    def node_id(self) -> str | None:
        """See `Reader.node_id`."""
        return noted_node(self.objects, self.store.master_key)

    def _objects_beside_a_writer(self) -> Objects:
        return self.store.objects

    def wait_for_more(self, timeout_s: float) -> bool:
        """See `Reader.wait_for_more`. A store has no notifications; it is polled."""
        return wait_until(self._has_gone_on, timeout_s, None)

    def _has_gone_on(self) -> bool:
        """Whether the backup has changed; if so, updates this reader's view."""
        following = segment_name(self._end.last_number + 1)
        self._looks += 1
        if self._looks % _LISTED_EVERY and self._bucket.status(following) is None:
            return False
        layout = self.objects.refresh()
        newest = self._base.generation, self._end.last_number
        if layout.bases and (layout.bases[-1][0], layout.last_number) == newest:
            return False
        before = self._sameness()
        self._take_stock(ignore, self.store)
        return before != self._sameness()

    def check(self, progress: Callable[[Change], None] | None = None) -> None:  # noqa: ARG002
        """See `Reader.check`. Every seal or digest of the current generation is checked."""
        key_slots(self.objects, self.store.backup_id)
        History(self.store, self._base, self._segments, self._end).check()
        check_dropped(self.store)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._opened is not None:
            self._opened.objects.close()
        self._bucket.close()


def noted_node(objects: LogObjects, master_key: bytes | None) -> str | None:
    """The node that the backup belongs to; `None` if none has written to it yet."""
    found = objects.bucket.read(NODE, 0, _MAX_NODE_BYTES)
    with suppress(ValueError, AttributeError):
        node = None if found is None else json.loads(found.content).get("node_id")
        if isinstance(node, str):
            return node if master_key is None else NodeVeil(master_key).reveal(node)
    return None
