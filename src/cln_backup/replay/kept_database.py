"""The database of a kept replica: its file, in WAL mode, and the connection to it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.model.errors import ReplayFailed, StorageError
from cln_backup.replay.kept_directory import SUFFIXES, remove_in_steps
from cln_backup.replay.kept_file import CommittedFile
from cln_backup.replay.replica import data_version, is_sound
from cln_backup.replay.statement_runner import StatementRunner
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

_WAL_BYTES: Final = 1 << 22
_WAL_PAGES: Final = 1000
_CLOSED: Final = -1
_STEPS: Final = 1_000_000
_SAFE: Final = "The replica continues where it was; the backup is not affected."


class Header(NamedTuple):
    """The numbers that say how far the replica has come (`reached`)."""

    version: int
    user_version: int
    application_id: int


class KeptDatabase:
    """A database file at a path, and at most one connection to it.

    Attributes:
        connection: valid while `is_open`.
        runner: for the statements of changes.
    """

    connection: apsw.Connection
    runner: StatementRunner

    def __init__(self, path: str) -> None:
        """Opens nothing yet."""
        self._path = path
        self._inode = _CLOSED
        self._is_frozen = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._inode != _CLOSED

    def open(self) -> Header | None:
        """Opens the file that is there; `None` if it is not a database. Raises `StorageError`."""
        try:
            self._connect()
            numbers = (self._number(name) for name in Header._fields[1:])
            return Header(data_version(self.connection), *numbers)
        except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError):
            return None
        except apsw.Error as error:
            raise self.failed(error) from error

    def create(self) -> None:
        """Replaces what is there by an empty database. Raises `StorageError`."""
        self.remove()
        os.close(fsio.create(self._path, op="create replica"))
        try:
            self._connect()
        except apsw.Error as error:
            raise self.failed(error) from error

    def _connect(self) -> None:
        self.connection = connection = apsw.Connection(
            self._path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=0
        )
        self._inode = os.stat(self._path).st_ino
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # it would take long
        for pragma in (
            "locking_mode = EXCLUSIVE",  # first: then a WAL needs no shared memory file
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {_WAL_PAGES}",
            f"journal_size_limit = {_WAL_BYTES}",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self.runner = StatementRunner(connection, self._path, _SAFE)

    def _number(self, pragma: str) -> int:
        found = self.connection.execute(f"PRAGMA {pragma}").fetchall()[0][0]
        assert isinstance(found, int)
        return found

    def close(self) -> None:
        """Closes the connection; an open transaction is rolled back, and nothing is synced."""
        if self.is_open:
            self._inode = _CLOSED
            self.connection.close()

    def remove(self) -> None:
        """Closes the connection and removes the files. Raises `StorageError`."""
        self.close()
        for suffix in SUFFIXES:
            if self._is_frozen:  # its bytes are still being read
                fsio.remove(self._path + suffix, op="remove replica")
            else:
                remove_in_steps(self._path + suffix)

    def is_in_place(self) -> bool:
        """Whether the file is still at its path."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def is_sound(self) -> bool:
        """Whether SQLite's integrity check passes. Raises `StorageError`."""
        connection = self.connection
        connection.authorizer = None
        connection.set_progress_handler(_go_on, _STEPS)
        try:
            return is_sound(connection)
        except (apsw.CorruptError, apsw.NotADBError):
            return False
        except apsw.Error as error:
            raise self.failed(error) from error
        finally:
            connection.set_progress_handler(None)

    def check(self, version: int) -> int:
        """See `KeptReplica.check`."""
        faults = 0
        sound = self.is_sound()
        try:
            if sound and data_version(self.connection) == version:
                faults = sum(1 for _ in self.connection.execute("PRAGMA foreign_key_check"))
            else:
                sound = False
        except apsw.Error as error:
            raise self.failed(error) from error
        if not sound:
            raise ReplayFailed(
                f"Integrity check failed: SQLite found errors in the replica at version {version}."
            )
        return faults

    @contextlib.contextmanager
    def frozen(self) -> Iterator[CommittedFile]:
        """The file with all that is committed; until the end of the block it stays as it is.

        There must be no open transaction at the start. Raises `StorageError`.
        """
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        except apsw.Error as error:
            raise self.failed(error) from error
        with CommittedFile(self._path) as file:
            self._is_frozen = True
            try:
                yield file
            finally:
                self._is_frozen = False
                if self.is_open:
                    pragma = f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}"
                    self.connection.execute(pragma).fetchall()

    def failed(self, error: apsw.Error) -> StorageError:
        """An error of SQLite, for the operator."""
        return StorageError(f"Cannot use the replica {self._path}: {error}. {_SAFE}")


def _go_on() -> bool:
    """Called between the steps of a long statement, where Python runs handlers of signals."""
    return False


def mark(path: str, user_version: int, application_id: int) -> None:
    """Writes how far a database has come into it, which makes it a replica's.

    Raises `StorageError`.
    """
    try:
        with contextlib.closing(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)) as found:
            found.execute(
                f"BEGIN; PRAGMA user_version = {user_version}; "
                f"PRAGMA application_id = {application_id}; COMMIT"
            )
    except apsw.Error as error:
        raise StorageError(f"Cannot make {path} a replica: {error}.") from error
