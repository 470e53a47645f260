"""Brings a node's own database forward by the changes of its backup, through SQLite.

All changes are applied in one SQLite transaction, which is checked before it is committed. Only a
rider between two transactions needs a commit before it, because foreign keys are switched outside a
transaction; then the work consists of several pieces, and is rehearsed on a copy first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import apsw

from cln_backup.model import statements
from cln_backup.model.change import Kind
from cln_backup.model.errors import ReplayFailed, StorageError
from cln_backup.replay.replica import data_version, node_id_in, require_lightningds
from cln_backup.replay.statement_runner import StatementRunner
from cln_backup.storage import fsio, interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change, Snapshot

_BUSY_MS = 5_000
_PAGES_PER_STEP = 256
_SAFE = (
    "SQLite takes back what was not committed, and the backup is unchanged. Run the command again "
    "when the cause is removed."
)


class Plan(NamedTuple):
    """A way to apply changes, found by looking at them without applying them.

    Attributes:
        changes: number of changes.
        first: index of the first one that is needed: the last snapshot, if there is one.
        last: index of the last transaction or snapshot; -1 if there is none.
        pieces: number of commits that it takes.
        foreign_keys: whether foreign keys are enforced before the first change.
    """

    changes: int
    first: int
    last: int
    pieces: int
    foreign_keys: bool


def changes_after(reader: Reader, version: int) -> Iterator[Change]:
    """The changes that bring a database at this version forward, with the riders at it."""
    for change in reader.stream_changes(version):
        if change.version > version or change.kind is Kind.RIDER:
            yield change


def plan_for(changes: Iterable[Change], *, foreign_keys_at_end: bool) -> Plan:
    """Looks at the changes; `foreign_keys_at_end` is what the head of the backup leaves.

    A rider that switches foreign keys tells what they were before: lightningd switches them off
    and on in turns.
    """
    count = first = pieces = 0
    last = -1
    before: bool | None = None
    within = False
    for count, change in enumerate(changes, 1):
        if change.kind is Kind.SNAPSHOT:
            first, pieces, before, within = count - 1, 1, True, False
        elif change.kind is Kind.RIDER:
            assert change.transaction is not None
            after = statements.foreign_keys_after(change.transaction, True)
            if before is None and after == statements.foreign_keys_after(change.transaction, False):
                before = not after
            within = False
            continue
        elif not within:
            pieces, within = pieces + 1, True
        last = count - 1
    return Plan(count, first, last, pieces, foreign_keys_at_end if before is None else before)


class ForwardDatabase:
    """A node's database that no lightningd has open; opening it applies a journal of a crash.

    Everything is committed with `synchronous=EXTRA`: SQLite then also syncs the directory when it
    removes its journal, without which a loss of power could bring the journal back once more.

    Attributes:
        connection: the connection; between the changes and their commit, `apply` shows it to its
            check.
    """

    def __init__(self, path: str) -> None:
        """Opens the database.

        Raises:
            StorageError: it cannot be opened, is damaged, or is locked by another program.
            NotFound: it is not lightningd's.
        """
        self._path = path
        try:
            self.connection = apsw.Connection(
                path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=0
            )
            self.connection.set_busy_timeout(_BUSY_MS)
            self.connection.execute("PRAGMA synchronous = EXTRA")
            require_lightningds(self.connection, path)
        except apsw.Error as error:
            raise self._failed(error) from error

    @property
    def version(self) -> int:
        """Its data version, within an open transaction the new one."""
        try:
            return data_version(self.connection)
        except apsw.Error as error:
            raise self._failed(error) from error

    @property
    def node_id(self) -> str | None:
        """The id of its node; `None` if it has none yet."""
        return node_id_in(self.connection)

    def apply(
        self,
        changes: Iterable[Change],
        plan: Plan,
        scratch_dir: str,
        check: Callable[[apsw.Connection], None],
    ) -> None:
        """Applies the planned changes. They are on stable storage when this returns.

        `check` gets the result before the last commit; if it raises, nothing of that last piece is
        committed. A snapshot is written to `scratch_dir` first, and checked there.

        Raises:
            ReplayFailed: a change cannot be applied to this database.
            StorageError: the disk is full or failed, or another program has locked the database.
        """
        runner = StatementRunner(self.connection, self._path, _SAFE)
        try:
            self._enforce(plan.foreign_keys)
            for number, change in enumerate(changes):
                if number < plan.first:
                    continue
                if number > plan.last:
                    break
                interruption.check()
                is_last = number == plan.last
                if change.snapshot is not None:
                    self._load(change.snapshot, scratch_dir, check if is_last else None)
                    self._enforce(True)
                    continue
                assert change.transaction is not None
                if change.kind is Kind.RIDER:
                    self._commit(runner, change.version)
                    runner.run(change.version, change.transaction)
                    continue
                if not self.connection.in_transaction:
                    self.connection.execute("BEGIN IMMEDIATE")
                runner.transaction(change)
                if is_last:
                    self.connection.authorizer = None
                    check(self.connection)
                    self._commit(runner, change.version)
        except apsw.Error as error:
            raise self._failed(error) from error
        finally:
            self.connection.authorizer = None
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _enforce(self, foreign_keys: bool) -> None:
        self.connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    def _commit(self, runner: StatementRunner, version: int) -> None:
        if self.connection.in_transaction:
            runner.run(version, ("COMMIT",))

    def _load(
        self,
        snapshot: Snapshot,
        scratch_dir: str,
        check: Callable[[apsw.Connection], None] | None,
    ) -> None:
        """Replaces the contents by a snapshot's, in one transaction of SQLite."""
        path = os.path.join(scratch_dir, "snapshot.sqlite3")
        fd = fsio.create(path, op="write snapshot")
        try:
            offset = 0
            for chunk in snapshot.chunks():
                offset = fsio.write_at(fd, [chunk], offset, op="write snapshot")
        finally:
            os.close(fd)
        source = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            if check is not None:
                check(source)
            with self.connection.backup("main", source, "main") as backup:
                while not backup.done:
                    interruption.check()
                    backup.step(_PAGES_PER_STEP)
        finally:
            source.close()
            fsio.remove(path, op="remove snapshot")

    def close(self) -> None:
        """Closes the database; with a WAL, its contents are moved into the database first."""
        self.connection.close()

    def _failed(self, error: apsw.Error) -> StorageError:
        return StorageError(f"Cannot bring {self._path} forward: {error}. {_SAFE}")


def require_version(connection: apsw.Connection, version: int) -> None:
    """Raises `ReplayFailed` if the database is not at this version."""
    found = data_version(connection)
    if found != version:
        raise ReplayFailed(
            f"The changes lead to data version {found}, and not to the backup's, {version}."
        )
