"""The system call statx(2), which Python does not have, through the C library."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

AT_FDCWD: Final = -100
SIZE_BYTES: Final = 256
"""Size of `struct statx`, whose first four bytes say which fields the system has filled in."""

INODE: Final = 0x100
SIZE: Final = 0x200
UNIQUE_MOUNT_ID: Final = 0x4000
"""Linux 6.8 and later; unique until the machine is restarted."""


@functools.cache
def function() -> Callable[..., int] | None:
    """The C library's `statx`; `None` if there is none, or this Python cannot call it."""
    if sys.platform != "linux":
        return None
    try:
        from ctypes import CDLL, c_char_p, c_int, c_uint, c_void_p

        found = CDLL(None).statx
    except (ImportError, OSError, AttributeError):
        return None
    found.argtypes = (c_int, c_char_p, c_int, c_uint, c_void_p)
    found.restype = c_int
    return found
