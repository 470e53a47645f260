"""A node's small files beside its history: sets of them, each one object, `files-NUMBER`.

Only `put_new` decides who has a number, so two processes may keep files at the same time. A reader
takes the set with the highest number that is whole. Releases that do not know these objects ignore
them, since no maintenance removes a name that it does not know.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.formats import node_files, v2
from cln_backup.model.errors import AlreadyExists, Damaged

if TYPE_CHECKING:
    from cln_backup.model.node_files import NodeFiles
    from cln_backup.storage.objects import Objects

KEPT: Final = 3
"""So many sets stay; the others are removed after a new one is stored."""

_PREFIX: Final = "files-"
_PURPOSE: Final = "files"
_NAME: Final = re.compile(r"files-(\d{10})")
_ABANDONED_S: Final = 3600.0
_LIMIT_BYTES: Final = node_files.MAX_OBJECT_BYTES


def set_name(number: int) -> str:
    """The name of the object of a set."""
    return f"{_PREFIX}{number:010}"


class KeptSet(NamedTuple):
    """A set as it was read.

    Attributes:
        number: of the set.
        damaged: the objects of newer sets that cannot be read.
    """

    number: int
    files: NodeFiles
    damaged: tuple[str, ...]


class KeptFiles:
    """The sets in one backup.

    Attributes:
        is_encrypted: whether they are encrypted, as the backup is.
    """

    def __init__(self, objects: Objects, backup_id: bytes, master_key: bytes | None) -> None:
        """`objects` must be such that no writer removes what is prepared beside it."""
        self._objects = objects
        self._backup_id = backup_id
        self._master_key = master_key
        self.is_encrypted = master_key is not None

    def newest(self) -> KeptSet | None:
        """The newest set that is whole; `None` if none was ever stored.

        Raises:
            Damaged: there are sets, and none of them is whole.
            StorageError.
        """
        damaged: list[str] = []
        for number in reversed(self._numbers()):
            name = set_name(number)
            if self._objects.status(name) is None:
                continue  # removed at this moment: there is a newer one, which was read
            data = self._objects.get(name, 0, _LIMIT_BYTES + 1)
            try:
                found = node_files.unpack(data, self._backup_id, number, self._master_key)
            except v2.Malformed:
                damaged.append(self._objects.where(name))
                continue
            return KeptSet(number, found, tuple(damaged))
        if damaged:
            raise Damaged(
                f"The node's files in the backup are damaged: {', '.join(damaged)}. The database "
                "in the backup is not affected."
            )
        return None

    def taken_at(self) -> float | None:
        """When the newest set was taken, in seconds since 1970; `None` if there is none.

        Reads its first bytes only, and does not check them. Raises `StorageError`.
        """
        for number in reversed(self._numbers()):
            name = set_name(number)
            if self._objects.status(name) is not None:
                data = self._objects.get(name, 0, node_files.OPEN_BYTES)
                try:
                    return node_files.unpack_taken_ms(data, self._backup_id, number) / 1000
                except v2.Malformed:
                    continue
        return None

    def put(self, files: NodeFiles) -> int:
        """Stores a set, durable when this returns its number; then removes all but the newest.

        Raises:
            StorageError: the set may be stored or not; the earlier ones are as they were.
        """
        numbers = self._numbers()
        number = max(numbers, default=0) + 1
        while True:
            salt = os.urandom(v2.SALT_BYTES)
            data = node_files.pack(files, self._backup_id, number, salt, self._master_key)
            try:
                self._objects.put_new(set_name(number), _PURPOSE, [data], op="keep node files")
            except AlreadyExists:  # another process was faster
                number += 1
            else:
                break
        self._clean(number)
        return number

    def _clean(self, newest: int) -> None:
        for number in self._numbers()[:-KEPT]:
            if number < newest:
                self._objects.delete(set_name(number), op="remove old node files")
        before = time.time() - _ABANDONED_S
        for left in self._objects.prepared(_PURPOSE):
            status = self._objects.status(left)
            if status is not None and status.stored_at < before:
                self._objects.discard(left)

    def _numbers(self) -> list[int]:
        found = map(_NAME.fullmatch, self._objects.list(_PREFIX))
        return sorted(int(match[1]) for match in found if match is not None)
