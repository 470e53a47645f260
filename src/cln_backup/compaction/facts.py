"""Gathers the facts for the policy of compactions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cln_backup.compaction.policy import Facts
from cln_backup.storage import scratch

UNLIMITED = 1 << 62
"""The room where a storage does not say how much it has."""

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend


def facts_of(backend: Backend, watched_since: float, compacted_at: float | None) -> Facts | None:
    """The sizes of a backup, the space on its disk, and its age.

    `None` for a backup whose storage compacts by itself.

    Looks at each file of the backup once, which takes some microseconds each. The times are in
    seconds since 1970; the age counts from the latest of the last compaction and the making of the
    snapshot, and if both are unknown from `watched_since`.

    Raises:
        StorageError: the disk failed.
    """
    generation, storage_dir = backend.generation(), backend.place.storage_dir
    if generation is None:
        return None
    known = [at for at in (compacted_at, generation.made_at) if at is not None]
    since = max(known, default=watched_since)
    room_bytes = UNLIMITED
    if storage_dir is not None:
        room_bytes = scratch.room_bytes(storage_dir, op="look at backup")
    return Facts(generation, room_bytes, max(0.0, time.time() - since))
