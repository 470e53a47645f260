"""A replica: a SQLite database built by replaying a backup's changes."""

from __future__ import annotations

import contextlib
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import apsw

from cln_backup.model import statements
from cln_backup.model.change import Kind
from cln_backup.model.errors import Damaged, NotFound, ReplayFailed, StorageError
from cln_backup.replay.statement_runner import StatementRunner
from cln_backup.storage import fsio, interruption, writeback
from cln_backup.storage.in_thread import read_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cln_backup.model.change import Change

_PAGES_PER_STEP = 256
_WRITE_EVERY_BYTES = 1 << 24
_REASONS: dict[type[apsw.Error], str] = {
    apsw.BusyError: "the database is locked by another program; stop that",
    apsw.LockedError: "the database is locked by another program; stop that",
    apsw.CantOpenError: "cannot open it or its journal; check the owner and the permissions",
    apsw.PermissionsError: "this user is not permitted to read it",
    apsw.ReadOnlyError: "this user is not permitted to write to it, as its journal requires",
    apsw.IOError: "its disk failed a read",
    apsw.FullError: "the disk is full",
    apsw.CorruptError: "it is damaged",
}
_FOREIGN_KEYS = "PRAGMA foreign_keys = ON"


class DatabaseFile:
    """A database file that is not being written to, as a snapshot."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.size_bytes = os.path.getsize(path)

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes in order, in pieces. Raises `StorageError`."""
        fd = fsio.open_existing(self._path, writable=False, op="read snapshot")
        try:
            yield from fsio.chunks_at(fd, self.size_bytes, 0, op="read snapshot")
        finally:
            os.close(fd)


class Healed(NamedTuple):
    """Changes that do not replay, and the snapshot after them that makes up for it.

    Attributes:
        good_version: the last data version before them; 0 if there is none.
        healed_version: data version of the snapshot. The versions between cannot be restored.
        changes: how many changes were passed over: the one that fails, and those after it.
    """

    good_version: int
    healed_version: int
    changes: int


