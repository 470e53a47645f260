"""Space for work on a backup: temporary directories, and the free space of a disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import NotFound, StorageError
from cln_backup.process.channel import Message
from cln_backup.process.child import Child
from cln_backup.storage import ownership
from cln_backup.storage.giving_back import give_back
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cln_backup.process.parent import Parent

_NAME: Final = re.compile(
    r"\.(?:compact|verify|copy|drill|take-snapshot|roll-forward|undo|write-test)"
    r"-(.+)-([0-9]+)-[^-]+"
)
_BEGINS_S: Final = 60.0
"""How long after its creation a directory may not be locked yet."""


def place(chosen: str | None, beside: str | None) -> str:
    """Where to work: the chosen directory, else beside the backup, else the system's directory.

    Raises:
        NotFound: the chosen directory does not exist.
        StorageError: there is no directory for temporary files either.
    """
    if chosen is not None and not os.path.isdir(chosen):
        raise NotFound(f"The working directory {chosen} does not exist.")
    return chosen or beside or temporary()


def temporary() -> str:
    """The system's directory for temporary files. Raises `StorageError` if there is none."""
    import tempfile

    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise StorageError(
            "No directory for temporary files: /tmp and /var/tmp cannot be written to. Name one in "
            "the variable TMPDIR or, for `compact` and `verify`, with --scratch-dir."
        ) from None


_TRIES = 5


@contextlib.contextmanager
def directory(place: str, *, op: str) -> Iterator[str]:
    """A temporary directory for this block; it is removed with everything in it.

    Directories left over by killed processes are removed as well.
    """
    import shutil
    import tempfile

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
            fcntl.flock(fd, fcntl.LOCK_EX)  # a search for leftovers holds it for a moment
        yield path
    finally:
        if fd >= 0:
            os.close(fd)
        with storage_errors(op, path):
            shutil.rmtree(path)


def leftovers(place: str) -> list[str]:
    """The directories that killed processes of this machine left in a place.

    A process that works in one holds a lock on it. The name has the process and its machine: for
    file systems without locks, or with locks that only one machine sees. In a place that other
    users can write to, such as /tmp, their directories are ignored: they could be replaced by
    links meanwhile.
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
    """Removes a directory of a process that has ended.

    A helper of that process may still be running and add one more file.
    """
    import shutil

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
    """Removes the leftovers of killed processes in these directories, in a child process.

    It frees their space in steps, so that no writer on that disk waits for it. If there are no
    leftovers, no child is started. The caller need not wait; the child ends by itself.
    """
    with contextlib.suppress(OSError, StorageError):
        left = [path for place in places for path in leftovers(place)]
        if left:
            Child(
                "cln_backup.storage.scratch",
                Leftovers(left),
                (Message,),
                work="removes leftovers",
                lowest_priority=True,
            ).release()


def empty(directory: str, *, op: str) -> None:
    """Frees the space of the files in a directory of this program, piece by piece."""
    with storage_errors(op, directory):
        for name in os.listdir(directory):
            empty_file(os.path.join(directory, name), op=op)


def empty_file(path: str, *, op: str) -> None:
    """Empties a file of this program, freeing its space piece by piece."""
    with storage_errors(op, path):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            give_back(fd)
        finally:
            os.close(fd)


def room_bytes(path: str, *, op: str) -> int:
    """The space that work beside a backup may use; negative if it uses the reserve already.

    The reserve for the node's changes is 64 MiB, or a twentieth of a small disk. Raises
    `StorageError`.
    """
    with storage_errors(op, path):
        disk = os.statvfs(path)
    reserve_bytes = min(64 << 20, disk.f_blocks * disk.f_frsize // 20)
    return disk.f_bavail * disk.f_frsize - reserve_bytes


def free_bytes(path: str | None) -> int | None:
    """The free space of the disk of a path, with the reserve; `None` if it cannot be known."""
    if path is None:
        return None
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def require_room(path: str, *, op: str, needed_bytes: int = 0) -> None:
    """Makes sure that work beside a backup does not fill its disk.

    Raises:
        StorageError: after the work, less than 64 MiB, or a twentieth of a small disk, would be
            free.
    """
    if room_bytes(path, op=op) < needed_bytes:
        raise StorageError(
            f"Cannot {op}: the disk of {path} is nearly full, and the rest is reserved for the "
            "node's changes. The backup is unchanged. Free space on that disk."
        )


class Leftovers(Message):
    """The directories that the child removes."""

    paths: list[str]


def _run(leftovers: Leftovers, _parent: Parent[Message]) -> None:
    """The child that removes leftovers: `python -m cln_backup.storage.scratch`."""
    import shutil

    for path in leftovers.paths:
        with contextlib.suppress(StorageError):
            empty(path, op="clear up")
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    from cln_backup.process.parent import serve

    serve(_run, Leftovers)
