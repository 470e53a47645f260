"""Proves that a database, brought forward by the backup's changes, is the backup's database."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.errors import ReplayFailed, StorageError, WriterConflict
from cln_backup.replay.ahead import read_ahead
from cln_backup.replay.content import compare
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.replica import Replica, data_version, is_sound, node_id_in
from cln_backup.storage import interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    import apsw

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change


class Proof(NamedTuple):
    """The requirements for the result.

    Attributes:
        replica: a database made from the backup alone.
        version: data version of both.
        node_id: the node of the database as found; `None` if it had none.
    """

    replica: apsw.Connection
    version: int
    node_id: str | None

    def faults_in(self, result: apsw.Connection) -> str:
        """The fault of the result, for a message; empty if it has none.

        Raises `StorageError`.
        """
        version = data_version(result)
        if version != self.version:
            return f"the backup's changes lead to version {version}, not to the backup's"
        if self.node_id not in (None, node_id_in(result)):
            return "the backup's changes make it another node's"
        if not is_sound(result):
            return "SQLite's integrity check failed. Check its disk for errors"
        return differences(self.replica, result)


def differences(replica: apsw.Connection, database: apsw.Connection) -> str:
    """Where the rows of two databases differ, for a message; empty if nowhere.

    An index holds no data: one that was made or removed by hand does not count.
    """
    found = [each for each in compare(replica, database).differences if not each.is_index]
    if not found:
        return ""
    where = "; ".join(f"{each.table}: {each.detail}" for each in found)
    return f"its content is not the backup's ({where})"


class Passing(NamedTuple):
    """A database that must have the content of the history at an earlier version.

    Attributes:
        refuse: called with what is wrong; raises an error.
    """

    version: int
    database: apsw.Connection
    refuse: Callable[[str], NoReturn]


@contextlib.contextmanager
def kept_replica(reader: Reader, directory: str) -> Iterator[apsw.Connection | None]:
    """The node's kept replica at the backup's version; `None` if it cannot be used.

    Raises `Damaged`: the backup cannot be read.
    """
    if not os.path.isdir(directory):
        yield None
        return
    try:
        replica = KeptReplica.open(directory)
    except (WriterConflict, StorageError):
        yield None
        return
    try:
        usable = True
        try:
            replica.catch_up(reader)
            replica.connection.authorizer = None
        except (ReplayFailed, StorageError):
            usable = False
        yield replica.connection if usable else None
    finally:
        replica.close()


@contextlib.contextmanager
def replica_of(
    reader: Reader,
    directory: str,
    *,
    passing: Passing | None = None,
    progress: Callable[[Change], None] | None = None,
) -> Iterator[apsw.Connection]:
    """A database made from the backup alone, at its version, for the duration of the block.

    It is built in `directory`. On the way, a database may be compared at an earlier version. Where
    the changes do not replay, it continues at the next snapshot, which has healed the backup.

    Raises:
        ReplayFailed, Damaged, StorageError: the backup does not replay.
    """
    replica = Replica(os.path.join(directory, "replica.sqlite3"))
    failed: ReplayFailed | None = None
    try:
        with read_ahead(reader) as changes:
            for change in changes:
                interruption.check()
                if passing is not None and change.version > passing.version:
                    if failed is not None:
                        break
                    _require_same(replica, passing)
                    passing = None
                if failed is None or change.snapshot is not None:
                    failed = _failure_of(replica, change)
                if progress is not None and failed is None:
                    progress(change)
        if failed is not None:
            raise failed
        replica.check()
        yield replica.connection
    finally:
        replica.close()


def _failure_of(replica: Replica, change: Change) -> ReplayFailed | None:
    try:
        replica.apply(change)
    except ReplayFailed as error:
        return error
    return None


def _require_same(replica: Replica, passing: Passing) -> None:
    if replica.applied != passing.version:
        passing.refuse(f"its version, {passing.version}, is not in the backup's history")
    fault = differences(replica.connection, passing.database)
    if fault:
        passing.refuse(f"at version {passing.version}, {fault}")
