"""How the community's plugin writes its file: its rules in a few lines, for tests to write by.

An entry always goes to the end of the file, wherever the header says that it goes. The header is
written over in place after each entry. A rewind happens in memory only, so that no header ever
says so; what it changes there comes to the file with the header of the next entry, together with
an offset that no longer is the end of the file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cln_backup.model.change import Change

_HEADER = ">IIQIQQ"
_ENTRY = ">IIB"


def packed(change: Change) -> bytes:
    """A change's entry."""
    if change.transaction is not None:
        kind = 1
        payload = b"\0".join(text.encode("utf-8", "surrogateescape") for text in change.transaction)
    else:
        assert change.snapshot is not None
        kind, payload = 2, b"".join(change.snapshot.chunks())
    return struct.pack(_ENTRY, len(payload), change.version, kind) + payload


class SeedFile:
    """One process of the community's plugin, and the file that it has open."""

    def __init__(self, path: Path) -> None:
        """A new process on a file that is there."""
        self.path = path
        with path.open("rb") as file:
            fields = struct.unpack(_HEADER, file.read(36))
        self.version, self.next_offset, self.prev_version, self.prev_offset, self.count = fields[1:]

    @classmethod
    def create(cls, path: Path) -> SeedFile:
        path.write_bytes(struct.pack(_HEADER, 1, 0, 512, 0, 0, 0).ljust(512, b"\0"))
        return cls(path)

    def header(self) -> bytes:
        """The header in memory."""
        fields = (self.version, self.next_offset, self.prev_version, self.prev_offset, self.count)
        return struct.pack(_HEADER, 1, *fields).ljust(512, b"\0")

    def append(self, change: Change, *, cut_bytes: int | None = None, header: bool = True) -> None:
        """Writes a change; with `cut_bytes`, dies when that much of the entry is written.

        With `header=False` it dies between the entry and the header.
        """
        entry = packed(change)
        with self.path.open("ab") as file:
            file.write(entry if cut_bytes is None else entry[:cut_bytes])
        if cut_bytes is not None or not header:
            return
        self.prev_version, self.prev_offset = self.version, self.next_offset
        self.version = change.version
        self.next_offset += len(entry)
        self.count += 1
        with self.path.open("r+b") as file:
            file.write(self.header())

    def rewind(self) -> bool:
        """Goes back by one change, in memory; refuses to do so twice, or to before the first."""
        if 0 in (self.prev_offset, self.prev_version):
            return False
        self.version, self.next_offset = self.prev_version, self.prev_offset
        self.prev_version = self.prev_offset = 0
        return True

    def first_call(self, version: int) -> bool:
        """The check of its plugin at the first call of a process; `False` if it kills the node.

        It takes every call for a transaction, also one that is a rider.
        """
        if self.version == version - 1:
            return True
        return self.prev_version == version - 1 and self.rewind()


class SeedNode:
    """A node with the community's plugin: what it committed, and the file that came of it."""

    def __init__(self, path: Path, committed: Sequence[Change] = ()) -> None:
        self._file = SeedFile.create(path)
        self._path = path
        self._first = True
        self.committed: list[Change] = []
        self.never_committed = 0
        for change in committed:
            self.commits(change)

    @classmethod
    def of(cls, path: Path, base: Change) -> SeedNode:
        """A node whose backup was begun with a snapshot of its database."""
        node = cls(path)
        node._file.append(base)
        node.committed.append(base)
        node.restarts()
        return node

    def commits(self, *changes: Change) -> None:
        for change in changes:
            self._asks(change)
            self._file.append(change)
            self.committed.append(change)

    def crashes_after_the_answer(self, change: Change) -> None:
        """The change is in the file, and the node never commits it."""
        self._asks(change)
        self._file.append(change)
        self._dies()

    def crashes_before_the_header(self, change: Change) -> None:
        self._asks(change)
        self._file.append(change, header=False)
        self._dies()

    def crashes_in_the_write(self, change: Change, cut_bytes: int) -> None:
        self._asks(change)
        self._file.append(change, cut_bytes=cut_bytes)
        self._dies()

    def restarts(self) -> None:
        """Stops as it should and starts again; nothing is in doubt."""
        self._file = SeedFile(self._path)
        self._first = True

    def _dies(self) -> None:
        self.never_committed += 1
        self.restarts()

    def _asks(self, change: Change) -> None:
        if self._first:
            assert self._file.first_call(change.version), "that plugin would kill the node here"
        self._first = False


def compacted(path: Path, base: Change, head: Change) -> None:
    """Writes what its compaction leaves: a snapshot, and the last change on top of it."""
    path.unlink(missing_ok=True)
    clone = SeedFile.create(path)
    clone.version = head.version - 2
    clone.append(base)
    clone.append(head)
