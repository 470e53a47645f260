"""Tells whether a path still leads to an open file, and its size, without a look at its times.

Since Linux 6.13 a file whose times were looked at gets new ones with its next write, and the next
sync has to store those too (docs.kernel.org/filesystems/multigrain-ts.html); measured, the sync of
one block then takes twice as long. Python's `os.stat` always looks at them; statx(2) does as asked.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD: Final = -100
_STATX_INO: Final = 0x100
_STATX_SIZE: Final = 0x200
_STATX: Final = struct.Struct("=I28xQQ88xII")
"""The start of `struct statx`: what it holds, the inode, the size, the device's two numbers."""
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


class _Found(NamedTuple):
    device: int
    inode: int
    size_bytes: int


def _watched(path: str, asked: int) -> Callable[[], _Found | None]:
    """What tells where the path leads to now, or `None`."""
    statx = _statx()
    if statx is None:
        return lambda: None
    from ctypes import create_string_buffer

    encoded = os.fsencode(path)
    buffer = create_string_buffer(_STATX_BYTES)

    def look() -> _Found | None:
        if statx(_AT_FDCWD, encoded, 0, asked, buffer) != 0:
            return None
        held, inode, size, major, minor = _STATX.unpack_from(buffer)
        return _Found(os.makedev(major, minor), inode, size) if held & asked == asked else None

    return look


class PathWatch:
    """A path, and the open file that it led to."""

    def __init__(self, path: str, fd: int, *, size: bool = False) -> None:
        """Watches the path; `size` is for those who will ask for it."""
        status = os.fstat(fd)
        self._file = status.st_dev, status.st_ino
        self._path = path
        self._look = _watched(path, _STATX_INO | _STATX_SIZE if size else _STATX_INO)

    def leads_to_file(self) -> bool:
        """Whether the path leads to the file now."""
        return self._found() is not None

    def size_bytes(self) -> int | None:
        """Size of the file as the path shows it; `None` where it does not lead to it."""
        found = self._found()
        return None if found is None else found.size_bytes

    def _found(self) -> _Found | None:
        found = self._look()
        if found is None:  # nothing is there, or the system has no statx for us
            try:
                status = os.stat(self._path)
            except OSError:
                return None
            found = _Found(status.st_dev, status.st_ino, status.st_size)
        return found if found[:2] == self._file else None
