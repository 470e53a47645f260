"""Restores a node's database from a backup."""

from __future__ import annotations

import os
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends.paths import require_outside
from cln_backup.model.errors import AlreadyExists, NotFound
from cln_backup.node.outside import DATABASE_NAME, network_directories_in
from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.replica import Replica, replay
from cln_backup.storage import fsio, interruption, writeback
from cln_backup.storage.file_system import syncs_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change

_LOOK = "look at the destination"
_COMPANIONS = ("-journal", "-wal", "-shm")
_NAME_MAY_BE_LOST = (
    "The file system of {} cannot sync a directory. If the machine loses power soon, check that "
    "the database is still there before you start the node."
)


class Restored(NamedTuple):
    """The result of a restore.

    Attributes:
        path: of the database.
        version: its data version.
        version_count: number of changes replayed.
        size_bytes: of the database file.
        foreign_key_faults: number of rows that violate foreign keys, as in the node's database.
        notices: weaknesses of the destination's file system.
    """

    path: str
    version: int
    version_count: int
    size_bytes: int
    foreign_key_faults: int
    notices: tuple[str, ...] = ()


def restore(
    reader: Reader,
    destination: str,
    progress: Callable[[Change], None] | None = None,
    to: int | None = None,
    *,
    before: Callable[[str], None] | None = None,
) -> Restored:
    """Builds the database at the backup's version, checks it, and gives it its name.

    With `to`, at that earlier version: useful after an interrupted migration; in any other case it
    can cost a node its funds.

    `destination` is a file, or a directory: then `lightningd.sqlite3` in it. The database is built
    beside it and is complete, checked and on stable storage when the name appears; after any error
    before, the unfinished file is removed. Nothing is ever overwritten.

    `before` is called with the path of the complete file, before that gets its name; no signal
    takes effect from then on.

    Raises:
        AlreadyExists: the database exists, or a journal that SQLite would apply to it.
        NotFound: the backup is empty, or has no change for `to`, or the directory does not exist.
        ReplayFailed, Damaged, StorageError: nothing was left over.
    """
    path = target_path(destination)
    if reader.standing.head is None:
        raise NotFound(
            "Nothing to restore: the backup is empty; no change of a node was ever stored in it."
        )
    built = f"{path}.restoring-{os.getpid()}"
    with interruption.deferred():
        try:
            replica, faults, size = _build(reader, built, progress, to)
            target_path(destination)  # the node may have been started meanwhile
            named = syncs_names(os.path.dirname(path))
            with interruption.held():
                if before is not None:
                    before(built)
                fsio.publish(built, path, op="publish restored database")
                interruption.finished()
        finally:
            for name in (built, *(built + companion for companion in _COMPANIONS)):
                if os.path.lexists(name):  # not if it could not be made
                    fsio.remove(name, op="remove unfinished restore")
    notices = () if named else (_NAME_MAY_BE_LOST.format(os.path.dirname(path)),)
    return Restored(path, replica.applied, replica.changes, size, faults, notices)


def _build(
    reader: Reader, built: str, progress: Callable[[Change], None] | None, to: int | None
) -> tuple[Replica, int, int]:
    """Replays, checks and syncs the file; also returns its foreign key faults and size."""
    with read_ahead(reader) as changes:
        wanted = takewhile(lambda change: to is None or change.version <= to, changes)
        is_local = reader.place.storage_dir is not None
        replica = replay(wanted, built, progress, hurries=is_local)
    fd = -1
    try:
        if not replica.changes or (to is not None and replica.applied != to):
            raise NotFound(
                f"The backup has no change for data version {to}; `backup-cli log` lists its "
                "changes."
            )
        fd = fsio.open_existing(built, writable=True, op="sync restored database")
        writeback.begin(fd)  # while it is being checked
        faults = replica.check()
        replica.close()
        fsio.sync(fd, op="sync restored database")
        size = fsio.size_bytes(fd)
    finally:
        replica.close()
        if fd >= 0:
            os.close(fd)
    return replica, faults, size


def _refuse_directory_above(path: str) -> None:
    below = network_directories_in(path)
    if below:
        raise NotFound(
            f"{path} is not a network directory: lightningd looks for its database in one below "
            f"it, such as {os.path.join(path, below[0])}. Use that one; or name the file, if it "
            f"really belongs here: {os.path.join(path, DATABASE_NAME)}"
        )


def target_path(destination: str) -> str:
    """The path for the restored database, which must not exist.

    Raises:
        AlreadyExists, NotFound: as `restore`.
    """
    path = os.path.abspath(destination)
    if fsio.kind_at(path, op=_LOOK) == "directory":
        _refuse_directory_above(path)
        path = os.path.join(path, DATABASE_NAME)
    elif destination.endswith("/"):
        raise NotFound(f"The directory {destination} does not exist.")
    if fsio.kind_at(os.path.dirname(path), op=_LOOK) != "directory":
        raise NotFound(f"The directory {os.path.dirname(path)} does not exist.")
    require_outside(os.path.dirname(path))
    for name in (path, *(path + companion for companion in _COMPANIONS)):
        if os.path.lexists(name):
            raise AlreadyExists(
                f"{name} exists, and a restore never overwrites. Make sure that no lightningd "
                "uses it, then move it away with its companions (-journal, -wal, -shm); do not "
                "delete it before the node works again."
            )
    return path
