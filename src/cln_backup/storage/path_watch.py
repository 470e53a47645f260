"""Tells whether a path still leads to an open file, and its size, without reading its times.

Since Linux 6.13 a file whose times were read gets new ones with its next write, and the next sync
has to store those too (docs.kernel.org/filesystems/multigrain-ts.html); measured, the sync of one
block then takes twice as long. Python's `os.stat` always reads them; statx(2) only on request.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING, Final

from cln_backup.storage import statx

if TYPE_CHECKING:
    from collections.abc import Callable

_STATX: Final = struct.Struct("=I28xQQ88xII")
"""The start of `struct statx`: its mask, the inode, the size, the device's two numbers."""


def _look(path: str, asked: int, found: bytearray) -> Callable[[], int] | None:
    """A call that looks at the path and returns 0 if it has filled `found`; `None` without statx.

    The node waits for it, so everything that stays the same is prepared.
    """
    function = statx.function()
    if function is None:
        return None
    from ctypes import c_char

    buffer = (c_char * len(found)).from_buffer(found)
    return functools.partial(function, statx.AT_FDCWD, os.fsencode(path), 0, asked, buffer)


class PathWatch:
    """A path, and the open file that it led to."""

    def __init__(self, path: str, fd: int, *, size: bool = False) -> None:
        """Watches the path; `size` if the size will be asked for."""
        status = os.fstat(fd)
        device = status.st_dev
        self._file = status.st_ino, os.major(device), os.minor(device)
        self._path = path
        self._asked = statx.INODE | statx.SIZE if size else statx.INODE
        self._found = bytearray(statx.SIZE_BYTES)
        self._look = _look(path, self._asked, self._found)

    def leads_to_file(self) -> bool:
        """Whether the path leads to the file now."""
        return self.size_bytes() is not None

    def size_bytes(self) -> int | None:
        """Size of the file at the path; `None` if the path does not lead to it."""
        if self._look is not None and self._look() == 0:
            held, inode, size, major, minor = _STATX.unpack_from(self._found)
            if held & self._asked == self._asked:
                return size if (inode, major, minor) == self._file else None
        try:  # nothing is there, or the system has no statx for us
            status = os.stat(self._path)
        except OSError:
            return None
        device = status.st_dev
        same = (status.st_ino, os.major(device), os.minor(device)) == self._file
        return status.st_size if same else None
