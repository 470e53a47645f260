"""The system call sync_file_range(2), which Python does not have, through the C library."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITE: Final = 2


@functools.cache
def _function() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        from ctypes import CDLL, c_int, c_int64, c_uint

        found = CDLL(None).sync_file_range
    except (ImportError, OSError, AttributeError):
        return None
    found.argtypes = (c_int, c_int64, c_int64, c_uint)
    found.restype = c_int
    return found


def begin(fd: int, offset_bytes: int = 0, length_bytes: int = 0) -> None:
    """Makes the system start to write a part of a file to its disk; a length of 0: up to the end.

    Waits for nothing and makes nothing durable: a later sync has less left to do, and reports the
    errors. Does nothing if the system does not support it.
    """
    function = _function()
    if function is not None:
        function(fd, offset_bytes, length_bytes, _WRITE)
