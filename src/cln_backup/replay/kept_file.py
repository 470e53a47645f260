"""The file of a kept replica: as it replaces a snapshot, and as it is a snapshot itself."""

from __future__ import annotations

import os
import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import ReplayFailed
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from cln_backup.model.change import Change
    from cln_backup.replay.reached import Reached

_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\x00"
_FORMATS_AT: Final = 18
_JOURNAL: Final = b"\x01\x01"
_WAL: Final = b"\x02\x02"
_USER_VERSION_AT: Final = 60
_APPLICATION_ID_AT: Final = 68
_NUMBER: Final = struct.Struct(">i")


def load(change: Change, path: str, before: Reached) -> Reached:
    """Makes a snapshot the replica at `path`, where no file is; durable on return.

    Raises:
        ReplayFailed: it is not a SQLite database.
        StorageError, Damaged.
    """
    assert change.snapshot is not None
    built = f"{path}.unfinished"
    fsio.remove(built, op="remove replica")
    fd = fsio.create(built, op="create replica")
    try:
        content, offset, header = sha256(), 0, b""
        for chunk in change.snapshot.chunks():
            content.update(chunk)
            header += chunk[: _HEADER_BYTES - len(header)]
            offset = fsio.write_at(fd, [chunk], offset, op="write replica")
            del chunk
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            raise ReplayFailed(
                f"The snapshot at data version {change.version} is not a SQLite database."
            )
        reached = before.after(change, content.digest())
        marked = _with(header, _WAL, reached.user_version, reached.mark)
        fsio.write_at(fd, [marked], 0, op="write replica")
        fsio.sync(fd, op="write replica")
        fsio.replace(built, path, op="write replica")
    except BaseException:
        fsio.remove(built, op="remove replica")
        raise
    finally:
        os.close(fd)
    return reached


class CommittedFile:
    """A replica's file, without what marks it as a replica: a snapshot of what is committed.

    All of it must be in the file, nothing in the WAL, and no checkpoint may come in the block.
    """

    def __init__(self, path: str) -> None:
        """Opens the file. Raises `StorageError`."""
        self._fd = fsio.open_existing(path, writable=False, op="read replica")
        self.size_bytes = fsio.size_bytes(self._fd)

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, in pieces. Raises `StorageError`."""
        header = fsio.read_at(self._fd, _HEADER_BYTES, 0, op="read replica")
        yield _with(header, _JOURNAL, 0, 0)
        rest = self.size_bytes - _HEADER_BYTES
        yield from fsio.chunks_at(self._fd, rest, _HEADER_BYTES, op="read replica")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


def _with(header: bytes, formats: bytes, user_version: int, application_id: int) -> bytes:
    changed = bytearray(header)
    changed[_FORMATS_AT : _FORMATS_AT + len(formats)] = formats
    _NUMBER.pack_into(changed, _USER_VERSION_AT, user_version)
    _NUMBER.pack_into(changed, _APPLICATION_ID_AT, application_id)
    return bytes(changed)
