"""What is at a path of this machine, where a backup is looked for or is to be made."""

from __future__ import annotations

import contextlib
import os

from cln_backup.backends.dir.store import list_files
from cln_backup.formats import holders, v2
from cln_backup.model.errors import AlreadyExists, NotFound, StorageError
from cln_backup.storage import fsio

_LOOK = "look for a backup"
_DATABASE_MAGIC = b"SQLite format 3\x00"


def require_backup_file(path: str) -> None:
    """Makes sure that a path can be that of a `file:` backup, as far as its first bytes tell.

    Raises:
        NotFound: there is nothing, or something else; the message says what, and what to name.
        StorageError: this user cannot know.
    """
    kind = fsio.kind_at(path, op=_LOOK)
    if kind is None:
        raise _missing(path)
    fd = fsio.open_existing(path, writable=False, op=_LOOK)
    try:
        start = fsio.read_at(fd, len(_DATABASE_MAGIC), 0, op=_LOOK)
    finally:
        os.close(fd)
    if start.startswith(_DATABASE_MAGIC):
        raise NotFound(
            f"{path} is a SQLite database, not a backup of one. If it is the node's own, name the "
            "backup, as backup.lock has it; if it was restored from one, it is ready to be used."
        )
    if start.startswith((v2.MAGIC, holders.MAGIC)):
        directory = os.path.dirname(path)
        raise NotFound(
            f"{path} is one file of a dir: backup. Name its directory: dir://{directory}"
        )


def require_backup_directory(path: str) -> None:
    """Makes sure that a path is a directory. Raises `NotFound`, `StorageError`."""
    kind = fsio.kind_at(path, op=_LOOK)
    if kind == "file":
        raise NotFound(
            f"{path} is a file, and a dir: backup is a directory. If it is a backup in the format "
            f"of the community's plugin, name it file://{path}"
        )
    if kind == "link":
        raise NotFound(f"{path} is a link that leads nowhere. Is the disk of its target mounted?")
    if kind != "directory":
        raise _missing(path) if kind is None else NotFound(f"{path} is not a directory.")


def missing_in(path: str) -> NotFound:
    """What to raise where a directory holds no backup."""
    names = fsio.list_directory(path, op=_LOOK)
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
    """What to name where a directory was named as a `file:` backup."""
    if _holds_backup(path):
        return f"It is a dir: backup: name it dir://{path.rstrip('/')}"
    return "Name the file in it."


def require_outside(path: str) -> None:
    """Makes sure that nothing is made inside a `dir:` backup, in its own directory or below.

    Raises:
        AlreadyExists: the path is the directory of a backup, or lies in it.
    """
    place = os.path.realpath(path)
    while True:
        if _holds_backup(place):
            raise AlreadyExists(
                f"{path} is inside the backup {place}, where nothing else may be: it would be "
                "copied and lost with the backup, and can be read by whoever reads that place. "
                "Choose another place; nothing was made."
            )
        above = os.path.dirname(place)
        if above == place:
            return
        place = above


def _holds_backup(*parts: str) -> bool:
    path = os.path.join(*parts)
    with contextlib.suppress(StorageError):
        return os.path.isdir(path) and list_files(path) != ((), (), ())
    return False


def _missing(path: str) -> NotFound:
    return NotFound(
        f"There is no backup at {path}. If there was one, look whether its disk is mounted before "
        "anything else; a first one is made by `backup-cli init`."
    )
