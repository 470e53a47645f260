"""`s3://BUCKET/PREFIX`, `gs:`, `az:`: a backup in a bucket of an object store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cln_backup.backends.events import ignore
from cln_backup.backends.objects.connect import connect
from cln_backup.backends.objects.place import OPEN_WRITER_S, ObjectsAt, ObjectsPlace
from cln_backup.backends.objects.url import parse_objects_url
from cln_backup.backends.place import Concession
from cln_backup.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.place import Place
    from cln_backup.storage.bucket import Bucket


class _Ended(Exception):
    """A scratch backup is no longer needed."""


class StorePlace(ObjectsPlace):
    """A prefix in a bucket of an object store."""

    works_in_fork = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store = store = parse_objects_url(url)
        self.at = ObjectsAt(
            store.path,
            store.full_name,
            store.key_source,
            store.keep,
            store.keep_days,
            store.deadline_s,
            store.fenced,
        )

    @property
    def concessions(self) -> frozenset[Concession]:
        """See `Place.concessions`."""
        given_up = {
            Concession.UNFENCED: not self._store.fenced,
            Concession.PLAIN: (self._store.endpoint or "").startswith("http:"),
        }
        return frozenset(each for each, is_so in given_up.items() if is_so)

    @contextlib.contextmanager
    def scratch_backup(self) -> Iterator[Place]:
        """See `Place.scratch_backup`: below the prefix, with `.write-test` appended.

        A leftover is removed if it is a backup that belongs to no node.
        """
        location, mark, options = self.url.partition("?")
        place = StorePlace(f"{location.rstrip('/')}.write-test{mark}{options}")
        with contextlib.suppress(NotFound), place.open_reader() as reader:
            if reader.node_id is None:
                with contextlib.closing(place.bucket(OPEN_WRITER_S)) as bucket:
                    place._withdraw(bucket)
        with contextlib.suppress(_Ended), place.creating():
            yield place
            raise _Ended

    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:
        """See `ObjectsPlace.bucket`."""
        return connect(self._store, min(limit_s, self.at.deadline_s), on_event)

    def prepare(self, bucket: Bucket) -> None:
        """See `ObjectsPlace.prepare`: probes the store."""
        if self.at.fenced:
            from cln_backup.backends.objects.probe import probe

            probe(bucket)
