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
        if isinstance(error, OSError):
            raise storage_error(self._op, self._path, error) from error


def storage_error(op: str, path: str | int, error: OSError) -> StorageError:
    """The `StorageError` for an error of the operating system in a step, `op`, on a file."""
    if not isinstance(path, str):
        path = _name_of(path)
    said = f"Cannot {op} {path}".rstrip()
    return StorageError(f"{said}: {error.strerror or error}{_hint(error.errno, path)}")


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
