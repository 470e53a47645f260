"""A rehearsal of a restore: as an operator would do it, timed, compared with the node, removed."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.errors import Damaged, Discontinuity, ReplayFailed
from cln_backup.node.settings import read_state, write_state
from cln_backup.operations.against import (
    Compared,
    NotCommitted,
    compare_with_node,
    node_database,
)
from cln_backup.operations.restore import restore
from cln_backup.replay.hand_over import adopt
from cln_backup.storage import interruption, ownership, scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change


class Drilled(NamedTuple):
    """The result of a drill that passed, or found differences.

    Attributes:
        version: data version of the restored database.
        version_count: number of changes replayed.
        size_bytes: of the restored database.
        foreign_key_faults: number of rows that violate foreign keys, as in the node's database.
        restore_s: how long the restore took, in seconds.
        passed: whether the restored database is the node's.
        compared: the comparison.
    """

    version: int
    version_count: int
    size_bytes: int
    foreign_key_faults: int
    restore_s: float
    passed: bool
    compared: Compared


@contextlib.contextmanager
def failures_remembered(directory: str) -> Iterator[None]:
    """Records a failed drill in `backup.state` if the block finds the backup bad.

    Not if it is interrupted, finds no space, or cannot compare because the node was killed: that
    tells nothing about the backup.
    """
    try:
        yield
    except NotCommitted:
        raise
    except (Damaged, ReplayFailed, Discontinuity):
        _remember(directory, passed=False, restore_s=None)
        raise


def drill(
    reader: Reader,
    directory: str,
    progress: Callable[[Change], None] | None = None,
    scratch_dir: str | None = None,
) -> Drilled:
    """Restores the backup in a scratch place, and compares the result with the node's database.

    The place is `scratch_dir`, or the node's network directory, `directory`. Its `backup.state`
    then says when this was done, and whether it passed. After an error: see `failures_remembered`.

    Raises:
        NotFound: the node has no database, or the backup is empty.
        Damaged, ReplayFailed, Discontinuity: the drill failed.
        StorageError, NodeRunning: it could not be finished.
    """
    needed_bytes = os.path.getsize(node_database(directory))
    place = scratch.place(scratch_dir, directory)
    scratch.require_room(place, op="rehearse a restore", needed_bytes=needed_bytes)
    with interruption.deferred(), scratch.directory(place, op="drill") as work:
        done = _rehearse(reader, directory, work, progress)
    _remember(directory, passed=done.passed, restore_s=done.restore_s)
    return done


def _rehearse(
    reader: Reader, directory: str, work: str, progress: Callable[[Change], None] | None
) -> Drilled:
    begun = time.monotonic()
    restored = restore(reader, work, progress)
    restore_s = time.monotonic() - begun
    replica = adopt(restored.path, os.path.join(work, "replica"), reader)
    try:
        compared = compare_with_node(reader, replica, directory, work)
    finally:
        replica.close()
    return Drilled(
        restored.version,
        restored.version_count,
        restored.size_bytes,
        restored.foreign_key_faults,
        round(restore_s, 3),
        not compared.differences,
        compared,
    )


def _remember(directory: str, *, passed: bool, restore_s: float | None) -> None:
    with ownership.of_node(directory):
        state = read_state(directory)
        write_state(
            directory,
            state._replace(drilled_at=time.time(), drill_passed=passed, drill_restore_s=restore_s),
        )
