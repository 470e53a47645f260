"""A nameless file on disk, for what is too large to hold and must be whole before it is used."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from cln_backup import fsio
from cln_backup.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self


class Spool:
    """Bytes that come in pieces and go out in pieces, as often as wanted; a `Snapshot`.

    Raises `StorageError` when the disk is full or fails. Nothing is left when it is closed, or
    when the process dies.
    """

    def __init__(self, directory: str | None = None) -> None:
        """Opens the file in a directory; by default in the one for temporary files."""
        try:
            self._fd, path = tempfile.mkstemp(prefix=".spool-", dir=directory)
        except OSError as error:
            raise StorageError(f"Cannot make a temporary file: {error}") from error
        os.unlink(path)
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Adds bytes at the end; not durable."""
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


def free_bytes(directory: str) -> int:
    """Room on the disk of a directory, for a user without privileges. Raises `StorageError`."""
    try:
        figures = os.statvfs(directory)
    except OSError as error:
        raise StorageError(f"Cannot read the free space of {directory}: {error}") from error
    return figures.f_bavail * figures.f_frsize
