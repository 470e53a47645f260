"""Rolls a node's database forward by the changes that it lost with the power or with its disk.

The node had committed and acted on them, and SQLite took the commits back; the backup has them.
Applying them equals a crash of the node just after its commit, so it is right in every case.

In this order: the lock on the node's pid file, so that no lightningd starts; a copy of the database
as found, with its journal, and the marker that says so (`node.rollforward_marker`), both durable;
then the changes, through SQLite. The result is compared with a replay of the backup inside the open
transaction, so a wrong one is never committed. Whatever is killed in between, the same again gives
the same end.
"""

from __future__ import annotations

import contextlib
import functools
import os
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cln_backup.backends import place_at, redacted
from cln_backup.backends.events import ignore
from cln_backup.model.errors import (
    BackupError,
    Discontinuity,
    NodeRunning,
    NotFound,
    ReplayFailed,
    StorageError,
)
from cln_backup.node.outside import find_database, process_with_open, require_stopped
from cln_backup.node.pid_file import nodes_kept_out, pid_file_of
from cln_backup.node.rollforward_marker import (
    LOG_NAME,
    Marker,
    is_at_work,
    read_marker,
    remove_marker,
    write_marker,
)
from cln_backup.node.settings import read_settings, read_state
from cln_backup.operations import kept_copy
from cln_backup.operations.proof import Passing, Proof, kept_replica, replica_of
from cln_backup.replay.forward import ForwardDatabase, changes_after, plan_for
from cln_backup.replay.replica import copy_database
from cln_backup.storage import fsio, interruption, ownership, scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    import apsw

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret
    from cln_backup.model.change import Change

MAY_BE_LOST = 2
"""How many versions SQLite's journal takes back at most when it reappears."""


class RolledForward(NamedTuple):
    """The result of a roll forward.

    Attributes:
        database: its path.
        version_before: its data version as found.
        version: its data version, which is the backup's.
        changes: number of changes applied.
        kept: the directory with the copy of the database as found; `None` if nothing was done.
    """

    database: str
    version_before: int
    version: int
    changes: int
    kept: str | None


def roll_forward(
    directory: str,
    *,
    secret: Secret | None = None,
    progress: Callable[[Change], None] | None = None,
    on_event: OnEvent = ignore,
    scratch_dir: str | None = None,
) -> RolledForward:
    """Brings the database of a stopped node forward to its backup's version.

    The database is one or two versions older than the backup, as after a loss of power; or even
    older, if its content is what the backup's history has at its version. It is on stable storage
    when this returns. Idempotent: after a kill at any point, another call completes the work.

    Raises:
        NodeRunning: lightningd is running on the directory.
        Discontinuity: it is not a database that the backup continues; nothing was changed.
        BadSettings, NotFound, Damaged, ReplayFailed, StorageError, Interrupted: nothing was
            changed, or the next call completes it.
    """
    settings = read_settings(directory)
    marker = read_marker(directory)
    asked = marker is not None
    if marker is None:
        database = find_database(directory, settings.wallet)
        if database is None:
            raise NotFound(f"There is no database in {directory} to roll forward.")
        marker = Marker(os.path.abspath(database), pid_file_of(directory))
    if is_at_work(directory):
        raise NodeRunning(
            f"A process is about to roll this database forward; {directory}/{LOG_NAME} will say "
            "what it did. Nothing was touched. Wait for it."
        )
    require_stopped(directory, marker.database)
    with nodes_kept_out(marker.pid_file):
        work = _Work(directory, settings.backend_url, marker, progress, scratch_dir, asked=asked)
        return work.run(secret, on_event)


def complete(directory: str, wait_s: float) -> RolledForward | None:
    """Does the roll forward that the plugin asked for; `None` if it is done already.

    Waits up to `wait_s` until the node has ended. Only the last two versions are rolled forward.

    Raises:
        NodeRunning: a lightningd still runs.
        BackupError: as `roll_forward`.
    """
    first = read_marker(directory)
    if first is None:
        return None
    with nodes_kept_out(first.pid_file, wait_s):
        marker = read_marker(directory)  # another process may have done it meanwhile
        if marker is None:
            return None
        url = read_settings(directory).backend_url
        work = _Work(directory, url, marker, None, None, asked=True, at_most=MAY_BE_LOST)
        return work.run(None, ignore)