class Replica:
    """A database that is being built from changes; do not use it before `check` has passed.

    It is written without a journal and without syncs: to keep it, sync the file after `close`.
    Foreign keys are enforced as lightningd enforces them: always, except between two riders that
    switch them off and on.

    Attributes:
        foreign_keys: whether they are enforced now.
        applied: data version of the last change applied.
        stored_ms: when that was stored, as `Change.stored_ms`.
        changes: the number of changes applied.
        healed: the faults in the history that `replay` found healed by a later snapshot.
    """

    def __init__(self, path: str, *, hurries: bool = False) -> None:
        """Starts with an empty database at a path that does not exist.

        If it `hurries`, snapshots are read in a thread, and what is written starts on its way to
        the disk at once: for a database that will be kept, and that an operator waits for.
        """
        self._hurries = hurries
        self._path = path
        os.close(fsio.create(path, op="create replica"))
        self._connection = self._connect()
        self._runner = StatementRunner(self._connection, path)
        self.foreign_keys = True
        self.applied = 0
        self.stored_ms: int | None = None
        self.changes = 0
        self.healed: list[Healed] = []

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(
            self._path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=0
        )
        # The order matters: under an exclusive lock a WAL needs no shared memory file.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute(_FOREIGN_KEYS)
        return connection

    def apply(self, change: Change) -> None:
        """Replays one change: a transaction as one, a rider outside any.

        Raises:
            ReplayFailed: it cannot be applied; the message names the version and the kind of the
                statement, never its contents.
            StorageError: the disk is full or failed.
        """
        kind = change.kind
        self.applied, self.stored_ms = change.version, change.stored_ms
        self.changes += 1
        if kind is Kind.SNAPSHOT:
            self._load(change)
            return
        transaction = change.transaction
        assert transaction is not None
        if kind is Kind.RIDER:
            self._runner.run(change.version, transaction)
            self.foreign_keys = statements.foreign_keys_after(transaction, self.foreign_keys)
            return
        self._runner.run(change.version, ("BEGIN",))
        self._runner.transaction(change)
        self._runner.run(change.version, ("COMMIT",))

    def _load(self, change: Change) -> None:
        assert change.snapshot is not None
        self._connection.close()
        fd = fsio.open_existing(self._path, writable=True, op="write snapshot")
        try:
            if fsio.size_bytes(fd):  # ext4 flushes a truncated file when it is closed
                fsio.truncate(fd, 0, op="write snapshot")
            chunks = change.snapshot.chunks()
            with read_in_thread(chunks) if self._hurries else nullcontext(chunks) as pieces:
                self._write(fd, pieces)
        finally:
            os.close(fd)
        try:
            self._connection = self._connect()
            self._runner = StatementRunner(self._connection, self._path)
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except apsw.Error as error:
            raise ReplayFailed(
                f"The snapshot at data version {change.version} is not a SQLite database ({error})."
            ) from None
        self.foreign_keys = True

    def _write(self, fd: int, pieces: Iterator[bytes]) -> None:
        offset = begun = 0
        for piece in pieces:
            offset = fsio.write_at(fd, [piece], offset, op="write snapshot")
            if self._hurries and offset - begun >= _WRITE_EVERY_BYTES:
                writeback.begin(fd, begun, offset - begun)
                begun = offset

    @property
    def connection(self) -> apsw.Connection:
        """The connection, to look at the database between two changes. A snapshot replaces it."""
        self._connection.authorizer = None
        return self._connection

    def check(self) -> int:
        """Checks the integrity of the database, and that it is at the last change's version.

        Returns the number of rows that violate foreign keys. They are the node's own: with foreign
        keys enforced as on the node, a replay makes no others.

        Raises:
            ReplayFailed: it is damaged, or at a different version.
        """
        self._connection.authorizer = None
        try:
            found = data_version(self._connection)
            sound = is_sound(self._connection)
            faults = sum(1 for _ in self._connection.execute("PRAGMA foreign_key_check"))
        except apsw.Error as error:
            raise ReplayFailed(
                f"SQLite cannot read the restored database ({type(error).__name__})."
            ) from None
        if found != self.applied:
            raise ReplayFailed(
                f"The restored database is at data version {found}, but the backup at "
                f"{self.applied}. They do not match; do not start a node on it."
            )
        if not sound:
            raise ReplayFailed(
                f"Integrity check failed: SQLite found errors in the database at version {found}. "
                "Do not start a node on it."
            )
        return faults

    def close(self) -> None:
        """Closes the file; everything is written, but nothing is synced."""
        self._connection.close()


def replay(
    changes: Iterable[Change],
    path: str,
    progress: Callable[[Change], None] | None = None,
    *,
    hurries: bool = False,
) -> Replica:
    """Builds a replica at `path` from the changes, calling `progress` after each.

    Where the changes do not replay, it continues at the next snapshot: a start or an operator has
    healed the backup with it. `hurries` is as for `Replica`.

    Raises:
        ReplayFailed, Damaged, StorageError: the caller must remove the file at `path`.
    """
    replica = Replica(path, hurries=hurries)
    good = passed_over = 0
    failed: ReplayFailed | None = None
    try:
        for change in changes:
            if interruption.state.pending:
                interruption.check()
            if failed is not None and change.snapshot is None:
                passed_over += 1
                continue
            try:
                replica.apply(change)
            except ReplayFailed as error:
                failed = failed or error
                passed_over += 1
                continue
            if failed is not None:
                replica.healed.append(Healed(good, change.version, passed_over))
                failed, passed_over = None, 0
            good = change.version
            if progress is not None:
                progress(change)
        if failed is not None:
            raise failed
    except Damaged as error:
        error.good_up_to(good)
        replica.close()
        raise
    except BaseException:
        replica.close()
        raise
    return replica


