"""The directory of a kept replica: made, locked and removed."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from cln_backup.model.errors import StorageError, WriterConflict
from cln_backup.replay.note import NOTE_NAME
from cln_backup.storage import directories, fsio, scratch

DATABASE_NAME: Final = "replica.sqlite3"
SUFFIXES: Final = ("", "-wal", "-shm", "-journal", ".unfinished")
"""Of the files of a database, as far as SQLite or this program makes them."""


def remove_replica(directory: str) -> None:
    """Removes a replica that no process has open, and its directory if nothing else is in it.

    It is not an error if there is none.

    Raises:
        WriterConflict: a process has it open.
        StorageError.
    """
    if fsio.kind_at(directory, op="remove replica") != "directory":
        return
    fd = lock(directory)
    try:
        for suffix in SUFFIXES:
            remove_in_steps(os.path.join(directory, DATABASE_NAME + suffix))
        fsio.remove(os.path.join(directory, NOTE_NAME), op="remove replica")
        if not directories.names(directory, op="remove replica"):
            directories.remove_empty(directory, op="remove replica")
    finally:
        os.close(fd)


def remove_in_steps(path: str) -> None:
    """Removes a file, if it is there, so that no sync on its disk waits for it."""
    if fsio.kind_at(path, op="remove replica") == "file":
        scratch.empty_file(path, op="remove replica")
    fsio.remove(path, op="remove replica")


def lock(directory: str) -> int:
    """Makes the directory if necessary, and locks it; returns its descriptor."""
    directories.make(directory, op="make replica")
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"Cannot open the replica's directory {directory}: {error}.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise WriterConflict(f"Another process has the replica in {directory} open.") from None
    except OSError:  # a file system without locks: SQLite's own would fail there too
        pass
    return fd


def is_same(fd: int, path: str) -> bool:
    """Whether the path leads to the open directory."""
    try:
        ours, there = os.fstat(fd), os.stat(path)
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
