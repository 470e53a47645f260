"""Compares the content of a node's database, stopped or running, with that of a backup."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.errors import Discontinuity, NodeRunning, NotFound
from cln_backup.node.outside import find_database, require_stopped
from cln_backup.node.settings import read_settings
from cln_backup.operations.kept_copy import JOURNALS, has_journal
from cln_backup.replay.beside import Beside, Lagging, ReplicaAt
from cln_backup.replay.content import digest, in_words, table_digests
from cln_backup.replay.replica import apply_journal, node_id_in, node_id_of
from cln_backup.storage import fsio, interruption

if TYPE_CHECKING:
    from cln_backup.backends.contract import Reader
    from cln_backup.replay.kept import KeptReplica

_LAG_S: Final = 10.0
"""How long a backup may lag after a running node, as a copy on another machine does."""

_PAUSE_S: Final = 0.02
_FORMAT_AT: Final = 18
_WAL_FORMAT: Final = b"\x02"
_OP: Final = "compare the database"


class NotCommitted(Discontinuity):
    """The node has not committed the last change of its backup, which therefore is ahead."""


class Compared(NamedTuple):
    """The result of a comparison.

    Attributes:
        database: the node's.
        compared_version: data version at which the last part was compared; a running node may
            have begun at an earlier one.
        tables: number of tables of which all rows were compared.
        not_compared: tables that are too large to be compared while the node runs.
        differences: where the two differ, in words; empty if nowhere.
        indexes: where only indexes, triggers or views differ, in words; these hold no data.
        content_digest: of the backup's content at that version, as docs/format.md defines it.
    """

    database: str
    compared_version: int
    tables: int
    not_compared: tuple[str, ...]
    differences: str
    indexes: str
    content_digest: str


def node_database(directory: str) -> str:
    """The path of the database of a node that has a `backup.lock`.

    Raises:
        NotFound: it has none yet.
        BadSettings, StorageError.
    """
    database = find_database(directory, read_settings(directory).wallet)
    if database is None:
        raise NotFound(f"There is no database in {directory} to compare the backup with.")
    return database


def compare_with_node(
    reader: Reader, replica: KeptReplica, directory: str, scratch_dir: str
) -> Compared:
    """Compares all tables at the same version; never holds a read lock for more than 0.1 s.

    `replica` is of this backup, at its head, and may go back by one change. A stopped node's
    database with a journal is copied to `scratch_dir` first, since to open it would change it.

    Raises:
        Discontinuity: they are at different versions, or of different nodes.
        BackupError: one of them cannot be read.
    """
    database = node_database(directory)
    is_running = _is_running(directory, database)
    path = database if is_running else _without_journal(database, scratch_dir)
    ours, theirs = node_id_in(replica.connection), node_id_of(path)
    if None not in (ours, theirs) and ours != theirs:
        raise Discontinuity(
            f"{database} is the database of node {theirs}, but the backup is of node {ours}."
        )
    with contextlib.closing(Beside(path)) as beside:
        _run(beside, replica, reader, _LAG_S if is_running else 0.0)
        found = beside.result
    data = [one for one in found.differences if not one.is_index]
    indexes = [one for one in found.differences if one.is_index]
    tables = table_digests(replica.connection)
    return Compared(
        database,
        replica.version,
        len(found.compared),
        found.left,
        in_words(data),
        in_words(indexes),
        digest(replica.connection, tables).hex(),
    )


def _run(beside: Beside, replica: KeptReplica, reader: Reader, patience_s: float) -> None:
    at, more = ReplicaAt(replica, reader, patience_s), True
    deadline = time.monotonic() + patience_s
    while more:
        interruption.check()
        try:
            more = beside.step(at)
        except Lagging as error:
            # A running node is just about to commit the last change of its backup.
            if not error.is_ahead or time.monotonic() >= deadline:
                raise _explained(error) from error
            time.sleep(_PAUSE_S)
        else:
            if beside.is_locked:
                time.sleep(_PAUSE_S)


def _explained(error: Lagging) -> Discontinuity:
    if error.is_ahead:
        return NotCommitted(
            f"{error} The node has not committed the last change of its backup: it was killed, and "
            "its next start settles that. Compare again while it runs."
        )
    if error.database_version > error.backup_version:
        advice = (
            "The backup lacks changes. A copy lags by its nature: compare the backup that the "
            "plugin writes. Otherwise the node has run without its backup; its next start brings "
            "the backup up to date."
        )
    else:
        advice = (
            "The database is older than the backup. Do not start a node on it: it would lose its "
            "funds if its peers have seen a newer state."
        )
    return Discontinuity(f"{error} {advice}")


def _is_running(directory: str, database: str) -> bool:
    try:
        require_stopped(directory, database)
    except NodeRunning:
        return True
    return False


def _without_journal(database: str, scratch_dir: str) -> str:
    """The database of a stopped node; a copy of it if SQLite would change it by opening it."""
    if not has_journal(database) and not _is_wal(database):
        return database
    before = _state(database)
    copy = os.path.join(scratch_dir, "node.sqlite3")
    for suffix in ("", *JOURNALS):
        if fsio.kind_at(database + suffix, op=_OP) == "file":
            fsio.copy(database + suffix, copy + suffix, op=_OP)
    if _state(database) != before:
        raise NodeRunning(
            f"{database} was changed while it was copied: the node has just started. Compare it "
            "again."
        )
    apply_journal(copy)
    return copy


def _is_wal(database: str) -> bool:
    fd = fsio.open_existing(database, writable=False, op=_OP)
    try:
        return fsio.read_at(fd, 1, _FORMAT_AT, op=_OP) == _WAL_FORMAT
    finally:
        os.close(fd)


def _state(database: str) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for suffix in ("", *JOURNALS):
        try:
            stat = os.stat(database + suffix)
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found