def copy_database(source: str, path: str) -> int:
    """Copies a database through SQLite, as one consistent state; returns its data version.

    A journal or a WAL beside the source is applied. Not durable.

    Raises:
        NotFound: there is no database, or it is not a SQLite database.
        StorageError: it is locked by another program, or the disk failed.
    """
    try:
        origin = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READWRITE)
        copy = apsw.Connection(path)
    except apsw.Error as error:
        raise StorageError(f"Cannot open the database {source}: {_reason(error)}") from error
    try:
        require_lightningds(origin, source)
        for pragma in ("journal_mode = OFF", "synchronous = OFF"):
            copy.execute(f"PRAGMA {pragma}").fetchall()
        with copy.backup("main", origin, "main") as backup:
            while not backup.done:
                interruption.check()
                backup.step(_PAGES_PER_STEP)
        if not is_sound(copy):
            raise StorageError(
                f"{source} is damaged: SQLite's integrity check failed, so a backup of it would be "
                "useless. Check its disk for errors first."
            )
        return data_version(copy)
    except apsw.NotADBError as error:
        raise NotFound(f"{source} is not a SQLite database ({error}).") from error
    except apsw.Error as error:
        raise StorageError(f"Cannot copy the database {source}: {_reason(error)}") from error
    finally:
        copy.close()
        origin.close()


def require_lightningds(connection: apsw.Connection, path: str) -> None:
    """Makes sure that a database is lightningd's, of any release, or has no table yet.

    Raises `NotFound`.
    """
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = {name for (name,) in rows}
    bookkeepers = "chain_events" in tables and "outputs" not in tables
    if tables and (bookkeepers or tables.isdisjoint(("vars", "outputs"))):
        raise NotFound(
            f"{path} is a SQLite database, but not lightningd's. Name the one that lightningd "
            "uses: lightningd.sqlite3, unless its option wallet names another."
        )


def _reason(error: apsw.Error) -> str:
    """SQLite's message, or the kind of the error if the message is about the other database."""
    text = str(error)
    if text not in ("not an error", ""):
        return text
    code = apsw.mapping_result_codes.get(getattr(error, "result", -1), type(error).__name__)
    return f"{_REASONS.get(type(error), 'SQLite reports')} ({code})"


def version_of(path: str) -> int:
    """The data version of a node's database; a journal beside it is applied first.

    Raises:
        StorageError: it is damaged, or locked by another program.
    """
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            return data_version(connection)
        finally:
            connection.close()
    except apsw.Error as error:
        raise StorageError(f"Cannot read the database {path}: {_reason(error)}") from error


def apply_journal(path: str) -> None:
    """Applies what a crash left beside a database that no other process uses; not durable.

    Raises `StorageError`.
    """
    try:
        with contextlib.closing(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)) as found:
            found.execute("PRAGMA journal_mode = DELETE").fetchall()
            data_version(found)
    except apsw.Error as error:
        raise StorageError(f"Cannot open the database {path}: {_reason(error)}") from error


def node_id_of(path: str) -> str | None:
    """The id of the node that the database belongs to; `None` if it has none yet or is locked.

    Changes nothing and waits for nothing, so it can be called while the node waits in `db_write`:
    a reader then sees the database as it was before the transaction.
    """
    try:
        connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return None
    try:
        return node_id_in(connection)
    except apsw.Error:
        return None
    finally:
        connection.close()


def node_id_in(connection: apsw.Connection) -> str | None:
    """The id of the node that an open database belongs to; `None` if it has none yet.

    Raises:
        apsw.Error: it cannot be read.
    """
    columns = connection.execute("SELECT name FROM pragma_table_info('vars')").fetchall()
    if ("blobval",) not in columns:
        return None
    rows = connection.execute("SELECT hex(blobval) FROM vars WHERE name = 'node_id'").fetchall()
    return str(rows[0][0]).lower() if rows else None


def is_sound(connection: apsw.Connection) -> bool:
    """Whether SQLite's integrity check passes."""
    return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]


def data_version(connection: apsw.Connection) -> int:
    """The data version of a node's database; 0 if it has none."""
    """The data version that a node's database names; 0 if it names none."""
    columns = connection.execute("SELECT name FROM pragma_table_info('vars')").fetchall()
    if ("intval",) not in columns:  # releases before 2019 had no such column
        return 0
    rows = connection.execute("SELECT intval FROM vars WHERE name = 'data_version'").fetchall()
    version = rows[0][0] if rows else 0
    return version if isinstance(version, int) else 0
