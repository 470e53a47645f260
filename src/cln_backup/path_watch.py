"""Tells whether a path still leads to an open file, without a look at the file's times.

Since Linux 6.13 a file whose times were looked at gets new ones with its next write, and the next
sync has to store those too (docs.kernel.org/filesystems/multigrain-ts.html); measured, the sync of
one block then takes twice as long. Python's `os.stat` always looks at them; statx(2) does as asked.
"""

from __future__ import annotations

import ctypes
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


def _find_statx() -> Callable[..., int] | None:
    """The C library's `statx`, where there is one."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).statx
    except (OSError, AttributeError):
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_char_p,
    )
    function.restype = ctypes.c_int
    return function


_statx = _find_statx()


class PathWatch:
    """A path, and the open file that it led to."""

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self._file = status.st_dev, status.st_ino
        self._path = path
        self._encoded = os.fsencode(path)
        self._buffer = ctypes.create_string_buffer(_STATX_BYTES)

    def leads_to_file(self) -> bool:
        """Whether the path leads to the file now."""
        if (
            _statx is not None
            and _statx(_AT_FDCWD, self._encoded, 0, _STATX_INO, self._buffer) == 0
        ):
            held, inode, major, minor = _STATX.unpack_from(self._buffer)
            if held & _STATX_INO:
                return (os.makedev(major, minor), inode) == self._file
        try:  # also where a sandbox lets no statx through
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file
