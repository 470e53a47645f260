"""Checks a backup, and says up to which version it is good."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.replica import replay
from cln_backup.storage import interruption, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change


class Verified(NamedTuple):
    """The result of a check.

    Attributes:
        version: the data version of the backup.
        version_count: number of changes.
        replayed: whether they were replayed into a database, which was checked and removed.
        foreign_key_faults: number of rows that violate foreign keys, as in the node's database.
    """

    version: int
    version_count: int
    replayed: bool
    foreign_key_faults: int


def verify(
    reader: Reader,
    *,
    replayed: bool,
    progress: Callable[[Change], None] | None = None,
    scratch_dir: str | None = None,
) -> Verified:
    """Reads every change; on request, replays them into a database that is removed again.

    Opening the reader has already checked its structure. Without checksums, only a replay proves
    that a backup is good. The database is built in `scratch_dir`; by default beside the backup, and
    for one that is encrypted or on a server in the directory for temporary files.

    Raises:
        NotFound: the working directory does not exist.
        Damaged, ReplayFailed: the message says up to which version the backup is good.
        StorageError.
    """
    faults = 0
    standing = reader.standing
    if replayed and standing.head is not None:
        place = scratch.place(scratch_dir, reader.place.scratch_dir)
        with interruption.deferred(), scratch.directory(place, op="verify") as directory:
            path = os.path.join(directory, "replica.sqlite3")
            with read_ahead(reader) as changes:
                replica = replay(changes, path, progress)
            try:
                faults = replica.check()
            finally:
                replica.close()
    else:
        reader.check(progress)
    return Verified(standing.version, standing.version_count, replayed, faults)
