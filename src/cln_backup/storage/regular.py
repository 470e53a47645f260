"""Opens regular files and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from cln_backup.model.errors import StorageError

PRIVATE: Final = 0o600

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str, flags: int, op: str) -> int:
    """Opens a regular file with these flags. Refuses any other kind, and never blocks on one."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY
    try:
        fd = os.open(path, flags | os.O_NONBLOCK, PRIVATE)
    except BlockingIOError:  # another process has a lease, which is being broken
        fd = os.open(path, flags, PRIVATE)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise
        raise _special(path, os.stat(path).st_mode, op) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise _special(path, mode, op)
    return fd


def _special(path: str, mode: int, op: str) -> StorageError:
    what = _KINDS.get(stat.S_IFMT(mode), "a special file")
    return StorageError(f"Cannot {op} {path}: it is {what}, not a regular file")
