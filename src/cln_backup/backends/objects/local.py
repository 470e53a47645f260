"""`objects:///path`: a directory of objects, as the server keeps a sealed backup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cln_backup.backends.dir.url import parse_dir_url
from cln_backup.backends.events import ignore
from cln_backup.backends.objects.place import ObjectsAt, ObjectsPlace
from cln_backup.storage.local_bucket import LocalBucket, make

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.place import Place
    from cln_backup.storage.bucket import Bucket


class LocalObjectsPlace(ObjectsPlace):
    """A directory of objects."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        at = parse_dir_url(url, "objects")
        self.path = at.path
        self.at = ObjectsAt(at.path, f"objects {at.path}", at.key_source, at.keep, at.keep_days)

    @property
    def storage_dir(self) -> str | None:
        """See `Place.storage_dir`."""
        return self.path

    def scratch_backup(self) -> AbstractContextManager[Place]:
        """See `Place.scratch_backup`: beside the directory, in which each file is an object."""
        return self._scratch_in(os.path.dirname(self.path.rstrip("/")))

    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:  # noqa: ARG002
        """See `ObjectsPlace.bucket`."""
        return LocalBucket(self.path)

    def prepare(self, bucket: Bucket) -> None:
        """See `ObjectsPlace.prepare`: makes the directory."""
        del bucket
        make(self.path)
