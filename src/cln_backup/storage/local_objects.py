"""Objects that are the files of one directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from cln_backup.storage import directories, fsio, giving_back
from cln_backup.storage.objects import Objects, ObjectStatus, is_name, require_name
from cln_backup.storage.os_errors import storage_errors
from cln_backup.storage.source import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUILDING: Final = "building"
_SYNC_EVERY_BYTES: Final = 1 << 23
"""Syncs after so many bytes, so that no sync on this disk has to wait for much more."""


class LocalObjects(Objects):
    """The files of an existing directory; only the owner can read each.

    A prepared object has a name such as `building.PURPOSE-PID`. The directory may have other
    files.
    """

    def __init__(self, directory: str, *, building: str = BUILDING) -> None:
        """`building` is the prefix of the names of prepared objects."""
        self.directory = directory
        self._building = building

    def path_of(self, name: str) -> str:
        """The path of an object's file. Raises `ValueError`."""
        return os.path.join(self.directory, require_name(name))

    def where(self, name: str) -> str:
        """See `Objects.where`."""
        return os.path.join(self.directory, name)

    def prepare(self, purpose: str, content: Iterable[bytes]) -> str:
        """See `Objects.prepare`."""
        built = self.path_of(self._building)
        fd, path = fsio.create_beside(built, purpose, op=f"create {purpose}")
        try:
            end = synced = 0
            for piece in content:
                end = fsio.write_at(fd, [piece], end, op=f"write {purpose}")
                if end - synced >= _SYNC_EVERY_BYTES:
                    fsio.sync(fd, op=f"sync part of {purpose}")
                    synced = end
            fsio.sync(fd, op=f"sync {purpose}")
        except BaseException:
            fsio.remove(path, op=f"remove unfinished {purpose}")
            raise
        finally:
            os.close(fd)
        return os.path.basename(path)

    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:
        """See `Objects.publish`."""
        fsio.publish(self.path_of(prepared), self.path_of(name), op=op, withdraws=withdraws)

    def prepared(self, purpose: str = "") -> Sequence[str]:
        """See `Objects.prepared`."""
        start = f"{self._building}.{purpose}"
        return [name for name in self._names() if name.startswith(start)]

    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Objects.get`."""
        fd = fsio.open_existing(self.path_of(name), writable=False, op="open")
        try:
            return fsio.read_at(fd, length_bytes, offset_bytes, op="read")
        finally:
            os.close(fd)

    def status(self, name: str) -> ObjectStatus | None:
        """See `Objects.status`."""
        path = self.path_of(name)
        with storage_errors("look at", path), contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            return ObjectStatus(found.st_size, found.st_mtime)
        return None

    def list(self, prefix: str = "") -> Sequence[str]:
        """See `Objects.list`."""
        building = f"{self._building}."
        return [
            name
            for name in self._names()
            if name.startswith(prefix) and is_name(name) and not name.startswith(building)
        ]

    def _names(self) -> Sequence[str]:
        return directories.names(self.directory, op="list backup")

    def delete(self, name: str, *, op: str) -> None:
        """See `Objects.delete`."""
        fsio.remove(self.path_of(name), op=op)
        fsio.sync_directory(self.directory, op=op)

    def discard(self, prepared: str, *, in_steps: bool = False) -> None:
        """See `Objects.discard`."""
        path = self.path_of(prepared)
        if in_steps and os.path.exists(path):
            fd = fsio.open_existing(path, writable=True, op="remove unfinished file")
            fsio.remove(path, op="remove unfinished file")
            giving_back.close_reader(fd)
        else:
            fsio.remove(path, op="remove unfinished file")

    def open(self, name: str, *, op: str, anew: bool = False) -> FileSource:
        """See `Objects.open`. The file can be read to the end even if it is unlinked."""
        source = FileSource(fsio.open_existing(self.path_of(name), writable=False, op=op))
        if anew:
            source.forget_cached()
        return source

    def open_held(self, name: str, *, op: str) -> FileSource | None:
        """As `open`; until it is closed, `delete_unheld` does not remove the object.

        `None` if the object was unlinked meanwhile. If the file system has no locks, the object is
        not held.
        """
        path = self.path_of(name)
        fd = fsio.open_existing(path, writable=False, op=op)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH)
        if os.path.exists(path):
            return FileSource(fd)
        os.close(fd)
        return None

    def delete_unheld(self, name: str, *, op: str) -> bool:
        """Removes an object that no process holds; returns whether it did. Not durable.

        If the file system has no locks, nothing is removed. The space of a large file is freed in
        pieces.
        """
        # NFS grants an exclusive lock only on files open for writing.
        fd = fsio.open_existing(self.path_of(name), writable=True, op=op)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fsio.remove(self.path_of(name), op=op)
        except OSError:
            return False
        finally:
            giving_back.close_reader(fd)
        return True
