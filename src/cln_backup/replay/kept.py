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

from cln_backup.backends.ticket import Folded
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import Discontinuity, ReplayFailed, StorageError
from cln_backup.model.position import EMPTY, UNKNOWN, Position
from cln_backup.replay import kept_file
from cln_backup.replay.kept_database import KeptDatabase
from cln_backup.replay.kept_directory import DATABASE_NAME, is_same, lock
from cln_backup.replay.note import Note, NoteFile, read_note
from cln_backup.replay.reached import Reached, mark_of, stored
from cln_backup.replay.resuming import changes_after, snapshots_after
from cln_backup.storage import fsio, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from cln_backup.backends.contract import Reader, Standing

_BATCH_CHANGES: Final = 100
_BATCH_CHARACTERS: Final = 1 << 20


class KeptReplica:
    """A database in a directory of its own, which only one process at a time has open.

    Attributes:
        directory: it has `replica.sqlite3`, and `position.json` (`note`).
        path: of the database.
        is_new: whether it started from nothing: then this object has replayed all of it.
    """

    def __init__(self, directory: str) -> None:
        """See `open`."""
        self.directory = directory
        self.path = os.path.join(directory, DATABASE_NAME)
        self.is_new = False
        self._committed = self._now = Reached()
        self._head: tuple[Position, int] | None = None
        self._applying = 0
        self._is_verified = False
        self._database = KeptDatabase(self.path)
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
    def connection(self) -> apsw.Connection:
        """The connection to the database; a snapshot and `start_anew` replace it."""
        return self._database.connection

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
        found = self._database.open()
        if found is None:
            return False
        version, user_version, mark = found
        reached = stored(version, user_version, mark, noted and noted.position.changes)
        if noted is not None:
            reached = reached.knowing(noted.position)
            if reached.position == noted.position:
                reached = reached._replace(stored_ms=noted.stored_ms)
        self._committed = self._now = reached
        if not reached.foreign_keys:
            self.connection.execute("PRAGMA foreign_keys = OFF")
        return reached.changes > 0

    def start_anew(self) -> None:
        """Begins again with an empty database. Raises `StorageError`."""
        self._database.close()
        if not is_same(self._lock_fd, self.directory):
            lock_fd = lock(self.directory)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd
            note = NoteFile(self.directory)
            self._note.close()
            self._note = note
        self._note.write(None)
        self._database.create()
        self._committed = self._now = Reached()
        self._head, self.is_new = None, True

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
            until: when to stop, on the monotonic clock; later if finding the position takes long.

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
            try:
                done = self._follow(reader, to, until)
            except Discontinuity:
                self.start_anew()
                done = self._follow(reader, to, until)
            except ReplayFailed:
                if not self._database.is_open or self._database.is_sound():
                    raise
                self.start_anew()
                done = self._follow(reader, to, until)
            if done and to is None:
                self._proof = self.version, time.time()
        finally:
            if (position := self.position) is not None:
                with contextlib.suppress(StorageError):
                    self._note.write(Note(position, self._committed.stored_ms, *self._proof))
        return done

    def _follow(self, reader: Reader, to: int | None, until: float | None) -> bool:
        try:
            return self._replay(reader, to, until, _BATCH_CHANGES)
        except ReplayFailed as error:
            failed = error
        if self._database.is_open:
            # Again, one by one, to keep everything before the change that fails.
            try:
                return self._replay(reader, to, until, 1)
            except ReplayFailed as error:
                failed = error
        if not self._skips_to_snapshot(reader, to):
            raise failed
        return self._follow(reader, to, until)

    def _skips_to_snapshot(self, reader: Reader, to: int | None) -> bool:
        """Loads the next snapshot, which has healed a backup that does not replay up to there."""
        for number, change in snapshots_after(reader, self.position, self._applying):
            if to is not None and change.version > to:
                break
            self._now = Reached(change.version, number - 1)
            self._applying = number
            try:
                self._load(change)
            except ReplayFailed:
                continue
            return True
        return False

    def _replay(
        self, reader: Reader, to: int | None, until: float | None, batch_changes: int
    ) -> bool:
        standing = reader.standing
        batch = characters = 0
        began_s: float | None = time.monotonic()
        try:
            for change in self._rest(reader):
                if to is not None and change.version > to:
                    break
                if until is not None and began_s is not None:
                    # A long history is first read up to the position, each time: replay at least
                    # as long as that took, or a slow machine would never get any further.
                    now_s = time.monotonic()
                    until, began_s = max(until, 2 * now_s - began_s), None
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
            raise self._database.failed(error) from error
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
            changes = changes_after(reader, self._committed)
            self._is_verified = True
            return changes
        self._is_verified = True
        return reader.stream_changes(after=position)

    def _apply(self, change: Change) -> None:
        """Applies one change, in a transaction that stays open; a snapshot for good."""
        version, transaction = change.version, change.transaction
        self._applying = self._now.changes + 1
        if transaction is None:
            self._load(change)
            return
        if change.kind is Kind.RIDER:
            self._database.runner.run(version, transaction)
        if not self.connection.in_transaction:
            self._database.runner.run(version, ("BEGIN",))
        if change.kind is Kind.TRANSACTION:
            self._database.runner.transaction(change)
        self._now = self._now.after(change)

    def _load(self, change: Change) -> None:
        assert change.snapshot is not None
        before, size_bytes = self._now, change.snapshot.size_bytes
        self._database.remove()  # first: then never more than one database is on the disk
        self._committed = self._now = Reached()
        scratch.require_room(self.directory, op="load snapshot", needed_bytes=size_bytes)
        reached = kept_file.load(change, self.path, before)
        found = self._database.open()
        if found is None:
            raise ReplayFailed(
                f"The snapshot at data version {change.version} is not a usable SQLite database."
            )
        if found.version != change.version:
            at = found.version
            raise ReplayFailed(f"The snapshot for data version {change.version} is at {at}.")
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
        if not self._database.is_open or not self.connection.in_transaction:
            return
        self.connection.authorizer = None
        self.connection.execute(f"PRAGMA user_version = {self._now.user_version}")
        self.connection.execute(f"PRAGMA application_id = {self._now.mark}")
        self._database.runner.run(self._now.version, ("COMMIT",))
        self._committed = self._now

    def is_in_place(self) -> bool:
        """Whether the file is still where it was; a user may have deleted it."""
        return self._database.is_in_place() and is_same(self._lock_fd, self.directory)

    def without_head(self) -> None:
        """Rolls the open head back: `connection` then sees what is committed."""
        if self._database.is_open and self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._now = self._committed

    def forget_pages(self) -> None:
        """Rolls the open head back; what `connection` reads next comes from the file."""
        self.without_head()
        self.connection.execute("PRAGMA shrink_memory")

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
        return self._database.check(self.version)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Folded]:
        """The committed state as the snapshot of a compaction; first rolls the open head back.

        Its bytes can be read until the end of the block, also while `catch_up` continues, whose
        changes stay in the WAL until then. Raises `StorageError`.
        """
        self.without_head()
        reached = self._committed
        with self._database.frozen() as file:
            base = Change(reached.version, file, None, reached.stored_ms)
            yield Folded(base, reached.foreign_keys)

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
            self._database.runner.run(moved.version, ("BEGIN",))
            self._now = moved
            self._commit()
        except apsw.Error as error:
            self.without_head()
            raise self._database.failed(error) from error

    def close(self) -> None:
        """Closes the replica, at what is committed. Takes milliseconds; nothing is synced."""
        self._database.close()
        self._note.close()
        os.close(self._lock_fd)
