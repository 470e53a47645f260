"""A replica that outlives its process: it follows a backup, and continues after any end.

The file is a database in WAL mode. The last change of a backup may still be dropped, at the next
start of its node; so a transaction at the head stays an open, uncommitted one, and on disk the
replica is always at a position that stays in the history. How far it has come (`reached`) is in
`PRAGMA user_version` and `PRAGMA application_id`, in the same transaction as the change; lightningd
uses neither. Killed, or after a loss of power, the replica is at one of its positions, and whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import apsw

from cln_backup.backends.follows import position_is_gone
from cln_backup.backends.ticket import Folded
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import Discontinuity, ReplayFailed, StorageError
from cln_backup.model.position import EMPTY, UNKNOWN, Position
from cln_backup.replay import kept_file
from cln_backup.replay.kept_directory import DATABASE_NAME, SUFFIXES, is_same, lock
from cln_backup.replay.note import Note, NoteFile, read_note
from cln_backup.replay.reached import Reached, mark_of, stored
from cln_backup.replay.replica import data_version, is_sound
from cln_backup.replay.statement_runner import StatementRunner
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from cln_backup.backends.contract import Reader, Standing

_BATCH_CHANGES: Final = 100
_BATCH_CHARACTERS: Final = 1 << 20
_WAL_BYTES: Final = 1 << 22
_WAL_PAGES: Final = 1000
_CLOSED: Final = -1
_STEPS: Final = 1_000_000
_SAFE: Final = "The replica continues where it was; the backup is not affected."


class KeptReplica:
    """A database in a directory of its own, which only one process at a time has open.

    Attributes:
        directory: it has `replica.sqlite3`, and `position.json` (`note`).
        path: of the database.
        connection: to the database; a snapshot and `start_anew` replace it.
        is_new: whether it started from nothing: then this object has replayed all of it.
    """

    connection: apsw.Connection

    def __init__(self, directory: str) -> None:
        """See `open`."""
        self.directory = directory
        self.path = os.path.join(directory, DATABASE_NAME)
        self.is_new = False
        self._committed = self._now = Reached()
        self._head: tuple[Position, int] | None = None
        self._is_verified = False
        self._inode = _CLOSED
        self._lock_fd = lock(directory)
        try:
            noted = read_note(directory)
            self._proof = (0, None) if noted is None else (noted.proven_version, noted.proven_at)
            self._note = NoteFile(directory)
        except BaseException:
            os.close(self._lock_fd)
            raise
        try:
            if not self._resumes(noted):
                self.start_anew()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, directory: str) -> Self:
        """Opens the replica; makes the directory (not its parent) and the file if necessary.

        Takes milliseconds. A file that is not a usable replica is replaced by an empty one.

        Raises:
            WriterConflict: another process has it open.
            StorageError: the directory cannot be written to.
        """
        return cls(directory)

    @property
    def position(self) -> Position | None:
        """The position of what is committed, which no start drops; `None` if nothing is.

        Its digest is `None` if unknown, as always for `file:`.
        """
        return self._committed.position

    @property
    def version(self) -> int:
        """The data version that `connection` sees, with the open head if there is one."""
        return self._now.version

    @property
    def foreign_keys(self) -> bool:
        """Whether foreign keys are enforced after the last change."""
        return self._now.foreign_keys

    @property
    def proof(self) -> tuple[int, float | None]:
        """The version up to which the backup was last replayed, and when (since 1970)."""
        return self._proof

    def _resumes(self, noted: Note | None) -> bool:
        """Opens the file that is there; `False` if it is not a usable replica."""
        if fsio.kind_at(self.path, op="open replica") != "file":
            return False
        try:
            self._connect()
            user_version = self._pragma("user_version")
            mark = self._pragma("application_id")
            version = data_version(self.connection)
        except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError):
            return False
        except apsw.Error as error:
            raise self._failed(error) from error
        reached = stored(version, user_version, mark, noted and noted.position.changes)
        if noted is not None:
            reached = reached.knowing(noted.position)
            if reached.position == noted.position:
                reached = reached._replace(stored_ms=noted.stored_ms)
        self._committed = self._now = reached
        if not reached.foreign_keys:
            self.connection.execute("PRAGMA foreign_keys = OFF")
        return reached.changes > 0

    def _pragma(self, name: str) -> int:
        found = self.connection.execute(f"PRAGMA {name}").fetchall()[0][0]
        assert isinstance(found, int)
        return found

    def _connect(self) -> None:
        self.connection = apsw.Connection(
            self.path, flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=0
        )
        self._inode = os.stat(self.path).st_ino
        self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # it would take long
        for pragma in (
            "locking_mode = EXCLUSIVE",  # first: then a WAL needs no shared memory file
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {_WAL_PAGES}",
            f"journal_size_limit = {_WAL_BYTES}",
            "foreign_keys = ON",
        ):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()
        self._runner = StatementRunner(self.connection, self.path, _SAFE)

    def _disconnect(self) -> None:
        if self._inode != _CLOSED:
            self._inode = _CLOSED
            self.connection.close()

    def start_anew(self) -> None:
        """Begins again with an empty database. Raises `StorageError`."""
        self._disconnect()
        if not is_same(self._lock_fd, self.directory):
            lock_fd = lock(self.directory)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd
            note = NoteFile(self.directory)
            self._note.close()
            self._note = note
        self._note.write(None)
        self._remove_files()
        os.close(fsio.create(self.path, op="create replica"))
        try:
            self._connect()
        except apsw.Error as error:
            raise self._failed(error) from error
        self._committed = self._now = Reached()
        self._head, self.is_new = None, True

    def _remove_files(self) -> None:
        for suffix in SUFFIXES:
            fsio.remove(self.path + suffix, op="remove replica")

    def is_in_place(self) -> bool:
        """Whether the file is still where it was; a user may have deleted it."""
        try:
            inode = os.stat(self.path).st_ino
        except OSError:
            return False
        return inode == self._inode and is_same(self._lock_fd, self.directory)

    def catch_up(
        self, reader: Reader, *, to: int | None = None, until: float | None = None
    ) -> bool:
        """Replays what the reader's view has and the replica lacks; the head stays open.

        It starts again from the start of the history if its position is no longer there, its file
        was deleted, or its own disk has damaged it. If the changes do not replay, it continues at
        the next snapshot, which has healed the backup.

        Args:
            reader: of the backup.
            to: replay up to this version only; never goes back.
            until: when to stop, on the monotonic clock.

        Returns:
            `False` if time ran out; what was replayed is kept.

        Raises:
            ReplayFailed: the reader's view does not replay after `position`. If the backup has
                changed since, try again: a `file:` backup is changed in place.
            Damaged, StorageError, Unreachable: the backup cannot be read, or the replica cannot be
                written. The replica is at a position in any case, its last or a later one.
        """
        if self.is_in_place():
            self.without_head()
        else:
            self.start_anew()
        try:
            done = self._follow(reader, to, until)
        except Discontinuity:
            self.start_anew()
            done = self._follow(reader, to, until)
        except ReplayFailed:
            if self._inode == _CLOSED or is_sound(self.connection):
                raise
            self.start_anew()
            done = self._follow(reader, to, until)
        if done and to is None:
            self._proof = self.version, time.time()
        position = self.position
        if position is not None:
            self._note.write(Note(position, self._committed.stored_ms, *self._proof))
        return done

    def _follow(self, reader: Reader, to: int | None, until: float | None) -> bool:
        try:
            return self._replay(reader, to, until, _BATCH_CHANGES)
        except ReplayFailed:
            if self._inode == _CLOSED:
                raise
            # Again, one by one, to keep everything before the change that fails.
            try:
                return self._replay(reader, to, until, 1)
            except ReplayFailed:
                if not self._skips_to_snapshot(reader, to):
                    raise
            return self._follow(reader, to, until)

    def _skips_to_snapshot(self, reader: Reader, to: int | None) -> bool:
        """Loads the next snapshot, which has healed a backup that does not replay up to there."""
        if self._inode == _CLOSED:
            return False
        standing, number = reader.standing, self._now.changes
        if self.position is None:
            number = standing.position.changes - standing.version_count
        for change in reader.stream_changes(after=self.position):
            number += 1
            if to is not None and change.version > to:
                break
            if change.snapshot is not None:
                self._now = Reached(change.version, number - 1)
                self._load(change)
                return True
        return False

    def _replay(
        self, reader: Reader, to: int | None, until: float | None, batch_changes: int
    ) -> bool:
        standing = reader.standing
        batch = characters = 0
        try:
            for change in self._rest(reader):
                if to is not None and change.version > to:
                    break
                if until is not None and time.monotonic() >= until:
                    self._commit()
                    return False
                is_transaction = change.kind is Kind.TRANSACTION
                is_head = self._now.changes + 1 == standing.position.changes
                full = batch >= batch_changes or characters >= _BATCH_CHARACTERS
                if is_head or full or not is_transaction:
                    self._commit()
                    batch = characters = 0
                self._apply(change)
                self._learn_digest(standing)
                if is_head and is_transaction:
                    return True
                batch += 1
                characters += sum(map(len, change.transaction or ()))
            self._commit()
        except apsw.Error as error:
            self.without_head()
            raise self._failed(error) from error
        except BaseException:
            self.without_head()
            raise
        return True

    def _rest(self, reader: Reader) -> Iterator[Change]:
        """The changes after the position. Raises `Discontinuity` if that is not in the history."""
        position, standing = self.position, reader.standing
        if position is None:
            before = standing.position.changes - standing.version_count
            whole = before == 0 and standing.position.digest is not None
            self._now = Reached(changes=before, digest=EMPTY if whole else UNKNOWN)
        elif position.digest is None and not self._is_verified:
            return self._verified(reader, position)
        self._is_verified = True
        return reader.stream_changes(after=position)

    def _verified(self, reader: Reader, position: Position) -> Iterator[Change]:
        """As `_rest`, with the last change compared: another history may have that number too."""
        for step in (1, 0):
            before = Position(position.version - step, position.changes - 1, None)
            changes = reader.stream_changes(after=before)
            try:
                last = next(changes, None)
            except Discontinuity:
                continue
            if last is None or last.version != position.version:
                continue
            if mark_of(last) == self._committed.mark:
                self._is_verified = True
                return changes
        raise position_is_gone(position)

    def _apply(self, change: Change) -> None:
        """Applies one change, in a transaction that stays open; a snapshot for good."""
        version, transaction = change.version, change.transaction
        if transaction is None:
            self._load(change)
            return
        if change.kind is Kind.RIDER:
            self._runner.run(version, transaction)
        if not self.connection.in_transaction:
            self._runner.run(version, ("BEGIN",))
        if change.kind is Kind.TRANSACTION:
            self._runner.transaction(change)
        self._now = self._now.after(change)

    def _load(self, change: Change) -> None:
        before = self._now
        self._disconnect()  # first: then never more than one database is on the disk
        self._remove_files()
        self._committed = self._now = Reached()
        reached = kept_file.load(change, self.path, before)
        try:
            self._connect()
            found = data_version(self.connection)
        except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError) as error:
            raise ReplayFailed(
                f"The snapshot at data version {change.version} is not a SQLite database ({error})."
            ) from None
        if found != change.version:
            raise ReplayFailed(
                f"The snapshot for data version {change.version} is of a database at {found}."
            )
        self._committed = self._now = reached

    def _learn_digest(self, standing: Standing) -> None:
        """Takes over a digest of the history that only the backup knows."""
        now, head = self._now, self._head
        if now.digest == UNKNOWN:
            now = now.knowing(standing.origin)
            if head is not None and head[1] == now.mark:
                now = now.knowing(head[0])
        now = now.knowing(standing.position)
        if now.position == standing.position:
            self._head = standing.position, now.mark
        self._now = now

    def _commit(self) -> None:
        if self._inode == _CLOSED or not self.connection.in_transaction:
            return
        self.connection.authorizer = None
        self.connection.execute(f"PRAGMA user_version = {self._now.user_version}")
        self.connection.execute(f"PRAGMA application_id = {self._now.mark}")
        self._runner.run(self._now.version, ("COMMIT",))
        self._committed = self._now

    def without_head(self) -> None:
        """Rolls the open head back: `connection` then sees what is committed."""
        if self._inode != _CLOSED and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._now = self._committed

    def commit_head(self) -> None:
        """Commits the open head: for a backup whose writer is this process, so it drops nothing.

        Raises:
            StorageError: the disk is full or failed.
        """
        self._commit()

    def check(self) -> int:
        """Checks the integrity of the database, and that it is at `version`.

        Returns the number of rows that violate foreign keys; they are the node's own.

        Raises:
            ReplayFailed: it is damaged, or at a different version.
            StorageError: it cannot be read.
        """
        connection = self.connection
        connection.authorizer = None
        connection.set_progress_handler(_go_on, _STEPS)  # a signal can end it
        faults = 0
        try:
            sound = is_sound(connection) and data_version(connection) == self.version
            if sound:
                faults = sum(1 for _ in connection.execute("PRAGMA foreign_key_check"))
        except (apsw.CorruptError, apsw.NotADBError):
            sound = False
        except apsw.Error as error:
            raise self._failed(error) from error
        finally:
            connection.set_progress_handler(None)
        if not sound:
            raise ReplayFailed(
                f"Integrity check failed: SQLite found errors in the replica at {self.version}."
            )
        return faults

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Folded]:
        """The committed state as the snapshot of a compaction; first rolls the open head back.

        Its bytes can be read until the end of the block, also while `catch_up` continues, whose
        changes stay in the WAL until then. Raises `StorageError`.
        """
        self.without_head()
        try:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        except apsw.Error as error:
            raise self._failed(error) from error
        reached = self._committed
        with kept_file.CommittedFile(self.path) as file:
            try:
                base = Change(reached.version, file, None, reached.stored_ms)
                yield Folded(base, reached.foreign_keys)
            finally:
                if self._inode != _CLOSED:
                    pragma = f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}"
                    self.connection.execute(pragma).fetchall()

    def rebase(self, base: Position, reader: Reader) -> None:
        """Keeps its place in a history whose changes up to `base` were replaced by a snapshot.

        Only the caller knows that the writer has just taken over what `snapshot` gave, at the
        position `base`, and that the reader's view is the compacted backup. A position with a
        digest survives a compaction; any other is counted again, unless the snapshot is not there.

        Raises:
            StorageError, Damaged.
        """
        self.without_head()
        first = next(reader.stream_changes(), None)
        if self._now.digest != UNKNOWN or first is None or first.snapshot is None:
            return
        standing = reader.standing
        number = standing.position.changes - standing.version_count + 1
        moved = self._now._replace(changes=self._now.changes - base.changes + number)
        if first.version != base.version or moved.changes < number:
            return
        if moved.changes == number:
            moved = moved._replace(mark=mark_of(first))
        try:
            self._runner.run(moved.version, ("BEGIN",))
            self._now = moved
            self._commit()
        except apsw.Error as error:
            self.without_head()
            raise self._failed(error) from error

    def _failed(self, error: apsw.Error) -> StorageError:
        return StorageError(f"Cannot use the replica {self.path}: {error}. {_SAFE}")

    def close(self) -> None:
        """Closes the replica, at what is committed. Takes milliseconds; nothing is synced."""
        self._disconnect()
        self._note.close()
        os.close(self._lock_fd)


def _go_on() -> bool:
    """Called between the steps of a long statement, where Python runs handlers of signals."""
    return False
