"""Puts back a small file that was kept elsewhere, with its mode and time."""

from __future__ import annotations

import os

from cln_backup.storage import directories, fsio
from cln_backup.storage.os_errors import storage_errors

_OTHERS_WRITE = 0o022
_OP = "put back file"


def put_back(path: str, content: bytes, *, mode: int, mtime_ms: int) -> None:
    """Writes a file as a whole under a new name; durable when it returns.

    It is private until it is whole. Only its owner may write to it, whatever `mode` says. Missing
    directories are made.

    Raises:
        AlreadyExists: the name exists; it was not changed.
        StorageError: nothing has the name.
    """
    directories.make_with_parents(os.path.dirname(path), op=_OP)
    fd, built = fsio.create_beside(path, "restoring", op=_OP)
    try:
        fsio.write_at(fd, [content], 0, op=_OP)
        with storage_errors(_OP, path):
            os.fchmod(fd, mode & 0o777 & ~_OTHERS_WRITE)
        fsio.set_time(fd, mtime_ms)
        fsio.sync(fd, op=_OP)
        fsio.publish(built, path, op=_OP)
    except BaseException:
        fsio.remove(built, op=_OP)
        raise
    finally:
        os.close(fd)
