"""A sealed backup on a server: objects that the server keeps and cannot read."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import StorageError
from cln_backup.server.node import Node
from cln_backup.storage.local_bucket import RetainingBucket, make
from cln_backup.wire.object_packets import MAX_LISTED, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.storage.bucket import Found, Listed


_BASE: Final = "base-"
_LOG: Final = "log-"


class Sealed(Node):
    """The objects of one node. Of two writers that store one, exactly one succeeds.

    Attributes:
        objects: how many there are.
        used_bytes: their size.
        quota_bytes: the most that they may have; 0 without a limit.
        last_stored_at: when the last one was stored, in seconds since 1970; `None` if unknown.
    """

    def __init__(
        self,
        name: str,
        url: str,
        token_hash: str | None,
        path: str,
        quota_bytes: int = 0,
        retain_days: int = 0,
    ) -> None:
        super().__init__(name, url, token_hash)
        self.limits = quota_bytes, retain_days
        self.quota_bytes = quota_bytes
        self.objects = self.used_bytes = 0
        self.last_stored_at: float | None = None
        self._path = path
        self._has_base = False
        self._bucket = RetainingBucket(path, retain_days)
        self._counting = threading.Lock()

    def open(self) -> None:
        """Makes the directory if there is none, and measures it. Raises `StorageError`."""
        make(self._path)
        self._bucket.remove_unfinished()
        self._look_for_base()
        found = self._bucket.everything()
        with self._counting:
            self.objects = len(found)
            self.used_bytes = sum(one.size_bytes for one in found)
            self.last_stored_at = max((one.stored_at for one in found), default=None)

    def _look_for_base(self) -> None:
        self._has_base = any(one.key.startswith(_BASE) for one in self._bucket.list())

    def size_bytes(self) -> int:
        """See `Node.size_bytes`; what was removed and is retained counts, too."""
        return self.used_bytes

    def put(self, key: str, content: bytes) -> Stored:
        """Stores an object if there is none with the key; durable when this returns.

        Raises:
            StorageError: the quota is used up, the directory has no backup (its disk may not be
            mounted), or the disk failed; the object may be there or not.
        """
        self.require_open()
        if key.startswith(_LOG) and not self._has_base:
            raise StorageError(
                f"The backup of this node is not in its directory on the server, {self._path}. "
                "Nothing was stored. Is the disk mounted there? Put the backup back, and restart "
                "the server."
            )
        size_bytes = len(content)
        is_new = self._bucket.status(key) is None
        with self._counting:
            if is_new and self.quota_bytes and self.used_bytes + size_bytes > self.quota_bytes:
                raise StorageError(
                    f"The quota of this node on the server is used up: {self.used_bytes} of "
                    f"{self.quota_bytes} bytes. This was not stored; everything answered before "
                    "is. Compact the backup, or ask the server's operator for more."
                )
            if is_new:
                self._count(1, size_bytes)
        try:
            is_ours = self._bucket.put_new(key, content)
        except BaseException:
            if is_new:
                self._take_back(size_bytes)
            raise
        if is_new and not is_ours:
            self._take_back(size_bytes)
        self._has_base |= key.startswith(_BASE) and is_ours
        self.last_stored_at = time.time()
        self.counters.changes += is_ours
        return self._stored(is_ours=is_ours)

    def _take_back(self, size_bytes: int) -> None:
        with self._counting:
            self._count(-1, -size_bytes)

    def _count(self, objects: int, size_bytes: int) -> None:
        self.objects += objects
        self.used_bytes += size_bytes

    def _stored(self, *, is_ours: bool) -> Stored:
        return Stored(is_ours, self.used_bytes, self.quota_bytes)

    def get(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        """A range of an object; `None` if there is none. Raises `StorageError`."""
        self.require_open()
        return self._bucket.read(key, offset_bytes, length_bytes)

    def listing(self, prefix: str, after: str) -> tuple[Sequence[Listed], bool]:
        """The next objects of a listing, and whether more follow. Raises `StorageError`."""
        self.require_open()
        found = [one for one in self._bucket.list(prefix) if one.key > after]
        return found[:MAX_LISTED], len(found) > MAX_LISTED

    def delete(self, keys: Sequence[str]) -> Stored:
        """Removes objects, as far as this node may; durable when this returns.

        Raises:
            StorageError.
        """
        self.require_open()
        for gone in self._bucket.remove(keys):
            self._take_back(gone)
        if any(key.startswith(_BASE) for key in keys):
            self._look_for_base()
        return self._stored(is_ours=True)

    def close(self) -> None:
        """See `Node.close`."""
        self._bucket.close()
