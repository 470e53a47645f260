"""Checks a backup, and says up to which version it is good."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.errors import NotFound
from cln_backup.operations.against import Compared, compare_with_node, node_database
from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.hand_over import adopt
from cln_backup.replay.replica import Healed, replay
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
        healed: faults in the history that later snapshots have healed; only a replay finds them.
    """

    version: int
    version_count: int
    replayed: bool
    foreign_key_faults: int
    healed: tuple[Healed, ...] = ()


def verify_against(
    reader: Reader,
    directory: str,
    *,
    progress: Callable[[Change], None] | None = None,
    scratch_dir: str | None = None,
) -> tuple[Verified, Compared]:
    """As `verify` with a replay; then compares the result with the database of a node.

    `directory` is the node's network directory. A running node continues meanwhile, and the
    changes that it makes are replayed too.

    Raises:
        NotFound: the node has no database, or the backup is empty.
        Discontinuity: they are at different versions, or of different nodes.
        BackupError: as `verify`, and if the database cannot be read.
    """
    node_database(directory)
    standing = reader.standing
    if standing.head is None:
        raise NotFound("The backup is empty: no change of a node was ever stored in it.")
    place = scratch.place(scratch_dir, reader.place.scratch_dir or directory)
    with interruption.deferred(), scratch.directory(place, op="verify") as work:
        path = os.path.join(work, "replica.sqlite3")
        faults, healed = _replay_and_check(reader, path, progress)
        kept = adopt(path, os.path.join(work, "replica"), reader)
        try:
            compared = compare_with_node(reader, kept, directory, work)
        finally:
            kept.close()
    found = Verified(standing.version, standing.version_count, True, faults, healed)
    return found, compared


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
    healed: tuple[Healed, ...] = ()
    standing = reader.standing
    if replayed and standing.head is not None:
        place = scratch.place(scratch_dir, reader.place.scratch_dir)
        with interruption.deferred(), scratch.directory(place, op="verify") as directory:
            path = os.path.join(directory, "replica.sqlite3")
            faults, healed = _replay_and_check(reader, path, progress)
    else:
        reader.check(progress)
    return Verified(standing.version, standing.version_count, replayed, faults, healed)


def _replay_and_check(
    reader: Reader, path: str, progress: Callable[[Change], None] | None
) -> tuple[int, tuple[Healed, ...]]:
    """Builds the database at `path`; returns its foreign key faults, and what was healed."""
    with read_ahead(reader) as changes:
        replica = replay(changes, path, progress)
    try:
        return replica.check(), tuple(replica.healed)
    finally:
        replica.close()
