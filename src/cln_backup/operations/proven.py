"""A copy of a node's database that provably continues what the backup holds.

The data version proves little: an old copy of the database overtakes the backup's version by new
blocks alone. So everything that only grows in a node's database is compared with a replica of the
backup (`replay.descent`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.model.errors import (
    BackupError,
    Damaged,
    Discontinuity,
    ReplayFailed,
    StorageError,
    WriterConflict,
)
from cln_backup.replay.descent import behind
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.replica import copy_database, node_id_in
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cln_backup.backends.contract import Reader
    from cln_backup.replay.descent import Behind

_OP: Final = "take snapshot"
_NAMED: Final = 6
"""How many differences a message lists."""

_WAIT_FOR_REPLICA_S: Final = 5.0

_log = logging.getLogger(__name__)


class Copy(NamedTuple):
    """A copy of a database: its path, and its data version."""

    path: str
    version: int


@contextlib.contextmanager
def proven_copy(
    reader: Reader,
    database: str,
    replica_dir: str | None,
    *,
    head_in_doubt: bool,
    alarmed: bool = False,
    until: float | None = None,
) -> Iterator[Copy]:
    """A consistent copy of the database, beside it, for the duration of the block.

    Args:
        reader: of the backup.
        database: the path of the node's database; it may be in use.
        replica_dir: the kept replica; without one, the backup is replayed beside the database.
        head_in_doubt: whether the head of the backup may never have been committed.
        alarmed: whether the backup is known not to replay to its end; the comparison is then with
            the last version that it leads to.
        until: in monotonic time.

    Raises:
        Discontinuity: the database, or something in it, is older than in the backup.
        ReplayFailed: the backup does not replay to its end, and this was not known.
        NotFound, StorageError, Damaged: there is no copy, or nothing to compare it with.
    """
    place = os.path.dirname(os.path.abspath(database))
    scratch.require_room(place, op=_OP, needed_bytes=os.path.getsize(database))
    with scratch.directory(place, op=_OP) as directory:
        path = os.path.join(directory, "snapshot.sqlite3")
        with ThreadPoolExecutor(1) as beside:
            copying = beside.submit(copy_database, database, path)
            if until is None or reader.standing.head is None:
                require_newer(copying.result(), reader.version)  # one thread acts on signals
            if reader.standing.head is not None:
                with _replica(replica_dir, directory) as replica:
                    _catch_up(replica, reader, alarmed=alarmed, until=until)
                    if copying.result() > reader.version and replica.position is None:
                        raise StorageError(
                            "Nothing of the backup can be replayed to compare the database with."
                        )
                    try:
                        _require_descent(replica, path, head_in_doubt=head_in_doubt)
                    except Discontinuity:
                        if replica.is_new:
                            raise
                        scratch.require_room(place, op=_OP, needed_bytes=os.path.getsize(path))
                        if not _is_refuted(
                            *(replica, reader, directory, path),
                            head_in_doubt=head_in_doubt,
                            until=until,
                        ):
                            raise
            version = copying.result()
        yield Copy(path, version)


def _is_refuted(
    replica: KeptReplica,
    reader: Reader,
    directory: str,
    path: str,
    *,
    head_in_doubt: bool,
    until: float | None,
) -> bool:
    """Whether the kept replica is damaged: the database descends from a fresh replay.

    Then the kept one is made empty, and the follower builds it again.
    """
    reached = replica.version
    fresh = KeptReplica.open(os.path.join(directory, "replica"))
    try:
        _catch_up(fresh, reader, alarmed=False, until=until)
        if fresh.version < reached:
            return False
        _require_descent(fresh, path, head_in_doubt=head_in_doubt)
    except BackupError:
        return False
    finally:
        fresh.close()
    _log.warning("The follower's replica in %s was damaged: it is built again.", replica.directory)
    replica.start_anew()
    return True


def require_newer(version: int, backup_version: int) -> None:
    """Raises `Discontinuity` if the database's version is lower than the backup's."""
    if version < backup_version:
        raise Discontinuity(
            f"The backup is newer than the database and must be kept: the database is at data "
            f"version {version}, the backup at {backup_version}. A node that starts on "
            "the older database can lose its funds. If the node was only killed, start it: the "
            "plugin handles one change that was not committed. Otherwise restore from the "
            "backup: backup-cli restore"
        )


@contextlib.contextmanager
def _replica(replica_dir: str | None, directory: str) -> Iterator[KeptReplica]:
    """The kept replica, or a new one in the temporary directory."""
    replica = None
    if replica_dir is not None and os.path.isdir(replica_dir):
        with contextlib.suppress(WriterConflict, StorageError):
            replica = opened_when_free(replica_dir, _WAIT_FOR_REPLICA_S)
    if replica is None:
        replica = KeptReplica.open(os.path.join(directory, "replica"))
    try:
        yield replica
    finally:
        replica.close()


def opened_when_free(replica_dir: str, wait_s: float) -> KeptReplica:
    """Opens a kept replica; waits for a follower of the node's last process, which is ending.

    Raises `WriterConflict`, `StorageError`.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            return KeptReplica.open(replica_dir)
        except WriterConflict:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


def _catch_up(replica: KeptReplica, reader: Reader, *, alarmed: bool, until: float | None) -> None:
    try:
        finished = replica.catch_up(reader, until=until)
    except (ReplayFailed, Damaged):
        if not alarmed:
            raise
        finished = True
        if replica.position is None:
            replica.start_anew()  # a snapshot that cannot be loaded leaves no database
    if not finished:
        raise StorageError("Replaying the backup takes longer than the node can wait.")


def _require_descent(replica: KeptReplica, path: str, *, head_in_doubt: bool) -> None:
    try:
        database = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error as error:
        raise StorageError(f"Cannot open the copy {path}: {error}") from error
    with contextlib.closing(database):
        ours, theirs = node_id_in(replica.connection), node_id_in(database)
        if ours not in (None, theirs):
            raise Discontinuity(
                f"The database is of the node {theirs}, but the backup is of the node {ours}"
            )
        found = behind(replica.connection, database)
        if found and head_in_doubt:
            # Answered, never committed, and then the node ran on without its backup.
            replica.without_head()
            found = behind(replica.connection, database)
    if found:
        raise Discontinuity(
            f"Parts of the database are older than in the backup: {in_words(found)}. So it is an "
            "old copy of this node's database, or another node's, and ran on without the plugin; "
            "a node that continues from an old state can lose its funds"
        )


def in_words(found: Sequence[Behind]) -> str:
    """The names and both numbers, for an operator."""
    parts = [
        f"{what}: {'missing' if old is None else old} in the database, {new} in the backup"
        for what, old, new in found
    ]
    rest = len(parts) - _NAMED
    return "; ".join(parts[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
