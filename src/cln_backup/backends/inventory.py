"""What can be seen of a backup from outside, also where nothing unlocks it."""

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

    from cln_backup.backends.contract import Key
    from cln_backup.backends.writer import Veil

_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the file system's own blocks are."""


class Inventory(NamedTuple):
    """What belongs to a backup.

    Attributes:
        cipher: what it is encrypted with; `None` where it is not.
        keys: all that unlock it.
        generations: how many states of the history are kept, the current one among them; `None`
            for a format that has none.
        oldest_generation_at: when the oldest one was made, in seconds since 1970.
        space_bytes: what all its files take on the disk: also those prepared for later, expired,
            set aside, or left by a process that was killed.
    """

    cipher: str | None
    keys: tuple[Key, ...]
    generations: int | None
    oldest_generation_at: float | None
    space_bytes: int


def noted_node(lock_path: str, veil: Veil | None = None) -> str | None:
    """The node whose backup this is, as the writer's lock file has it; `None` where unknown."""
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
    """What files and directories take on the disk, with all that is in them.

    Files that vanish meanwhile do not count, nor does what may not be looked into.
    """
    taken: dict[tuple[int, int], int] = {}  # a file with two names is there once
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            taken[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(found.st_mode):
                waiting.extend(os.path.join(path, name) for name in os.listdir(path))
    return sum(taken.values())
