"""Compares the database of a running node with its backup, piece by piece, and never in its way.

A read lock on the node's database keeps the node from committing. So each piece is read in a
transaction of its own, of some 50 ms at most; nothing is waited for inside of it. It tells the data
version V too. Then the replica is brought to exactly V, and the same part of it is compared. The
next piece may be of a later version: the parts together are the whole table, each at one version.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

import apsw

from cln_backup.model.errors import Discontinuity, StorageError
from cln_backup.replay.content import (
    Comparison,
    Difference,
    in_order,
    result_of,
    schema_differences,
)
from cln_backup.replay.pieces import Unsuitable, ways_of
from cln_backup.replay.replica import data_version
from cln_backup.replay.tables import fetched, schema_of, tables_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cln_backup.backends.contract import Reader
    from cln_backup.replay.kept import KeptReplica
    from cln_backup.replay.pieces import Way
    from cln_backup.replay.tables import SchemaRow, Table

    Found = TypeVar("Found")

Run: TypeAlias = "Callable[[Callable[[], None]], None]"
"""Does some work, and returns when it is done."""

_LOCKED_FOR_S: Final = 60.0


def call(work: Callable[[], None]) -> None:
    """Does the work here and now."""
    work()


class Lagging(Discontinuity):
    """The replica cannot be brought to the node's version (yet).

    Attributes:
        database_version: data version of the node's database.
        backup_version: of the backup.
    """

    def __init__(self, database_version: int, backup_version: int) -> None:
        super().__init__(
            f"The node's database is at data version {database_version}, but the backup at "
            f"{backup_version}: their contents cannot be compared."
        )
        self.database_version = database_version
        self.backup_version = backup_version

    @property
    def is_ahead(self) -> bool:
        """Whether the backup is ahead by its last change, which the node may still commit."""
        return self.database_version == self.backup_version - 1


class Unreadable(StorageError):
    """The node's database cannot be read, or has been locked for too long."""


class ReplicaAt:
    """Brings a replica to the version of the node's database."""

    def __init__(self, replica: KeptReplica, reader: Reader, patience_s: float = 0.0) -> None:
        """`patience_s`: how long to wait for changes that the backup does not have yet."""
        self._replica = replica
        self._reader = reader
        self._patience_s = patience_s

    def __call__(self, version: int, *, is_doubtful: bool) -> apsw.Connection:
        """The replica's database at exactly this version.

        `is_doubtful`: a difference was found. The backup is looked at again, since its last change
        may have been replaced.

        Raises:
            Lagging: the backup does not have it, or no longer.
            ReplayFailed, Damaged, StorageError: as `KeptReplica.catch_up`.
        """
        replica, reader = self._replica, self._reader
        if is_doubtful:
            reader.wait_for_more(0)
        deadline = time.monotonic() + self._patience_s
        while reader.version < version:
            left_s = deadline - time.monotonic()
            if not reader.wait_for_more(max(0.0, left_s)) and left_s <= 0:
                break
        if is_doubtful or replica.version != version:
            replica.without_head()
            if replica.version < version:
                replica.catch_up(reader, to=version)
        if replica.version != version:
            raise Lagging(version, reader.version)
        replica.connection.authorizer = None
        return replica.connection


class _Seen(NamedTuple):
    """The node's schema, at one version."""

    schema: list[SchemaRow]
    tables: dict[str, Table]


def _unreadable(path: str, error: apsw.Error) -> Unreadable:
    return Unreadable(
        f"Cannot read {path}: SQLite reports {result_of(error)}. Nothing was changed."
    )


