"""Objects in a bucket of an object store.

A small object is stored as it is, by one request. A large one is stored in parts, under names that
no other process uses, and published as a small object that names them: that one is put if absent.
So neither memory nor the limits of a store's conditional writes depend on the size of a database.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import interruption
from cln_backup.storage.objects import Objects, ObjectStatus, is_name, require_name
from cln_backup.storage.parts import (
    MAGIC,
    MANIFEST_BYTES,
    PART_BYTES,
    Manifest,
    directory_of,
    in_parts,
    manifest_of,
    part_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from typing_extensions import Self

    from cln_backup.storage.bucket import Bucket

_DISCARDED: Final = "discarded"
"""The mark of parts that no object may name any more."""

_BEGUN: Final = "begun"
"""The mark of parts that an object may name, from now on or later."""

_FIRST_READ_BYTES: Final = 1 << 18
_SMALL_READ_BYTES: Final = 4096
"""Less is read alone, such as a header, unless it continues what was read before."""

_AHEAD: Final = 4
"""Parts that are read or written at the same time."""


def may_be_in_parts(size_bytes: int) -> bool:
    """Whether an object of this size may be one that only names the parts of a large one."""
    return size_bytes == MANIFEST_BYTES


class RemoteObjects(Objects):
    """The objects of one backup in a bucket.

    Attributes:
        bucket: where they are.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def where(self, name: str) -> str:
        """See `Objects.where`."""
        return f"{self.bucket.where}/{name}"

    def prepare(self, purpose: str, content: Iterable[bytes]) -> str:
        """See `Objects.prepare`. In parts, some of them at the same time."""
        parts = require_name(f"{purpose}-{os.urandom(12).hex()}")
        try:
            with ThreadPoolExecutor(_AHEAD) as pool:
                waiting: list[Future[None]] = []
                for index, part in enumerate(in_parts(content)):
                    interruption.check()
                    waiting.append(pool.submit(self._put_part, part_key(parts, index), part))
                    if len(waiting) >= _AHEAD:
                        waiting.pop(0).result()
                for one in waiting:
                    one.result()
        except BaseException:
            self._remove_parts(parts)
            raise
        return parts

    def _put_part(self, key: str, part: bytes) -> None:
        if not self.bucket.put_new(key, part):
            raise StorageError(f"{self.where(key)} was changed by another process.")

    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:  # noqa: ARG002
        """See `Objects.publish`. A prepared object of which a part is missing is refused.

        If the answer is lost for good, the object may get its name later: so its parts stay, until
        `remove_abandoned`.
        """
        require_name(name)
        self._require_whole(prepared)
        begun = directory_of(prepared) + _BEGUN
        self.bucket.put_new(begun, _BEGUN.encode())
        try:
            size_bytes = self._require_whole(prepared)
        except StorageError:
            self.bucket.delete([begun])
            raise
        try:
            self._put(name, Manifest(prepared, size_bytes).pack())
        except AlreadyExists:
            self.bucket.delete([begun])
            raise
        try:
            self._require_whole(prepared)
        except StorageError:
            self.bucket.delete([name])
            raise

    def _require_whole(self, prepared: str) -> int:
        """The size of a prepared object. Raises `StorageError` if a part is missing."""
        directory = directory_of(prepared)
        found = [one for one in self.bucket.list(directory) if one.key != directory + _BEGUN]
        size_bytes = sum(one.size_bytes for one in found)
        whole = [part_key(prepared, index) for index in range(-(-size_bytes // PART_BYTES) or 1)]
        if [one.key for one in found] != whole:
            raise StorageError(f"{self.where(prepared)}, which was prepared, is gone; try again.")
        return size_bytes

    def _put(self, name: str, content: bytes) -> None:
        if not self.bucket.put_new(name, content):
            raise AlreadyExists(f"{self.where(name)} exists and was not changed.")

    def prepared(self, purpose: str = "") -> Sequence[str]:
        """See `Objects.prepared`."""
        found = {one.key.split("/")[1] for one in self.bucket.list(directory_of())}
        found = {parts for parts in found if parts.startswith(purpose)}
        if found:
            found.difference_update(self._published())
        return sorted(found)

    def has_parts(self, prepared: str) -> bool:
        """Whether the parts of an object are there; it may have been published."""
        return bool(self.bucket.list(directory_of(prepared)))

    def remove_abandoned(self, before: float) -> None:
        """Removes prepared objects of which all was stored before, in seconds since 1970.

        Also those that may have been published at that time, and were not.
        """
        newest: dict[str, float] = {}
        for one in self.bucket.list(directory_of()):
            parts = one.key.split("/")[1]
            newest[parts] = max(newest.get(parts, 0.0), one.stored_at)
        old = {parts for parts, stored_at in newest.items() if stored_at < before}
        for parts in sorted(old.difference(self._published()) if old else ()):
            self._discard(parts, even_if_begun=True)

    @staticmethod
    def is_in_parts(content: bytes) -> bool:
        """Whether an object's content only names the parts of a large one."""
        return manifest_of(content) is not None

    def _published(self) -> Iterator[str]:
        """The names of the parts of all large objects."""
        for one in self.bucket.list():
            if one.size_bytes == MANIFEST_BYTES and is_name(one.key):
                content = self.bucket.read(one.key, 0, MANIFEST_BYTES)
                manifest = None if content is None else manifest_of(content.content)
                if manifest is not None:
                    yield manifest.parts

    def put_new(
        self, name: str, purpose: str, content: Iterable[bytes], *, op: str, withdraws: bool = True
    ) -> None:
        """See `Objects.put_new`. A small object is stored by one request.

        If the answer of the last request is lost for good, the parts of a large one stay, since
        the object may have its name.
        """
        require_name(name)
        pieces = in_parts(content)
        first = next(pieces)
        second = next(pieces, None)
        if second is None and not first.startswith(MAGIC):
            self._put(name, first)
            return

        def again() -> Iterator[bytes]:
            yield first
            if second is not None:
                yield second
            yield from pieces

        prepared = self.prepare(purpose, again())
        try:
            self.publish(prepared, name, op=op, withdraws=withdraws)
        except AlreadyExists:
            self.discard(prepared)
            raise

    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Objects.get`."""
        with self.open(name, op="read") as source:
            return source.read_at(offset_bytes, length_bytes)

    def status(self, name: str) -> ObjectStatus | None:
        """See `Objects.status`."""
        found = self.bucket.read(require_name(name), 0, MANIFEST_BYTES)
        if found is None:
            return None
        manifest = manifest_of(found.content) if found.size_bytes == MANIFEST_BYTES else None
        size_bytes = found.size_bytes if manifest is None else manifest.size_bytes
        return ObjectStatus(size_bytes, found.stored_at)

    def list(self, prefix: str = "") -> Sequence[str]:
        """See `Objects.list`."""
        return [
            one.key for one in self.bucket.list() if one.key.startswith(prefix) and is_name(one.key)
        ]

    def delete(self, name: str, *, op: str) -> None:  # noqa: ARG002
        """See `Objects.delete`. The parts of a large object follow its name."""
        found = self.bucket.read(require_name(name), 0, MANIFEST_BYTES)
        if found is None:
            return
        manifest = manifest_of(found.content) if found.size_bytes == MANIFEST_BYTES else None
        self.bucket.delete([name])
        if manifest is not None:
            self._remove_parts(manifest.parts)

    def discard(self, prepared: str, *, in_steps: bool = False) -> None:  # noqa: ARG002
        """See `Objects.discard`. Removes nothing that was published, or may be.

        The mark is stored before the look for the beginning of a publication, and `publish` looks
        for a mark after it stored that: so one of the two sees the other.
        """
        self._discard(prepared, even_if_begun=False)

    def _discard(self, prepared: str, *, even_if_begun: bool) -> None:
        directory = directory_of(prepared)
        if not self.bucket.list(directory):
            return
        mark = directory + _DISCARDED
        self.bucket.put_new(mark, os.urandom(16))
        begun = self.bucket.status(directory + _BEGUN) is not None
        if (begun and not even_if_begun) or prepared in self._published():
            self.bucket.delete([mark])
        else:
            self._remove_parts(prepared)

    def _remove_parts(self, parts: str) -> None:
        self.bucket.delete([one.key for one in self.bucket.list(directory_of(parts))])

    def open(self, name: str, *, op: str, anew: bool = False) -> RemoteSource:  # noqa: ARG002
        """See `Objects.open`."""
        require_name(name)
        return RemoteSource(self, name)


class RemoteSource:
    """The bytes of an object; of one in parts, the next parts are read ahead."""

    def __init__(self, objects: RemoteObjects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._start: bytes | None = None
        self._size_bytes = 0
        self._parts: str | None = None
        self._kept: dict[int, bytes] = {}
        self._coming: dict[int, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._follows_at = -1

    def _look(self) -> None:
        if self._start is not None or self._parts is not None:
            return
        found = self._objects.bucket.read(self._name, 0, _FIRST_READ_BYTES)
        manifest = None
        if found is None:
            if not self._read_prepared():
                raise StorageError(f"{self._objects.where(self._name)} does not exist.")
            return
        if found.size_bytes == MANIFEST_BYTES:
            manifest = manifest_of(found.content)
        if manifest is None:
            self._start, self._size_bytes = found.content, found.size_bytes
        else:
            self._parts, self._size_bytes = manifest

    def _read_prepared(self) -> bool:
        """Whether the name is of a prepared object."""
        listed = self._objects.bucket.list(directory_of(self._name))
        found = [one.size_bytes for one in listed if one.key[-1].isdigit()]  # without marks
        if found:
            self._parts, self._size_bytes = self._name, sum(found)
        return bool(found)

    def size_bytes(self) -> int:
        """See `Source.size_bytes`."""
        self._look()
        return self._size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Source.read_at`."""
        self._look()
        end_bytes = min(offset_bytes + length_bytes, self._size_bytes)
        if offset_bytes >= end_bytes:
            return b""
        if self._parts is None:
            assert self._start is not None
            if end_bytes <= len(self._start):
                return self._start[offset_bytes:end_bytes]
            return self._range(self._name, offset_bytes, end_bytes - offset_bytes)
        in_order, self._follows_at = offset_bytes == self._follows_at, end_bytes
        first, last = offset_bytes // PART_BYTES, (end_bytes - 1) // PART_BYTES
        if (
            first == last
            and end_bytes - offset_bytes <= _SMALL_READ_BYTES
            and not (in_order or first in self._kept)
        ):
            key, start = part_key(self._parts, first), first * PART_BYTES
            return self._range(key, offset_bytes - start, end_bytes - offset_bytes)
        found = b"".join(self._part(index) for index in range(first, last + 1))
        start = first * PART_BYTES
        return found[offset_bytes - start : end_bytes - start]

    def _range(self, key: str, offset_bytes: int, length_bytes: int) -> bytes:
        found = self._objects.bucket.read(key, offset_bytes, length_bytes)
        if found is None or len(found.content) != length_bytes:
            raise StorageError(
                f"{self._objects.where(key)} was removed while it was read; try again."
            )
        return found.content

    def _part(self, index: int) -> bytes:
        if index not in self._kept:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AHEAD)
            count = -(-self._size_bytes // PART_BYTES)
            for ahead in range(index, min(count, index + _AHEAD)):
                if ahead not in self._coming and ahead not in self._kept:
                    self._coming[ahead] = self._pool.submit(self._fetch, ahead)
            found = self._coming.pop(index).result()
            for old in [kept for kept in self._kept if kept != index - 1]:
                del self._kept[old]
            self._kept[index] = found
        return self._kept[index]

    def _fetch(self, index: int) -> bytes:
        assert self._parts is not None
        length = min(PART_BYTES, self._size_bytes - index * PART_BYTES)
        return self._range(part_key(self._parts, index), 0, length)

    def close(self) -> None:
        """See `Source.close`."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._coming.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
