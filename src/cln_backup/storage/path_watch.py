"""Tells whether a path still leads to an open file, and its size, without reading its times.

Since Linux 6.13 a file whose times were read gets new ones with its next write, and the next sync
has to store those too (docs.kernel.org/filesystems/multigrain-ts.html); measured, the sync of one
block then takes twice as long. Python's `os.stat` always reads them; statx(2) only on request.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from cln_backup.storage import statx

if TYPE_CHECKING:
    from collections.abc import Callable

_STATX: Final = struct.Struct("=I28xQQ88xII")
"""The start of `struct statx`: its mask, the inode, the size, the device's two numbers."""


_File = tuple[int, int]
"""The device and the inode."""


def _watched(path: str, asked: int) -> Callable[[], tuple[_File, int] | None]:
    """A function that returns the file that the path leads to now, and its size, or `None`."""
    function = statx.function()
    if function is None:
        return lambda: None
    from ctypes import create_string_buffer

    encoded = os.fsencode(path)
    buffer = create_string_buffer(statx.SIZE_BYTES)

    def look() -> tuple[_File, int] | None:
        if function(statx.AT_FDCWD, encoded, 0, asked, buffer) != 0:
            return None
        held, inode, size, major, minor = _STATX.unpack_from(buffer)
        return ((os.makedev(major, minor), inode), size) if held & asked == asked else None

    return look


class PathWatch:
    """A path, and the open file that it led to."""

    def __init__(self, path: str, fd: int, *, size: bool = False) -> None:
        """Watches the path; `size` if the size will be asked for."""
        status = os.fstat(fd)
        self._file = status.st_dev, status.st_ino
        self._path = path
        self._look = _watched(path, statx.INODE | statx.SIZE if size else statx.INODE)

    def leads_to_file(self) -> bool:
        """Whether the path leads to the file now."""
        return self.size_bytes() is not None

    def size_bytes(self) -> int | None:
        """Size of the file at the path; `None` if the path does not lead to it."""
        found = self._look()
        if found is None:  # nothing is there, or the system has no statx for us
            try:
                status = os.stat(self._path)
            except OSError:
                return None
            found = (status.st_dev, status.st_ino), status.st_size
        return found[1] if found[0] == self._file else None
