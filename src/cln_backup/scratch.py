"""Room beside a backup for work that needs it: directories that go again, and how much is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from cln_backup import fsio
from cln_backup.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIES = 5


@contextlib.contextmanager
def directory(place: str, *, op: str) -> Iterator[str]:
    """A directory for this block only; removed with all that is in it.

    Those that processes of this machine left which were killed are removed as well.
    """
    prefix = f".{op.replace(' ', '-')}-{os.uname().nodename}-"
    with fsio.storage_errors(op, place):
        for name in os.listdir(place):
            pid = name.removeprefix(prefix).partition("-")[0]
            if name.startswith(prefix) and pid.isdecimal() and not _lives(int(pid)):
                _remove_left(os.path.join(place, name))
        made = tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=place)
    try:
        yield made.name
    finally:
        with fsio.storage_errors(op, made.name):
            made.cleanup()


def _remove_left(path: str) -> None:
    """Removes a directory of a process that is gone.

    A process beside that one may be at its last step and put one more file there.
    """
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def empty(directory: str, *, op: str) -> None:
    """Gives back the room of the files in a directory of our own, piece by piece."""
    with fsio.storage_errors(op, directory):
        for name in os.listdir(directory):
            fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fsio.give_back(fd)
            finally:
                os.close(fd)


def room_bytes(path: str, *, op: str) -> int:
    """What work beside a backup may take of its disk; below zero when the last room is taken.

    64 MiB, or a twentieth of a small disk, are left to the node's changes. Raises `StorageError`.
    """
    with fsio.storage_errors(op, path):
        disk = os.statvfs(path)
    reserve_bytes = min(64 << 20, disk.f_blocks * disk.f_frsize // 20)
    return disk.f_bavail * disk.f_frsize - reserve_bytes


def require_room(path: str, *, op: str, needed_bytes: int = 0) -> None:
    """Makes sure that work beside a backup does not take the last room of its disk.

    Raises:
        StorageError: besides what is needed, less than 64 MiB, or a twentieth of a small disk,
            is free.
    """
    if room_bytes(path, op=op) < needed_bytes:
        raise StorageError(
            f"Cannot {op}: the disk of {path} is nearly full, and what is left is for the node's "
            "changes. Make room; the backup is as before."
        )
