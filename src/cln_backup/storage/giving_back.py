"""Frees the space of large files in steps: freed at once, they would stall other syncs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from typing import Final

_STEP_BYTES: Final = 4 << 20
_PAUSE: Final = 4.0


def close_reader(fd: int) -> None:
    """Closes a file that was open for reading.

    If that frees its space, because the file is unlinked and no other process has it open (only
    then is a lease granted, fcntl(2)), the space is freed piece by piece.
    """
    with contextlib.suppress(OSError):
        if sys.platform == "linux" and os.fstat(fd).st_nlink == 0:
            writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            os.close(fd)
            fd = writable
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            give_back(fd)
    os.close(fd)


def give_back(fd: int) -> None:
    """Shortens a file in steps: freed at once, a large file stalls every sync on its disk."""
    for length_bytes in range(os.fstat(fd).st_size, 0, -_STEP_BYTES):
        started = time.monotonic()
        os.ftruncate(fd, length_bytes)
        time.sleep((time.monotonic() - started) * _PAUSE)
