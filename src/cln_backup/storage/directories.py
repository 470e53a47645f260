"""Makes, lists, locks and removes directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import fsio, ownership
from cln_backup.storage.os_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator


def make(path: str, *, op: str) -> bool:
    """Makes a directory that only its owner may enter; it and its name are durable on return.

    Returns whether it was made; `False` if it exists. Its owner is chosen as by `create`.
    """
    with storage_errors(op, path):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if os.path.isdir(path):
                return False
            raise AlreadyExists(f"{path} exists; it was not changed.") from None
    try:
        with storage_errors(op, path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                ownership.give(fd, path.rstrip("/"))
            finally:
                os.close(fd)
        fsio.sync_directory(os.path.dirname(path.rstrip("/")) or ".", op=op)
    except StorageError:
        remove_empty(path, op=op)
        raise
    return True


def make_with_parents(path: str, *, op: str) -> None:
    """Makes a directory and its missing parents, each as `make` does.

    Raises `AlreadyExists` if a path is a file, which is not changed.
    """
    parent = os.path.dirname(path.rstrip("/"))
    if parent and not os.path.isdir(parent):
        make_with_parents(parent, op=op)
    make(path, op=op)


def remove_empty(path: str, *, op: str) -> None:
    """Removes an empty directory that this program made."""
    with storage_errors(op, path):
        os.rmdir(path)


def names(path: str, *, op: str) -> list[str]:
    """The names in a directory, sorted."""
    with storage_errors(op, path):
        return sorted(os.listdir(path))


def visit(path: str, *, op: str) -> None:
    """Opens a directory, which makes a network file system ask its server for current contents."""
    with storage_errors(op, path):
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


@contextlib.contextmanager
def locked(path: str, *, op: str) -> Iterator[None]:
    """Excludes other processes from the block; does nothing if directories cannot be locked."""
    with storage_errors(op, path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
