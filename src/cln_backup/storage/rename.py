"""The system call renameat2(2), which Python does not have, through the C library."""

from __future__ import annotations

import errno
import functools
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD: Final = -100
_NOREPLACE: Final = 1
_CANNOT: Final = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM))


@functools.cache
def _function() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        from ctypes import CDLL, c_char_p, c_int, c_uint

        found = CDLL(None, use_errno=True).renameat2
    except (ImportError, OSError, AttributeError):
        return None
    found.argtypes = (c_int, c_char_p, c_int, c_char_p, c_uint)
    found.restype = c_int
    return found


def without_replacing(path: str, name: str) -> bool:
    """Renames a file atomically; never replaces an existing file.

    Returns `False`, with nothing changed, if this system or the file system does not support it.
    Raises `OSError`, also `FileExistsError`.
    """
    function = _function()
    if function is None:
        return False
    names = os.fsencode(path), os.fsencode(name)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _NOREPLACE) == 0:
        return True
    from ctypes import get_errno

    number = get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), path, None, name)
