"""Facts about a backup that can be read without unlocking it."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.errors import BackupError
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cln_backup.backends.writer import Veil

_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the file system's own blocks are."""


class Key(NamedTuple):
    """A key slot: one way to unlock a backup.

    Attributes:
        label: its name.
        kind: `passphrase`, `key-file` or `hsm-secret`.
        created_at: seconds since 1970.
    """

    label: str
    kind: str
    created_at: float


class Inventory(NamedTuple):
    """The parts of a backup.

    Attributes:
        cipher: of the encryption; `None` if it is not encrypted.
        keys: its key slots.
        generations: how many generations are kept, including the current one; `None` for a format
            that has none.
        oldest_generation_at: when the oldest one was made, in seconds since 1970.
        space_bytes: the disk space of all its files, including those prepared for later, expired,
            set aside, or left by a process that was killed.
    """

    cipher: str | None
    keys: tuple[Key, ...]
    generations: int | None
    oldest_generation_at: float | None
    space_bytes: int


def noted_node(lock_path: str, veil: Veil | None = None) -> str | None:
    """The node that the backup belongs to, by the writer's lock file; `None` if unknown."""
    with contextlib.suppress(BackupError, ValueError):
        fd = fsio.open_existing(lock_path, writable=False, op="read writer lock")
        try:
            note = json.loads(fsio.read_at(fd, 4096, 0, op="read writer lock"))
        finally:
            os.close(fd)
        node = note.get("node_id") if isinstance(note, dict) else None
        if isinstance(node, str):
            return node if veil is None else veil.reveal(node)
    return None


def space_bytes(paths: Iterable[str]) -> int:
    """The disk space of files and directories, with their contents.

    Files that disappear meanwhile do not count, nor do directories that may not be read.
    """
    taken: dict[tuple[int, int], int] = {}  # count a file with two names once
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            taken[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(found.st_mode):
                waiting.extend(os.path.join(path, name) for name in os.listdir(path))
    return sum(taken.values())
