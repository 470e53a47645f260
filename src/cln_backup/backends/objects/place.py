"""A backup in a bucket, whatever the bucket is: an object store's, a server's, a directory."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.dir.create import create_first_base
from cln_backup.backends.dir.keys import (
    add_key_slot,
    create_keys,
    remove_key_slot,
    require_listed,
    require_master_key,
)
from cln_backup.backends.dir.store import base_name
from cln_backup.backends.events import ignore
from cln_backup.backends.inventory import Inventory, Key
from cln_backup.backends.objects.log_objects import LogObjects, ObjectsStore
from cln_backup.backends.objects.opening import machine_lock, newest_header
from cln_backup.backends.objects.reader import ObjectsReader
from cln_backup.backends.place import Keeps, Place
from cln_backup.formats import v2
from cln_backup.model.errors import AlreadyExists, StorageError, WriterConflict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.objects.writer import ObjectsWriter
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change
    from cln_backup.model.position import Position
    from cln_backup.storage.bucket import Bucket

OPEN_WRITER_S: Final = 50.0
"""How long the first call of a node waits: other plugins time out about 120 s after its start."""

OPEN_READER_S: Final = 15.0


class ObjectsAt(NamedTuple):
    """The options that every backup in a bucket has in its URL, or by default.

    Attributes:
        path: the place, for messages.
        lock: the name of the lock among the writers of this machine.
        key_source, keep, keep_days: as in the URL of a `dir:` backup.
        deadline_s: how long a running node waits for the bucket before it is stopped.
        fenced: whether the bucket supports put if absent.
    """

    path: str
    lock: str
    key_source: tuple[str, str] | None = None
    keep: int = 0
    keep_days: int = 0
    deadline_s: int = 600
    fenced: bool = True


class ObjectsPlace(Place):
    """A bucket. Opening also raises `AccessDenied` and `Unreachable`.

    Attributes:
        at: where it is, and its options.
    """

    can_encrypt = True
    keeps_node_files = True
    at: ObjectsAt

    @property
    def keeps(self) -> Keeps:
        """See `Place.keeps`."""
        return Keeps(self.at.keep, self.at.keep_days)

    @abstractmethod
    def bucket(self, limit_s: float, on_event: OnEvent = ignore) -> Bucket:
        """The bucket; its requests are made again for so long, and at most until the deadline."""

    def prepare(self, bucket: Bucket) -> None:
        """Makes sure that a new backup can be made there. Raises `BadUrl`, `StorageError`."""

    @contextlib.contextmanager
    def creating(
        self,
        base: Change | None = None,
        *,
        origin: Position | None = None,
        secret: Secret | None = None,
        hidden: bool = False,
    ) -> Iterator[Place]:
        """See `Place.creating`. The store is probed first."""
        del hidden  # a bucket has no renames
        with contextlib.closing(self.bucket(OPEN_WRITER_S)) as bucket:
            self._require_vacant(bucket)
            lock = machine_lock(self.at)
            objects = LogObjects(bucket)
            made = False
            try:
                self._require_vacant(bucket)
                self.prepare(bucket)
                backup_id = os.urandom(v2.ID_BYTES)
                made = True
                key = create_keys(self.at, objects, backup_id, secret)
                create_first_base(ObjectsStore(objects, backup_id, key), base, origin)
                lock.release()
                yield self
            except BaseException:
                if made:
                    with contextlib.suppress(StorageError):
                        self._withdraw(bucket)
                raise
            finally:
                lock.release()

    def _require_vacant(self, bucket: Bucket) -> None:
        found = [one.key for one in bucket.list() if not one.key.startswith(("probe-", "parts/"))]
        if any(not name.startswith("key-") for name in found):
            raise AlreadyExists(
                f"{self.at.path} is not empty; it was not changed. If it is a backup, you can use "
                "it; otherwise choose another prefix."
            )
        if found:  # of a creation that was interrupted; without a base they unlock nothing
            bucket.delete(found)

    def _withdraw(self, bucket: Bucket) -> None:
        """Removes an unfinished backup; the base first, without which the rest is none."""
        found = [one.key for one in bucket.list()]
        bucket.delete(sorted(found, key=lambda key: not key.startswith("base-")))

    def open_reader(
        self,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
        timeout_s: float | None = None,
        accept_incomplete: bool = False,  # noqa: ARG002 - of directories that were copied
    ) -> ObjectsReader:
        """See `Place.open_reader`."""
        limit_s = OPEN_READER_S if timeout_s is None else min(OPEN_READER_S, timeout_s)
        return ObjectsReader(self, secret, on_event, limit_s)

    def _open_writer(
        self, secret: Secret | None, on_event: OnEvent, timeout_s: float | None
    ) -> ObjectsWriter:
        from cln_backup.backends.objects.writer import ObjectsWriter

        limit_s = OPEN_WRITER_S if timeout_s is None else min(OPEN_WRITER_S, timeout_s)
        return ObjectsWriter(self, secret, on_event, limit_s)

    def fence(
        self,
        node_id: str | None = None,
        *,
        secret: Secret | None = None,
        on_event: OnEvent = ignore,
    ) -> Writer:
        """See `Place.fence`. Waits for a pause of an older writer that is busy."""
        writer = self._open_objects_writer(node_id, secret, on_event)
        try:
            try:
                writer.fence()
            except WriterConflict:
                writer.overtake()
            else:
                return writer
        except BaseException:
            writer.close()
            raise
        writer.close()
        writer = self._open_objects_writer(node_id, secret, on_event)
        try:
            writer.fence()
        except BaseException:
            writer.close()
            raise
        return writer

    def _open_objects_writer(
        self, node_id: str | None, secret: Secret | None, on_event: OnEvent
    ) -> ObjectsWriter:
        from cln_backup.backends.objects.writer import ObjectsWriter

        writer = self.open_writer(node_id, secret=secret, on_event=on_event)
        assert isinstance(writer, ObjectsWriter)
        return writer

    @contextlib.contextmanager
    def _newest(self) -> Iterator[tuple[LogObjects, v2.Open]]:
        """The objects and the open part of the newest base's header, which needs no key."""
        with contextlib.closing(self.bucket(OPEN_READER_S)) as bucket:
            yield newest_header(self.at, bucket)

    def keys(self) -> list[Key]:
        """See `Place.keys`."""
        with self._newest() as found:
            return require_listed(self.at.path, *found)

    def add_key(self, added: Secret, label: str, *, secret: Secret | None = None) -> None:
        """See `Place.add_key`."""
        with self.open_reader(secret=secret) as reader:
            store = reader.store
            key = require_master_key(store)
            add_key_slot(reader.objects, store.backup_id, key, added, label)

    def remove_key(self, label: str) -> None:
        """See `Place.remove_key`. No key slots at all is a different error."""
        with self._newest() as (objects, newest):
            require_listed(self.at.path, objects, newest)
            remove_key_slot(objects, newest.backup_id, label)

    def usage(self) -> Inventory:
        """See `Place.usage`."""
        with self._newest() as (objects, newest):
            layout = objects.layout
            bases = [layout.objects[base_name(*base)] for base in layout.bases]
            oldest_at = min((one.stored_at for one in bases), default=None)
            space = sum(one.size_bytes for one in layout.objects.values())
            cipher, keys = None, list[Key]()
            if newest.cipher != v2.PLAIN:
                cipher, keys = "AES-256-GCM", require_listed(self.at.path, objects, newest)
        space += sum(layout.parts.values())
        return Inventory(cipher, tuple(keys), len(bases), oldest_at, space)
