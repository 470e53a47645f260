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
    from collections.abc import Iterable, Iterator


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


def keep_files(path: str, names: Iterable[str], name: str, *, op: str) -> str:
    """Gives files of a directory second names in a new directory inside it, which it returns.

    `name` is the new directory's, with a number appended if it exists. It has all the files when it
    gets its name; durable when this returns. On a file system without hard links they are copies.
    """
    import shutil  # the plugin's start imports this module, and that one with its compressions

    built = os.path.join(path, f"unfinished-{name}")
    with storage_errors(op, built):
        shutil.rmtree(built, ignore_errors=True)
    make(built, op=op)
    for file in names:
        _keep_in(os.path.join(path, file), os.path.join(built, file), op=op)
    fsio.sync_directory(built, op=op)
    number, kept = 1, os.path.join(path, name)
    with storage_errors(op, kept):
        while os.path.lexists(kept):
            number += 1
            kept = os.path.join(path, f"{name}-{number}")
        os.rename(built, kept)
    fsio.sync_directory(path, op=op)
    return kept


def move_in(path: str, directory: str, *, op: str) -> None:
    """Moves a file into a directory of the same file system, where its name is free. Durable."""
    target = os.path.join(directory, os.path.basename(path))
    with storage_errors(op, path):
        if os.path.lexists(target):
            raise AlreadyExists(f"{target} exists; it was not changed.")
        os.rename(path, target)
    fsio.sync_directory(directory, op=op)
    fsio.sync_directory(os.path.dirname(path) or ".", op=op)


def _keep_in(path: str, name: str, *, op: str) -> None:
    with storage_errors(op, name):
        try:
            os.link(path, name)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            fsio.copy(path, name, op=op)


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
