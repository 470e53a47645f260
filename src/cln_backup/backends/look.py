"""What a writer looks at before it writes: whether the backup is still as it left it.

A lock does not show everything. On a network file system each machine may have its own, and a
virtual machine that is set back to a checkpoint goes on with the memory of that moment, its locks
and caches included, in the middle of what was written since. So a writer reads the place where it
is about to write, from the storage and by the path: after a pause, and in quick succession at
every so many appends. What each append looks at besides must cost next to nothing.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import StorageError, WriterConflict
from cln_backup.storage import fsio
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOCK_BYTES: Final = 4096
"""What is read at once past the cache, and at which border; what disks that can do this take."""

PAUSE_S: Final = 0.2
APPENDS: Final = 32
"""The numbers are chosen so that looks take at most a twentieth of the wait; docs/benchmarks.md."""


class LookSchedule:
    """When a look is due: at first, after each pause, and at every so many appends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._appends_left = 0
        self._last_at = 0.0

    def is_due(self) -> bool:
        """Counts one append that is about to be made; whether to look before it.

        It goes by the clock that can be set: a machine that was set back may be told the time.
        """
        self._appends_left -= 1
        if self._appends_left < 0 or not 0.0 <= self._clock() - self._last_at < PAUSE_S:
            self._appends_left = APPENDS - 1
            return True
        return False

    def appended(self) -> None:
        """Takes note that an append has ended."""
        self._last_at = self._clock()


def read_anew(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Opens a file by its path, and reads parts of it: pairs of offset and length, whole blocks.

    A network file system asks its server when a file is opened, and to read past the system's
    cache leaves out what it remembers; where that cannot be, the cache is told to forget.

    Raises:
        StorageError: the path leads to no file, or it cannot be read.
    """
    if sys.platform == "linux":
        try:
            return _read(path, ranges, os.O_DIRECT)
        except OSError:
            pass  # not every file system can, and whether this is the reason shows below
    with storage_errors("look at backup", path):
        return _read(path, ranges, 0)


def _read(path: str, ranges: Sequence[tuple[int, int]], flag: int) -> list[bytes]:
    # Without a look at its times, see `path_watch`; what is no file fails when it is read.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flag)
    try:
        if not flag:
            fsio.forget_cached(fd)
        found = []
        for offset, length in ranges:
            with mmap.mmap(-1, length) as memory:
                found.append(memory[: os.preadv(fd, [memory], offset)])
        return found
    finally:
        os.close(fd)


def conflict(path: str, found: str) -> WriterConflict:
    """What a writer ends with that found its backup changed, before it wrote anything."""
    return WriterConflict(
        f"Another process wrote to this backup: {path} is not as this process left it ({found}). "
        "Nothing was overwritten, and nothing more is written. Either another node writes to it, "
        "or this machine was set back to an older state, such as a checkpoint of a virtual "
        "machine, and its database is as old. Do not start the node from an old state, which can "
        "lose its funds: find the other writer, or move the database away and bring it to the "
        "newest state with `backup-cli restore`."
    )


def moved(path: str, besides: str) -> StorageError:
    """What a writer ends with whose path leads elsewhere."""
    return StorageError(
        f"{path}, or {besides}, was moved, removed or replaced while the node was writing to it. "
        "Nothing is written to a place that nobody would find. Put the backup back where it was "
        "and start the node again."
    )
