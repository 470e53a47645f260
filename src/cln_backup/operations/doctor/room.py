"""The room on the disks of the backup and of the node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator


_LEAST_BYTES: Final = 64 << 20


class Room(NamedTuple):
    """The free room, without the reserve, and the room that may still be needed.

    `None` means unknown.

    Attributes:
        backup_bytes, node_bytes: free for each.
        growth_bytes: how much the backup may still grow.
        database_bytes: of the node's database, which a restore or a drill needs once more.
    """

    backup_bytes: int | None
    growth_bytes: int | None
    node_bytes: int | None
    database_bytes: int


def gather(
    storage_dir: str | None,
    directory: str | None,
    database: str | None,
    *,
    bound_bytes: int | None,
    used_bytes: int | None,
) -> Room:
    """Measures the room. Raises `OSError`, `StorageError`."""
    op = "look for room"
    growth = None
    if bound_bytes is not None and used_bytes is not None:
        growth = max(0, bound_bytes - used_bytes)
    return Room(
        None if storage_dir is None else scratch.room_bytes(storage_dir, op=op),
        growth,
        None if directory is None else scratch.room_bytes(directory, op=op),
        0 if database is None else os.path.getsize(database),
    )


def judge(room: Room) -> Iterator[Finding]:
    """The findings about the room."""
    if room.backup_bytes is not None:
        needed = max(room.growth_bytes or 0, room.database_bytes, _LEAST_BYTES)
        text = f"The disk of the backup has {_mb(max(0, room.backup_bytes))} left"
        if room.backup_bytes <= 0:
            yield Finding(
                "room",
                Level.BAD,
                f"{text}, besides the reserve.",
                "Free space now. If the disk is full, the node halts at its next change, without "
                "a loss.",
            )
        elif room.backup_bytes < needed:
            yield Finding(
                "room",
                Level.WARNING,
                f"{text}; the backup may need {_mb(needed)} more, also for a compaction.",
                "Free space, or compact more often (lightningd's option backup-compact-ratio).",
            )
        else:
            yield Finding("room", Level.GOOD, f"{text}; the backup may need {_mb(needed)} more.")
    if room.node_bytes is not None:
        text = f"The node's disk has {_mb(max(0, room.node_bytes))} left"
        if room.node_bytes <= 0:
            yield Finding(
                "room-of-node",
                Level.BAD,
                f"{text}, besides a reserve.",
                "Free space now: lightningd stops when its disk is full.",
            )
        elif room.node_bytes < room.database_bytes + _LEAST_BYTES:
            yield Finding(
                "room-of-node",
                Level.WARNING,
                f"{text}: too little for a second database, as a drill, a roll forward or the "
                "follower needs it.",
                "Free space on that disk.",
            )
        else:
            yield Finding("room-of-node", Level.GOOD, f"{text}.")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