class Beside:
    """One comparison of a whole database, made by calls of `step`.

    Attributes:
        is_locked: whether the last step found the database locked, and did nothing.
        pieces: how many pieces were read.
    """

    def __init__(self, path: str, *, run: Run = call, locked_for_s: float = _LOCKED_FOR_S) -> None:
        """Opens the node's database at `path`, to read. Raises `Unreadable`.

        All that is done under a read lock goes through `run`, which may leave it to another thread.
        """
        self._path = path
        self._run = run
        try:
            self._node = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        except apsw.Error as error:
            raise _unreadable(self._path, error) from error
        self._locked_for_s = locked_for_s
        self._locked_since: float | None = None
        self.is_locked = False
        self.pieces = 0
        self._begin()

    def _begin(self) -> None:
        self._schema_version: object = None
        self._is_doubtful = False
        self._tables: list[Table] | None = None
        self._ways: Iterator[Way] = iter(())
        self._way: Way | None = None
        self._differences: list[Difference] = []
        self._compared: list[str] = []
        self._left: list[str] = []

    @property
    def result(self) -> Comparison:
        """The differences found until now; `left` has the tables that could not be compared."""
        return Comparison(tuple(self._differences), tuple(self._compared), tuple(self._left))

    def close(self) -> None:
        """Closes the node's database."""
        self._node.close()

    def step(self, at: ReplicaAt) -> bool:
        """Reads and compares one piece; `False` if it was the last one.

        Between two steps no lock is held. After an error, the next step tries again.

        Raises:
            Lagging: the backup does not have the node's version.
            Unreadable: the database has been locked for a minute, or cannot be read.
            ReplayFailed, Damaged, StorageError: the backup cannot be replayed up to the node's
                version.
        """
        try:
            if self._tables is None:
                self._compare_schema(at)
            else:
                self._compare_piece(at)
        except apsw.BusyError as error:
            self._note_locked(error)
        except apsw.SchemaChangeError:
            self._begin()
        except apsw.Error as error:
            raise _unreadable(self._path, error) from error
        else:
            self._locked_since, self.is_locked = None, False
        return self._tables is None or self._way is not None

    def _note_locked(self, error: apsw.BusyError) -> None:
        now = time.monotonic()
        self.is_locked = True
        self._locked_since = self._locked_since or now
        if now - self._locked_since > self._locked_for_s:
            self._locked_since = None
            raise Unreadable(
                f"{self._path} has been locked by another program for {self._locked_for_s:.0f} s, "
                "so it cannot be compared. Nothing was changed."
            ) from error

    def _reading(self, read: Callable[[], Found]) -> tuple[int, Found]:
        """Runs `read` in one transaction; also returns the data version that it saw.

        A schema that has changed since the comparison began (`SchemaChangeError`): begin again.
        """
        found: list[tuple[int, Found]] = []
        self._run(lambda: found.append(self._read_in_transaction(read)))
        return found[0]

    def _read_in_transaction(self, read: Callable[[], Found]) -> tuple[int, Found]:
        node = self._node
        node.execute("BEGIN")
        try:
            version = data_version(node)
            schema_version = fetched(node, "PRAGMA schema_version")
            if self._schema_version not in (None, schema_version):
                raise apsw.SchemaChangeError
            found = read()
        finally:
            node.execute("ROLLBACK")
        self._schema_version = schema_version
        self.pieces += 1
        return version, found

    def _compare_schema(self, at: ReplicaAt) -> None:
        version, seen = self._reading(lambda: _Seen(schema_of(self._node), tables_of(self._node)))
        replica = at(version, is_doubtful=self._is_doubtful)
        differences = schema_differences(schema_of(replica), seen.schema)
        if differences and not self._is_doubtful:
            self._is_doubtful = True
            return
        ours = tables_of(replica)
        same = [name for name, table in seen.tables.items() if ours.get(name) == table]
        self._is_doubtful = False
        self._differences = differences
        self._tables = [seen.tables[name] for name in reversed(in_order(same))]
        self._next_table()

    def _next_table(self) -> None:
        self._way = None
        if self._tables:
            self._ways = ways_of(self._tables.pop())
            self._way = next(self._ways)

    def _compare_piece(self, at: ReplicaAt) -> None:
        way = self._way
        assert way is not None
        try:
            version, piece = self._reading(lambda: way.read(self._node))
            replica = at(version, is_doubtful=self._is_doubtful)
            counts = way.compare(piece, replica)
        except Unsuitable:
            self._try_next_way()
            return
        # A difference counts only if it is there a second time, with the backup as it is then.
        was_doubtful, self._is_doubtful = self._is_doubtful, not counts.are_zero
        if self._is_doubtful and not was_doubtful:
            return
        self._is_doubtful = False
        if not counts.are_zero and not way.is_exact:
            self._try_next_way()
            return
        way.counts.add(counts)
        if not piece.is_last:
            way.advance(piece)
            return
        self._compared.append(way.table.name)
        detail = way.counts.told()
        if detail is not None:
            self._differences.append(Difference(way.table.name, detail))
        self._next_table()

    def _try_next_way(self) -> None:
        assert self._way is not None
        self._is_doubtful = False
        table = self._way.table
        self._way = next(self._ways, None)
        if self._way is None:
            self._left.append(table.name)
            self._next_table()
