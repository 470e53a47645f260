"""Tells whether a path still leads to an open file, without a look at the file's times.

Since Linux 6.13 a file whose times were looked at gets new ones with its next write, and the next
sync has to store those too (docs.kernel.org/filesystems/multigrain-ts.html); measured, the sync of
one block then takes twice as long. Python's `os.stat` always looks at them; statx(2) does as asked.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD: Final = -100
_STATX_INO: Final = 0x100
_STATX: Final = struct.Struct("=I28xQ96xII")
"""The start of `struct statx`: what it holds, the inode, the device's two numbers."""
_STATX_BYTES: Final = 256


@functools.cache
def _statx() -> Callable[..., int] | None:
    """The C library's `statx`, where there is one, and a Python that can call it."""
    if sys.platform != "linux":
        return None
    try:
        from ctypes import CDLL, c_char_p, c_int, c_uint, c_void_p

        function = CDLL(None).statx
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = (c_int, c_char_p, c_int, c_uint, c_void_p)
    function.restype = c_int
    return function


def _watched(path: str) -> Callable[[], tuple[int, int] | None]:
    """What tells the device and the inode that the path leads to, or `None`."""
    statx = _statx()
    if statx is None:
        return lambda: None
    from ctypes import create_string_buffer

    encoded = os.fsencode(path)
    buffer = create_string_buffer(_STATX_BYTES)

    def look() -> tuple[int, int] | None:
        if statx(_AT_FDCWD, encoded, 0, _STATX_INO, buffer) != 0:
            return None
        held, inode, major, minor = _STATX.unpack_from(buffer)
        return (os.makedev(major, minor), inode) if held & _STATX_INO else None

    return look


class PathWatch:
    """A path, and the open file that it led to."""

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self._file = status.st_dev, status.st_ino
        self._path = path
        self._look = _watched(path)

    def leads_to_file(self) -> bool:
        """Whether the path leads to the file now."""
        found = self._look()
        if found is None:  # nothing stands there, or the system has no statx for us
            try:
                status = os.stat(self._path)
            except OSError:
                return False
            found = status.st_dev, status.st_ino
        return found == self._file