class _Work:
    """One roll forward, while no lightningd can start."""

    def __init__(
        self,
        directory: str,
        url: str,
        marker: Marker,
        progress: Callable[[Change], None] | None,
        scratch_dir: str | None,
        *,
        asked: bool,
        at_most: int | None = None,
    ) -> None:
        self._directory = directory
        self._place = place_at(url)
        self._marker = marker
        self._database = os.path.realpath(marker.database)
        self._progress = progress
        self._scratch_dir = scratch_dir or os.path.dirname(self._database)
        self._asked = asked
        self._refused = marker.refused
        self._at_most = at_most

    def run(self, secret: Secret | None, on_event: OnEvent) -> RolledForward:
        user = process_with_open(self._database)
        if user is not None:
            raise StorageError(
                f"Process {user} has {self._database} open. Stop it first; nothing was touched."
            )
        with (
            interruption.deferred(),
            ownership.of_node(self._directory),
            self._place.open_reader(secret=secret, on_event=on_event) as reader,
        ):
            if self._marker.kept is None and not kept_copy.has_journal(self._database):
                with self._opened() as database:  # without a journal, this changes nothing
                    if self._is_complete(database, reader):
                        remove_marker(self._directory)
                        version = reader.version
                        return RolledForward(self._marker.database, version, version, 0, None)
            if self._marker.kept is None:
                self._marker = kept_copy.keep(self._directory, self._marker, reader.version)
            try:
                found = self._bring_forward(reader)
            except BackupError:
                self._leave_as_found()
                raise
            remove_marker(self._directory)
            interruption.finished()
            if found.kept is not None:
                kept_copy.remove_earlier(found.kept, self._database)
            return found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[ForwardDatabase]:
        database = ForwardDatabase(self._database)
        try:
            yield database
        finally:
            database.close()

    def _bring_forward(self, reader: Reader) -> RolledForward:
        with self._opened() as database:
            before = database.version
            count = 0
            if not self._is_complete(database, reader):
                count = self._apply(database, before, reader)
        # SQLite has synced what it wrote. This is for what an earlier process left.
        fd = fsio.open_existing(self._database, writable=True, op="sync the database")
        try:
            fsio.sync(fd, op="sync the database")
        finally:
            os.close(fd)
        fsio.sync_directory(os.path.dirname(self._database), op="sync the database")
        kept = self._marker.kept
        return RolledForward(self._marker.database, before, reader.version, count, kept)

    def _apply(self, database: ForwardDatabase, before: int, reader: Reader) -> int:
        """Applies the changes if the result is the backup's database; returns their number."""
        older = reader.version - before > MAY_BE_LOST
        kept = None if older else read_state(self._directory).replica_dir
        with scratch.directory(self._scratch_dir, op="roll forward") as directory:
            if kept is not None:
                # If something is wrong, it may also be this replica: then a fresh one decides.
                with (
                    contextlib.suppress(Discontinuity),
                    kept_replica(reader, kept) as replica,
                ):
                    if replica is not None:
                        return self._apply_like(database, before, reader, replica, directory)
            refuse = functools.partial(self._refuse, reader)
            passing = Passing(before, database.connection, refuse) if older else None
            with replica_of(reader, directory, passing=passing, progress=self._progress) as replica:
                return self._apply_like(database, before, reader, replica, directory)

    def _apply_like(
        self,
        database: ForwardDatabase,
        before: int,
        reader: Reader,
        replica: apsw.Connection,
        directory: str,
    ) -> int:
        head = reader.standing.head
        assert head is not None
        plan = plan_for(changes_after(reader, before), foreign_keys_at_end=head.foreign_keys)
        proof = Proof(replica, reader.version, database.node_id)

        def check(result: apsw.Connection) -> None:
            fault = proof.faults_in(result)
            if fault:
                self._refuse(reader, fault)

        try:
            if plan.pieces > 1:
                path = os.path.join(directory, "rehearsal.sqlite3")
                copy_database(self._database, path)
                rehearsal = ForwardDatabase(path)
                try:
                    rehearsal.apply(changes_after(reader, before), plan, directory, check)
                finally:
                    rehearsal.close()
                fsio.remove(path, op="remove the rehearsal")
            database.apply(changes_after(reader, before), plan, directory, check)
        except ReplayFailed as error:
            self._refuse(reader, f"the backup's changes cannot be applied to it. {error}")
        return plan.changes

    def _is_complete(self, database: ForwardDatabase, reader: Reader) -> bool:
        """Whether nothing is missing. Raises `Discontinuity` if it must not be rolled forward."""
        version, node_id = database.version, database.node_id
        if None not in (node_id, reader.node_id) and node_id != reader.node_id:
            raise Discontinuity(
                f"The backup belongs to another node: {self._place_name()} is the backup of the "
                f"node {reader.node_id}, and {self._marker.database} is the database of "
                f"{node_id}. Nothing was changed. Check the URL in backup.lock."
            )
        missing = reader.version - version
        if missing < 0:
            raise Discontinuity(
                f"The database is newer than the backup: it is at version {version}, the backup "
                f"{self._place_name()} at {reader.version}. Nothing was changed, and nothing is to "
                "be rolled forward: start the node."
            )
        if self._at_most is not None and missing > self._at_most:
            self._refuse(
                reader,
                f"it is at version {version} and so {missing} versions older than the backup, more "
                "than a loss of power explains",
            )
        return missing == 0

    def _refuse(self, reader: Reader, fault: str) -> NoReturn:
        raise Discontinuity(
            f"The database {self._marker.database} cannot be rolled forward to version "
            f"{reader.version}: {fault}. It was not changed, and the backup is complete. "
            f"Restore it instead: {restore_advice(self._marker.database, self._place.url)}"
        )

    def _place_name(self) -> str:
        return redacted(self._place.url)

    def _leave_as_found(self) -> None:
        """After an error: keeps the copy only if the database may differ from it."""
        kept = self._marker.kept
        assert kept is not None
        with contextlib.suppress(StorageError):
            if kept_copy.is_superfluous(kept, self._database):
                kept_copy.remove(kept, self._database)
                kept = None
            if self._asked:
                marker = msgspec.structs.replace(self._marker, kept=kept, refused=self._refused)
                write_marker(self._directory, marker)
            else:
                remove_marker(self._directory)


def restore_advice(database: str, url: str) -> str:
    """How to restore the database in place of one that stays aside."""
    return (
        f"move {database} away (with -journal and -wal; keep it), then run: backup-cli restore "
        f"{quote(redacted(url))} {quote(database)}"
    )
