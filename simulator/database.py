"""The node's database, used as lightningd uses it (`db/db_sqlite3.c`, `db/exec.c`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from simulator.calls import Call

BUSY_TIMEOUT_MS = 60_000  # db_sqlite3_setup: a reader may hold a lock that long


class DatabaseError(Exception):
    """The database did not do what a node asks of it; lightningd stops then."""


class NodeDatabase:
    """One open database.

    Opening it sets `foreign_keys`, which is what every process of a node begins with.

    Args:
        path: the file; it is created when it does not exist.
        wal: turn the journal mode to WAL, as for a node beside an older Litestream.
        synchronous: `full` (lightningd's), `normal` or `off`.
        vfs: the name of a SQLite VFS, `None` for the usual one.

    Raises:
        DatabaseError: it cannot be opened.
    """

    def __init__(
        self, path: str, *, wal: bool = False, synchronous: str = "full", vfs: str | None = None
    ) -> None:
        try:
            self._connection = apsw.Connection(path, vfs=vfs, statementcachesize=0)
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            self._run("PRAGMA foreign_keys = ON;")
            if wal:
                self._run("PRAGMA journal_mode = WAL")
            if synchronous != "full":
                self._run(f"PRAGMA synchronous = {synchronous}")
            self.data_version = self._read_data_version()
        except apsw.Error as error:
            raise DatabaseError(f"failed to open database {path}: {error}") from error

    def _read_data_version(self) -> int:
        try:
            row = self._connection.execute(
                "SELECT intval FROM vars WHERE name = 'data_version'"
            ).fetchone()
        except apsw.SQLError:
            return 0  # no such table yet: db_data_version_get says 0 as well
        return int(row[0]) if row else 0

    def apply(self, call: Call) -> None:
        """Run a call's statements: a transaction stays open for `commit`, a rider is done at once.

        Raises:
            DatabaseError: the call does not follow on this database, or a statement failed.
        """
        rider = call.rider
        expected = self.data_version + (0 if rider else 1)
        if call.data_version != expected:
            raise DatabaseError(
                f"call {call.index} has data_version {call.data_version},"
                f" the database continues with {expected}"
            )
        if not rider:
            self._run("BEGIN TRANSACTION;")
        for write in call.writes:
            self._run(write)
        if not rider and self._connection.changes() != 1:
            raise DatabaseError("Optimistic lock on the database failed.")

    def commit(self) -> None:
        """Commit the open transaction; when this returns, the data version is one higher.

        Raises:
            DatabaseError: SQLite could not commit.
        """
        try:
            self._connection.execute("COMMIT;")
        except apsw.Error as error:
            raise DatabaseError(f"Failed to commit DB transaction: {error}") from error
        self.data_version += 1

    def close(self) -> None:
        """Close the file; an open transaction is rolled back."""
        self._connection.close()

    def _run(self, sql: str) -> None:
        try:
            try:
                self._connection.execute(sql)
            except UnicodeEncodeError:
                self._connection.execute(without_stray_bytes(sql))
        except apsw.Error as error:
            raise DatabaseError(f"Error executing statement: {sql[:200]}: {error}") from error


_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")


def without_stray_bytes(sql: str) -> str:
    """Rewrite text literals with invalid UTF-8, since apsw accepts only UTF-8.

    `CAST(x'…' AS TEXT)` gives a text of just these bytes, as the literal does in a node.
    """

    def replacement(match: re.Match[str]) -> str:
        literal = match[0]
        if literal[0] == '"' or not any("\udc80" <= char <= "\udcff" for char in literal):
            return literal
        value = literal[1:-1].replace("''", "'").encode("utf-8", "surrogateescape")
        return f"CAST(x'{value.hex()}' AS TEXT)"

    return _QUOTED.sub(replacement, sql)
