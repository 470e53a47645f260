"""`s3://BUCKET/PREFIX`, `gs:`, `az:`: a backup in a bucket of an object store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.events import ignore
from cln_backup.backends.objects.connect import connect
from cln_backup.backends.objects.place import ObjectsAt, ObjectsPlace
from cln_backup.backends.objects.url import parse_objects_url

if TYPE_CHECKING:
    from cln_backup.backends.events import OnEvent
    from cln_backup.storage.bucket import Bucket


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

    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:
        """See `ObjectsPlace.bucket`."""
        return connect(self._store, min(limit_s, self.at.deadline_s), on_event)

    def prepare(self, bucket: Bucket) -> None:
        """See `ObjectsPlace.prepare`: probes the store."""
        if self.at.fenced:
            from cln_backup.backends.objects.probe import probe

            probe(bucket)
