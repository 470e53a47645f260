"""The writer's look before a write: checks that the backup is still as it left it.

A lock is not enough. On a network file system each machine may have its own, and a virtual machine
that is set back to a checkpoint continues with the memory of that moment, including its locks and
caches, amid data that was written since. So a writer reads the place where it is about to write,
from the storage and by the path: after a pause, and in quick succession once in every so many
appends. The other checks at each append must cost next to nothing.
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
"""Size and alignment of a read past the cache; the largest that common disks require."""

PAUSE_S: Final = 0.2
APPENDS: Final = 32
"""The numbers are chosen so that looks take at most a twentieth of the wait; docs/benchmarks.md."""


class LookSchedule:
    """When a look is due: at first, after each pause, and once in every so many appends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._appends_left = 0
        self._last_at = 0.0

    def is_due(self) -> bool:
        """Counts an append that is about to be made; returns whether to look before it.

        Uses the wall clock: a virtual machine that was set back may be told the current time.
        """
        self._appends_left -= 1
        if self._appends_left < 0 or not 0.0 <= self._clock() - self._last_at < PAUSE_S:
            self._appends_left = APPENDS - 1
            return True
        return False

    def appended(self) -> None:
        """Records the end of an append."""
        self._last_at = self._clock()


def read_anew(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Opens a file by its path, and reads parts of it: pairs of offset and length, whole blocks.

    A network file system asks its server when a file is opened, and a direct read bypasses the
    system's cache; if that is not supported, the cached pages are dropped.

    Raises:
        StorageError: the file does not exist, or cannot be read.
    """
    if sys.platform == "linux":
        try:
            return _read(path, ranges, os.O_DIRECT)
        except OSError:
            pass  # not every file system supports it; any other error shows below
    with storage_errors("look at backup", path):
        return _read(path, ranges, 0)


def _read(path: str, ranges: Sequence[tuple[int, int]], flag: int) -> list[bytes]:
    # Does not read the times, see `path_watch`; reading anything but a file fails.
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
    """The error of a writer whose backup was changed by another process; nothing was written."""
    return WriterConflict(
        f"Another process wrote to this backup: {path} is not as this process left it ({found}). "
        "Nothing was overwritten, and this process writes nothing more. Either another node "
        "writes to the backup, or this machine was set back to an older state, such as a "
        "checkpoint of a virtual machine, and its database is as old. Do not start the node from "
        "an old state, which can lose its funds: find and stop the other writer, or move the "
        "database away and restore the newest state with `backup-cli restore`."
    )


def moved(path: str, besides: str) -> StorageError:
    """The error of a writer whose path leads to another file or to none."""
    return StorageError(
        f"{path}, or {besides}, was moved, removed or replaced while the node was writing to it. "
        "Nothing more was written. Put the backup back where it was, or mount its disk, and start "
        "the node again."
    )
