"""Checks of local paths where a backup is expected or will be made."""

from __future__ import annotations

import contextlib
import os

from cln_backup.formats import v1
from cln_backup.model.errors import AlreadyExists, NotFound, StorageError
from cln_backup.storage import directories, fsio

_LOOK = "look for a backup"


def require_backup_file(path: str) -> None:
    """Makes sure that a path can be a `file:` backup, judging by its first bytes.

    Raises:
        NotFound: there is nothing or something else; the message says what, and what to use.
        StorageError: this user cannot read it.
    """
    kind = fsio.kind_at(path, op=_LOOK)
    if kind is None:
        raise _missing(path)
    fd = fsio.open_existing(path, writable=False, op=_LOOK)
    try:
        start = fsio.read_at(fd, len(v1.SQLITE_MAGIC), 0, op=_LOOK)
    finally:
        os.close(fd)
    if start.startswith(v1.SQLITE_MAGIC):
        raise NotFound(
            f"{path} is a SQLite database, not a backup. If it is the node's own, name the backup "
            "instead, as in backup.lock; if it was restored from a backup, it is ready to use."
        )
    if start.startswith(v1.START):
        return
    from cln_backup.formats import key_slots, v2

    if start.startswith((v2.MAGIC, key_slots.MAGIC)):
        directory = os.path.dirname(path)
        raise NotFound(
            f"{path} is a file of a dir: backup. Name its directory instead: dir://{directory}"
        )


def require_backup_directory(path: str) -> None:
    """Makes sure that a path is a directory. Raises `NotFound`, `StorageError`."""
    kind = fsio.kind_at(path, op=_LOOK)
    if kind == "file":
        raise NotFound(
            f"{path} is a file, not a directory as a dir: backup is. If it is a backup in the "
            f"format of the community's plugin, name it file://{path}"
        )
    if kind == "link":
        raise NotFound(f"{path} is a dangling link. Is the disk of its target mounted?")
    if kind != "directory":
        raise _missing(path) if kind is None else NotFound(f"{path} is not a directory.")


def missing_in(path: str) -> NotFound:
    """The error for a directory that does not contain a backup."""
    names = directories.names(path, op=_LOOK)
    if "backup.lock" in names or "lightningd.sqlite3" in names:
        return NotFound(
            f"{path} is a node's network directory, not a backup; backup.lock in it names the "
            "node's backup, if it has one."
        )
    below = [name for name in names if _holds_backup(path, name)]
    if below:
        return NotFound(f"There is no backup at {path}, but one at {os.path.join(path, below[0])}.")
    return _missing(path)


def hint_for_directory(path: str) -> str:
    """Advice for a directory in a `file:` URL."""
    if _holds_backup(path):
        return f"It is a dir: backup; name it dir://{path.rstrip('/')}"
    return "Name the file in it."


def require_outside(path: str) -> None:
    """Makes sure that nothing is made in the directory of a `dir:` backup, or below it.

    Raises:
        AlreadyExists: the path is the directory of a backup, or is inside it.
    """
    place = os.path.realpath(path)
    while True:
        if _holds_backup(place):
            raise AlreadyExists(
                f"{path} is inside the backup {place}. Nothing was made. A file there would be "
                "copied and lost with the backup, and anyone with access to the backup could read "
                "it. Choose another place."
            )
        above = os.path.dirname(place)
        if above == place:
            return
        place = above


def _holds_backup(*parts: str) -> bool:
    from cln_backup.backends.dir.store import list_files
    from cln_backup.storage.local_objects import LocalObjects

    path = os.path.join(*parts)
    with contextlib.suppress(StorageError):
        return os.path.isdir(path) and list_files(LocalObjects(path)) != ((), (), ())
    return False


def _missing(path: str) -> NotFound:
    return NotFound(
        f"There is no backup at {path}. If there was one, first check that its disk is mounted. "
        "`backup-cli init` makes a new one."
    )
