"""Room for work on a backup: directories that go again, and how much of a disk is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import NotFound, StorageError
from cln_backup.storage import ownership
from cln_backup.storage.giving_back import give_back
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAME: Final = re.compile(r"\.(?:compact|verify|copy|take-snapshot)-(.+)-([0-9]+)-[^-]+")
_BEGINS_S: Final = 60.0
"""How long after it was made a directory may not be locked yet."""


def place(chosen: str | None, beside: str | None) -> str:
    """Where to work: in the directory that was chosen, else beside the backup, else elsewhere.

    Raises:
        NotFound: there is no such directory.
        StorageError: there is none for temporary files either.
    """
    if chosen is not None and not os.path.isdir(chosen):
        raise NotFound(f"There is no directory {chosen} to work in.")
    return chosen or beside or temporary()


def temporary() -> str:
    """The system's directory for temporary files. Raises `StorageError` where it has none."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise StorageError(
            "There is no directory for temporary files: /tmp and /var/tmp cannot be written to. "
            "Name one in the variable TMPDIR, or, for `compact` and `verify`, by --scratch-dir."
        ) from None


_TRIES = 5


@contextlib.contextmanager
def directory(place: str, *, op: str) -> Iterator[str]:
    """A directory for this block only; removed with all that is in it.

    Those that processes left which were killed are removed as well.
    """
    with storage_errors(op, place):
        for left in leftovers(place):
            _remove_left(left)
        prefix = f".{op.replace(' ', '-')}-{os.uname().nodename}-{os.getpid()}-"
        path = tempfile.mkdtemp(prefix=prefix, dir=place)
    fd = -1
    try:
        with storage_errors(op, path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            ownership.give(fd, path)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)  # who looks for leftovers holds it for a moment
        yield path
    finally:
        if fd >= 0:
            os.close(fd)
        with storage_errors(op, path):
            shutil.rmtree(path)


def leftovers(place: str) -> list[str]:
    """The directories in a place that killed processes of this machine left.

    Whoever works in one holds a lock on it. The name tells the process and its machine: for file
    systems without locks, or with locks that one machine alone sees. In a place that others may
    write to, such as /tmp, theirs do not count: they could lead to other files meanwhile.
    """
    found = []
    owners = (os.geteuid(), os.stat(place).st_uid)
    for name in os.listdir(place):
        maker = _NAME.fullmatch(name)
        if maker is not None and maker[1] == os.uname().nodename:
            path = os.path.join(place, name)
            if _is_left(path, int(maker[2]), owners):
                found.append(path)
    return found


def _is_left(path: str, pid: int, owners: tuple[int, ...]) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_uid not in owners:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun = time.time() - os.fstat(fd).st_mtime < _BEGINS_S
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        begun = True
    finally:
        os.close(fd)
    # In a container, a process of the next run may have the same id.
    return not (begun and _lives(pid))


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


def clear_beside(places: Iterable[str]) -> None:
    """Removes what killed processes left in these directories, by a process beside this one.

    It gives their room back in steps, so that nobody who writes to that disk waits for it. Without
    leftovers nothing is started. The caller need not wait; its child ends by itself.
    """
    with contextlib.suppress(OSError):
        left = [path for place in places for path in leftovers(place)]
        if left:
            subprocess.Popen(
                [sys.executable, "-m", "cln_backup.storage.scratch", *left],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


def empty(directory: str, *, op: str) -> None:
    """Gives back the room of the files in a directory of our own, piece by piece."""
    with storage_errors(op, directory):
        for name in os.listdir(directory):
            empty_file(os.path.join(directory, name), op=op)


def empty_file(path: str, *, op: str) -> None:
    """Gives back the room of a file of our own, piece by piece; it is empty then."""
    with storage_errors(op, path):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_back(fd)
        finally:
            os.close(fd)


def room_bytes(path: str, *, op: str) -> int:
    """What work beside a backup may take of its disk; below zero when the last room is taken.

    64 MiB, or a twentieth of a small disk, are left to the node's changes. Raises `StorageError`.
    """
    with storage_errors(op, path):
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


def main() -> None:
    """The process that clears up: `python -m cln_backup.storage.scratch DIRECTORY…`."""
    os.nice(19)
    for path in sys.argv[1:]:
        with contextlib.suppress(StorageError):
            empty(path, op="clear up")
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
