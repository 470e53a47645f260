"""`backup.rollforward` in the network directory: a roll forward that was begun and not completed.

The plugin writes it before it halts a node whose database may have lost changes, and the roll
forward before it touches anything. It is removed when the database is complete. So whatever is
killed, the next process continues: see `operations.rollforward`.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

import msgspec

from cln_backup.model.errors import BadSettings
from cln_backup.storage import fsio

MARKER_NAME: Final = "backup.rollforward"
LOG_NAME: Final = "backup.rollforward.log"
_MAX_BYTES: Final = 1 << 16
_OP: Final = "write backup.rollforward"


class Marker(msgspec.Struct, frozen=True):
    """The contents of `backup.rollforward`.

    Attributes:
        database: the path of the node's database.
        pid_file: the path of the file that keeps a lightningd out while it is locked.
        keeping: the directory that a copy of the database is being made in.
        kept: the directory with the complete copy: from then on, the database may have been
            touched.
        refused: why the database cannot be rolled forward; only `backup-cli` tries again.
    """

    database: str
    pid_file: str
    keeping: str | None = None
    kept: str | None = None
    refused: str | None = None

    def refusing(self, why: str) -> Marker:
        """The same, for a database that cannot be rolled forward."""
        return msgspec.structs.replace(self, refused=why)


def read_marker(directory: str) -> Marker | None:
    """Reads the marker; `None` if there is none.

    Raises:
        BadSettings: it cannot be understood.
    """
    path = os.path.join(directory, MARKER_NAME)
    if fsio.kind_at(path, op="read backup.rollforward") is None:
        return None
    fd = fsio.open_existing(path, writable=False, op="read backup.rollforward")
    try:
        content = fsio.read_at(fd, _MAX_BYTES, 0, op="read backup.rollforward")
    finally:
        os.close(fd)
    try:
        return msgspec.json.decode(content, type=Marker)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadSettings(
            f"{path} cannot be understood. Move it away, and run: backup-cli rollforward "
            f"--lightning-dir {directory}"
        ) from None


def write_marker(directory: str, marker: Marker) -> None:
    """Writes the marker; durable when it returns. Raises `StorageError`."""
    path = os.path.join(directory, MARKER_NAME)
    fsio.write_file(path, msgspec.json.encode(marker) + b"\n", op=_OP)


def remove_marker(directory: str) -> None:
    """Removes the marker, if there is one; durable when it returns. Raises `StorageError`."""
    fsio.remove(os.path.join(directory, MARKER_NAME), op="remove backup.rollforward")
    fsio.sync_directory(directory, op="remove backup.rollforward")


def last_log_line(directory: str) -> str | None:
    """The last line of `backup.rollforward.log`; `None` if there is none."""
    path = os.path.join(directory, LOG_NAME)
    if fsio.kind_at(path, op="read backup.rollforward.log") is None:
        return None
    fd = fsio.open_existing(path, writable=False, op="read backup.rollforward.log")
    try:
        start = max(0, fsio.size_bytes(fd) - _MAX_BYTES)
        text = fsio.read_at(fd, _MAX_BYTES, start, op="read backup.rollforward.log")
    finally:
        os.close(fd)
    lines = text.decode("utf-8", "replace").splitlines()
    return lines[-1] if lines else None


def is_at_work(directory: str) -> bool:
    """Whether a process that the plugin started waits for the node's end, or rolls forward."""
    try:
        fd = os.open(os.path.join(directory, LOG_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    else:
        return False
    finally:
        os.close(fd)


def remove_log(directory: str) -> None:
    """Removes the log, if there is one. Raises `StorageError`."""
    fsio.remove(os.path.join(directory, LOG_NAME), op="remove backup.rollforward.log")
