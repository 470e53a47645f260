"""Runs the statements of a backup on a database: as the node ran them, and on no other file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import apsw

from cln_backup.model import statements
from cln_backup.model.errors import ReplayFailed, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.model.change import Change

_PLAIN_STARTS: Final = frozenset("ABCDIRSU")
_PRAGMAS: Final = frozenset(
    (
        "foreign_keys",
        "defer_foreign_keys",
        "ignore_check_constraints",
        "legacy_alter_table",
        "recursive_triggers",
        "user_version",
    )
)
_CONSTRAINT: Final = re.compile(
    r"(?:UNIQUE|NOT NULL|CHECK|FOREIGN KEY|PRIMARY KEY) constraint failed(?:: [\w.]+(?:, [\w.]+)*)?"
)
_UNFINISHED: Final = "The unfinished database cannot be used; the backup is unchanged."


class StatementRunner:
    """Runs statements on one connection; the caller begins and commits transactions.

    While it is in use, set the connection's authorizer to `None` before any other statement.
    """

    def __init__(
        self, connection: apsw.Connection, path: str, if_the_disk_fails: str = _UNFINISHED
    ) -> None:
        """`path` and `if_the_disk_fails` are for messages: the database, and what is safe then."""
        # A backup may be hostile: its statements must not reach any other file.
        connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)
        self._connection = connection
        self._execute = connection.cursor().execute
        self._path = path
        self._if_the_disk_fails = if_the_disk_fails

    def transaction(self, change: Change) -> None:
        """Runs the statements of a transaction, inside one that the caller has begun.

        Raises:
            ReplayFailed: a statement fails, or the last one does not set the change's version in
                exactly one row; the message names no contents.
            StorageError: the disk is full or failed.
        """
        assert change.transaction is not None
        self.run(change.version, change.transaction)
        sets_version = statements.bumps_data_version_to(change.transaction[-1]) == change.version
        if not sets_version or self._connection.changes() != 1:
            raise ReplayFailed(
                f"The transaction for data version {change.version} does not match the database "
                "before it: its last statement must set this version in exactly one row. The "
                "backup contains changes of different histories. Keep it as it is, and do not "
                "start a node on a database made from it.",
                good_version=change.version - 1,
            )

    def run(self, version: int, batch: Sequence[str]) -> None:
        """Runs statements of the change for this version. Raises as `transaction`."""
        # Statements of the kinds that lightningd uses are harmless; for any other, SQLite asks the
        # authorizer about each action.
        plain = all(statement[:1] in _PLAIN_STARTS for statement in batch)
        self._connection.authorizer = None if plain else _authorize
        execute = self._execute
        rest = iter(batch)
        statement = ""
        while True:
            try:
                for statement in rest:
                    execute(statement)
            except (UnicodeEncodeError, apsw.Error) as error:
                self._run_mended(version, statement, error)
            else:
                return

    def _run_mended(self, version: int, statement: str, error: Exception) -> None:
        """Runs a statement in an equivalent form, if there is one."""
        if isinstance(error, apsw.FullError | apsw.IOError):
            raise StorageError(
                f"Cannot write {self._path}: {error}. {self._if_the_disk_fails}"
            ) from error
        mended = statement
        if isinstance(error, UnicodeEncodeError):
            mended = statements.with_stray_bytes_as_hex(statement)
        elif isinstance(error, apsw.SQLError):
            mended = statements.mend(statement)
        if mended == statement:
            raise _failed(version, statement, _harmless(error)) from None
        try:
            self._execute(mended)
        except (UnicodeEncodeError, apsw.Error) as still:
            raise _failed(version, statement, _harmless(still)) from None


def _failed(version: int, statement: str, why: str) -> ReplayFailed:
    return ReplayFailed(
        f"The change for data version {version} cannot be replayed: its "
        f"{statements.kind(statement)} {why}. The backup can be replayed up to version "
        f"{version - 1}. Keep it as it is.",
        good_version=version - 1,
    )


def _harmless(error: Exception) -> str:
    """SQLite's message if it is about the schema only; otherwise the class of the error."""
    constraint = _CONSTRAINT.fullmatch(str(error))
    return f"fails ({type(error).__name__ if constraint is None else constraint[0]})"


def _authorize(
    action: int, name: str | None, _value: str | None, _database: str | None, _trigger: str | None
) -> int:
    """Permits everything except `PRAGMA`s that would change the process or other files."""
    if action == apsw.SQLITE_PRAGMA and (name or "").lower() not in _PRAGMAS:
        return apsw.SQLITE_DENY
    return apsw.SQLITE_OK
