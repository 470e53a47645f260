"""Waits for a change of files by another process: inotify(7), and polling with growing pauses.

Not every file system reports changes that another machine makes, so polling is needed anyway.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import TYPE_CHECKING, Final

from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 3.0
_BETWEEN_LOOKS_S: Final = 0.005
"""The minimum time between two looks, however frequent the changes."""

_MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100
_EVENTS: Final = _MODIFY | _MOVED_TO | _CREATE
_EVENT_BYTES: Final = 4096


def wait_until(
    happened: Callable[[], bool],
    timeout_s: float,
    directory: str | None,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> bool:
    """Waits until something has happened, or for `timeout_s`; returns whether it has.

    `happened` is called at once, after each change of a file in the directory, and after growing
    pauses. Its errors are raised.
    """
    until = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    fd = -1 if directory is None else _watch(directory)  # before the first look: none is missed
    try:
        while True:
            if happened():
                return True
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            with interruption.at_once():
                _wait(fd, min(left_s, pause_s))
            pause_s = min(2 * pause_s, longest_pause_s)
    finally:
        if fd >= 0:
            os.close(fd)


def _wait(fd: int, pause_s: float) -> None:
    if fd < 0:
        time.sleep(pause_s)
    elif select.select([fd], [], [], pause_s)[0]:
        time.sleep(_BETWEEN_LOOKS_S)
        os.read(fd, _EVENT_BYTES)


def _watch(directory: str) -> int:
    """A descriptor that becomes readable with each change in a directory; -1 if unsupported."""
    if sys.platform != "linux":
        return -1
    import ctypes

    libc = ctypes.CDLL(None)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(directory), _EVENTS) < 0:
        os.close(fd)
        return -1
    return fd
