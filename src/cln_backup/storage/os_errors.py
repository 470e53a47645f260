"""Turns errors of the operating system into `StorageError`, with advice for the operator."""

from __future__ import annotations

import contextlib
import errno
import os

from cln_backup.model.errors import StorageError
from cln_backup.storage.mounts import mount_of


class storage_errors:  # noqa: N801 - a context manager; a generator would cost the node more
    """Turns the operating system's errors into `StorageError`."""

    __slots__ = ("_op", "_path")

    def __init__(self, op: str, path: str | int) -> None:
        self._op = op
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or not isinstance(error, OSError):
            return
        path = self._path if isinstance(self._path, str) else _name_of(self._path)
        why = error.strerror or error
        said = f"Cannot {self._op} {path}".rstrip()
        raise StorageError(f"{said}: {why}{_hint(error.errno, path)}") from error


def _hint(number: int | None, path: str) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return ". Free space on that disk"
    if number == errno.EROFS:
        mount = mount_of(path)
        where = f"The file system at {mount.point}" if mount else "Its file system"
        return (
            f". {where} is read-only for this process. Mount it for writing; in a systemd unit, "
            "name the directory in ReadWritePaths="
        )
    if number in (errno.EACCES, errno.EPERM):
        return ". Check the owner and the permissions"
    return ""


def _name_of(fd: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""
