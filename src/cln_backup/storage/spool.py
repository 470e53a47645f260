"""A temporary file (unlinked), for data too large for memory that must be complete when used."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from cln_backup.storage import fsio, scratch
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_LOOK_EVERY_BYTES = 1 << 24


class Spool:
    """Bytes that are written in pieces and read in pieces, repeatedly; a `Snapshot`.

    Raises `StorageError` if the disk fails, and before it uses the reserve that nodes need for
    their changes. Nothing is left when it is closed, or when the process dies.
    """

    def __init__(self, directory: str | None = None) -> None:
        """Opens the file in a directory; by default in the system's one for temporary files."""
        self._directory = directory or scratch.temporary()
        with storage_errors("make a temporary file in", self._directory):
            self._fd, path = tempfile.mkstemp(prefix=".spool-", dir=self._directory)
        fsio.remove(path, op="unlink spool")
        self._look_at_bytes = 0
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Adds bytes at the end; not durable."""
        if self.size_bytes >= self._look_at_bytes:
            scratch.require_room(self._directory, op="write spool", needed_bytes=len(data))
            self._look_at_bytes = self.size_bytes + _LOOK_EVERY_BYTES
        self.size_bytes = fsio.write_at(self._fd, [data], self.size_bytes, op="write spool")

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` on, in order."""
        return fsio.chunks_at(self._fd, self.size_bytes - start, start, op="read spool")

    def close(self) -> None:
        """Removes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
