"""A bucket that is a directory of this machine: the objects are its files."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import directories, fsio, rename
from cln_backup.storage.bucket import FENCE_BYTES, Bucket, Found, Listed, is_directory, is_key
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_UNFINISHED: Final = ".unfinished"
_REMOVED: Final = "removed"
_OLD_S: Final = 3600.0


def make(path: str) -> None:
    """Makes the directory; durable when it returns. Raises `AlreadyExists` for a file."""
    directories.make(path, op="create backup")


class LocalBucket(Bucket):
    """The files below a directory; only the owner can read each."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 0.0)
        self._path = path.rstrip("/") or "/"
        self._held: int | None = None
        self._holding = threading.Lock()

    def _hold(self) -> int:
        """A descriptor of the directory, which keeps its disk from being unmounted."""
        with self._holding:
            if self._held is None:
                with storage_errors("open backup", self._path):
                    self._held = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._held

    def _require_same_directory(self) -> None:
        """Makes sure that the path leads to the directory that was there before."""
        with storage_errors("look at backup", self._path):
            held, now = os.fstat(self._hold()), os.stat(self._path)
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise StorageError(
                f"{self._path} was moved, removed or replaced while it was used. Nothing more was "
                "written. Put it back where it was, or mount its disk, and start again."
            )

    def _path_of(self, key: str) -> str:
        if not is_key(key):
            raise ValueError(f"invalid key: {key!r}")
        return os.path.join(self._path, key)

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Bucket.put_new`."""
        path = self._path_of(key)
        self._require_same_directory()
        directory = os.path.dirname(path)
        if "/" in key:
            directories.make_with_parents(directory, op="store object")
            self._sync_above(directory)
        built = os.path.join(self._path, _UNFINISHED)
        # A name that no other thread has: each removes its own.
        unique = f"object-{os.urandom(8).hex()}"
        fd, unfinished = fsio.create_beside(built, unique, op="store object")
        try:
            fsio.write_at(fd, [content], 0, op="write object")
            fsio.sync(fd, op="sync object")
            fsio.publish(unfinished, path, op="store object", withdraws=False)
        except AlreadyExists:
            found = self.read(key, 0, len(content) + 1)
            if found is None or found.content != content:
                return False
            fsio.sync_directory(directory, op="store object")
        finally:
            os.close(fd)
            fsio.remove(unfinished, op="remove unfinished object")
        return True

    def _sync_above(self, directory: str) -> None:
        """Makes the names of directories durable, also those that another process has just made."""
        while directory != self._path:
            directory = os.path.dirname(directory)
            fsio.sync_directory(directory, op="store object")

    def read(self, key: str, offset_bytes: int, length_bytes: int) -> Found | None:
        """See `Bucket.read`."""
        path = self._path_of(key)
        if not _exists(path, stat.S_ISREG):
            return None
        try:
            fd = fsio.open_existing(path, writable=False, op="read object")
        except StorageError:
            if _exists(path, stat.S_ISREG):
                raise
            return None  # it was removed at this moment
        try:
            with storage_errors("read object", path):
                status = os.fstat(fd)
            content = fsio.read_at(fd, length_bytes, offset_bytes, op="read object")
        finally:
            os.close(fd)
        return Found(content, status.st_size, status.st_mtime)

    def status(self, key: str) -> Listed | None:
        """See `Bucket.status`."""
        found = self.read(key, 0, 0)
        return None if found is None else Listed(key, found.size_bytes, found.stored_at)

    def list(self, prefix: str = "") -> Sequence[Listed]:
        """See `Bucket.list`."""
        if not is_directory(prefix):
            raise ValueError(f"invalid prefix: {prefix!r}")
        return sorted(self._walk(prefix))

    def _walk(self, prefix: str) -> Iterator[Listed]:
        directory = os.path.join(self._path, prefix)
        if not _exists(directory, stat.S_ISDIR):
            return
        self._hold()
        with storage_errors("list backup", directory), os.scandir(directory) as entries:
            for entry in entries:
                key = prefix + entry.name
                if not is_key(key):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it was removed at this moment
                    if entry.is_dir(follow_symlinks=False):
                        if is_directory(f"{key}/"):
                            yield from self._walk(f"{key}/")
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield Listed(key, status.st_size, status.st_mtime)

    def remove_unfinished(self) -> None:
        """Removes what writes that were interrupted long ago have left."""
        for name in directories.names(self._path, op="list backup"):
            path = os.path.join(self._path, name)
            if name.startswith(f"{_UNFINISHED}.") and _is_old(path):
                fsio.remove(path, op="remove unfinished object")

    def delete(self, keys: Sequence[str]) -> None:
        """See `Bucket.delete`."""
        self.remove(keys)

    def remove(self, keys: Sequence[str]) -> Sequence[int]:
        """As `delete`; returns the size of each object that was there."""
        sizes: list[int] = []
        changed: set[str] = set()
        for key in keys:
            path = self._path_of(key)
            with storage_errors("remove object", path), contextlib.suppress(FileNotFoundError):
                size_bytes = os.stat(path).st_size
                os.unlink(path)
                sizes.append(size_bytes)
            changed.add(os.path.dirname(path))
        self._sync(changed)
        return sizes

    def close(self) -> None:
        """See `Bucket.close`."""
        with self._holding:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def _sync(self, changed: set[str]) -> None:
        """Makes removals durable, and removes directories that are empty now."""
        for directory in changed:
            if os.path.isdir(directory):
                fsio.sync_directory(directory, op="remove object")
        for directory in changed - {self._path}:
            with contextlib.suppress(OSError):  # not empty, or removed by another process
                os.rmdir(directory)


class RetainingBucket(LocalBucket):
    """A directory whose objects stay for some days after they were removed.

    They are below `removed/` then, where a person can get them back. Until they are gone for good,
    no object can be stored under their names again; and a fence is never removed.
    """

    def __init__(self, path: str, retain_days: int) -> None:
        super().__init__(path)
        self._retain_s = retain_days * 86_400.0
        self._removed = LocalBucket(os.path.join(path, _REMOVED))

    def everything(self) -> Sequence[Listed]:
        """All objects, also those that were removed and are retained."""
        return [*self.list(), *self._removed.list()]

    def _path_of(self, key: str) -> str:
        if key.partition("/")[0] == _REMOVED:
            raise StorageError(f"The key {key} is reserved. Nothing was stored or removed.")
        return super()._path_of(key)

    def list(self, prefix: str = "") -> Sequence[Listed]:
        """See `Bucket.list`."""
        if prefix.startswith(f"{_REMOVED}/"):
            return []
        return [one for one in super().list(prefix) if not one.key.startswith(f"{_REMOVED}/")]

    def put_new(self, key: str, content: bytes) -> bool:
        """See `Bucket.put_new`."""
        if self._retain_s and self._removed.status(key) is not None:
            return False
        return super().put_new(key, content)

    def remove(self, keys: Sequence[str]) -> Sequence[int]:
        """See `LocalBucket.remove`; only the sizes of what is gone for good."""
        if not self._retain_s:
            return super().remove(keys)
        changed: set[str] = set()
        for key in keys:
            path = self._path_of(key)
            status = self.status(key)
            if status is None or status.size_bytes == FENCE_BYTES:
                continue
            kept = os.path.join(self._path, _REMOVED, key)
            directories.make_with_parents(os.path.dirname(kept), op="remove object")
            if not _moved(path, kept):
                continue
            fsio.sync_directory(os.path.dirname(kept), op="remove object")
            changed.add(os.path.dirname(path))
        self._sync(changed)
        before = time.time() - self._retain_s
        return self._removed.remove(
            [one.key for one in self._removed.list() if one.stored_at < before]
        )


def _moved(path: str, kept: str) -> bool:
    """Moves an object to a free name. `False` if the name is taken, or the object is gone.

    The name is taken if the object was stored while another one with its key was being removed.
    That one is the history, and is never replaced.
    """
    with storage_errors("remove object", path):
        try:
            os.utime(path)
            if not rename.without_replacing(path, kept):
                if os.path.lexists(kept):
                    return False
                os.rename(path, kept)
        except (FileExistsError, FileNotFoundError):
            return False
    return True


def _exists(path: str, is_kind: Callable[[int], bool]) -> bool:
    """Whether there is a file of a kind. Raises `StorageError` if that cannot be found out."""
    with (
        storage_errors("look at", path),
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
    ):
        return is_kind(os.stat(path).st_mode)
    return False


def _is_old(path: str) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - os.stat(path).st_mtime > _OLD_S
    return False
