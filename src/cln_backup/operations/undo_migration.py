"""Undoes a migration that was interrupted: the database and its backup go back to before it.

In this order, so that a killed undo can be run again: it is noted in `backup.state` from which
version; the database before the migration is restored beside its place; the backup starts over from
it; the database as found is moved away, with its journal; the restored one gets its name; the note
is removed. Until the last step no node starts: this holds the right to write and the pid file.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends import place_at, redacted
from cln_backup.backends.events import Event, Noticed, ignore
from cln_backup.model.change import Change
from cln_backup.model.errors import BadUrl, Discontinuity, NotFound
from cln_backup.model.migration import MigrationTracker, RestorePoint, sets_schema_version
from cln_backup.node.outside import database_path, find_database, require_stopped
from cln_backup.node.pid_file import nodes_kept_out, pid_file_of
from cln_backup.node.rollforward_marker import read_marker
from cln_backup.node.settings import read_settings, read_state, write_state
from cln_backup.operations.restore import restore, target_path
from cln_backup.replay.kept_directory import remove_replica
from cln_backup.replay.replica import DatabaseFile, node_id_of, version_of
from cln_backup.storage import directories, fsio, interruption, ownership, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.secrets import Secret

_OP: Final = "move the database away"
_COMPANIONS: Final = ("-journal", "-wal", "-shm")

MAX_CHANGES_OF_A_START: Final = 32
"""lightningd makes fewer between writing the schema's version and `init`."""

_MANUALLY: Final = "docs/tasks/interrupted-migration.md has the steps by hand."


class Undone(NamedTuple):
    """The result of an undo.

    Attributes:
        database: its path.
        version: its data version, and the backup's.
        version_before: the backup's data version before.
        kept: the directory with the database as found; `None` if there was none.
        earlier_history: where the backup's earlier history is kept; `None` if an undo that was
            interrupted has kept it.
        size_bytes: of the database.
        foreign_key_faults: as in `Restored`.
    """

    database: str
    version: int
    version_before: int
    kept: str | None
    earlier_history: str | None
    size_bytes: int
    foreign_key_faults: int


def undo_migration(
    directory: str,
    *,
    secret: Secret | None = None,
    progress: Callable[[Change], None] | None = None,
    on_event: OnEvent = ignore,
) -> Undone:
    """Goes back to before a migration, in the database and in its backup, which the node continues.

    Only if the new release has never been up: otherwise its peers have seen a newer state. All is
    on stable storage when this returns. Idempotent: after a kill at any point, another call
    completes the work.

    Raises:
        NodeRunning: lightningd is running on the directory.
        NotFound: there is no interrupted migration, or the backup does not go back far enough.
        Discontinuity: the node may have been up since, or that is unclear; nothing was changed.
        BadUrl: this storage cannot start a history over; nothing was changed.
        BadSettings, WriterConflict, Damaged, ReplayFailed, StorageError.
    """
    settings = read_settings(directory)
    if read_marker(directory) is not None:
        raise Discontinuity(
            "A roll forward of this database is not finished. Nothing was changed. First run: "
            f"backup-cli rollforward --lightning-dir {directory}"
        )
    found = find_database(directory, settings.wallet)
    require_stopped(directory, found)
    database = os.path.realpath(database_path(directory, settings.wallet))
    place = place_at(settings.backend_url)
    with (
        nodes_kept_out(pid_file_of(directory)),
        interruption.deferred(),
        ownership.of_node(directory),
        place.open_writer(
            None if found is None else node_id_of(found), secret=secret, on_event=on_event
        ) as writer,
    ):
        if not writer.can_start_over:
            raise BadUrl(
                f"The backup {redacted(settings.backend_url)} cannot go back by itself: its server "
                f"does not support that. Nothing was changed. {_MANUALLY}"
            )
        with place.open_reader(secret=secret) as reader:
            return _Work(directory, database, writer, reader, on_event).run(progress)


class _Work:
    """One undo, while no lightningd can start."""

    def __init__(
        self, directory: str, database: str, writer: Writer, reader: Reader, on_event: OnEvent
    ) -> None:
        self._on_event = on_event
        self._directory = directory
        self._database = database
        self._writer = writer
        self._reader = reader
        self._is_there = os.path.lexists(database)
        self._version = version_of(database) if self._is_there else None

    def run(self, progress: Callable[[Change], None] | None) -> Undone:
        state, before = read_state(self._directory), self._reader.version
        point, url = state.restore_point, redacted(self._reader.place.url)
        if point is not None and point.is_of(url) and self._is_half_done(point):
            version = point.version
        else:
            if point is not None and not self._is_in_history(point, url):
                text = (
                    f"The restore point at data version {point.version} was set in another backup "
                    "than this one. It is not used; this backup's own history is searched."
                )
                self._on_event(Event(Noticed.WARNED, text))
                point = None
            version = self._require_point(point)
            undo_from = before if self._version is None else self._version
            if point is None or point.version != version:
                point = RestorePoint(version, 0, time.time(), url=url)
            point = point._replace(undo_from=undo_from)
            write_state(self._directory, state._replace(restore_point=point))
        beside = os.path.dirname(self._database)
        earlier = None
        with scratch.directory(beside, op="undo") as work:
            built = os.path.join(work, os.path.basename(self._database))
            restored = restore(self._reader, built, progress, version)
            if state.replica_dir is not None:
                # The digest of a history would tell it apart, but a file: backup has none.
                remove_replica(state.replica_dir)
            if before != version:
                change = Change(version, DatabaseFile(built), None)
                earlier = self._writer.start_over(change)
            with interruption.held():
                kept = self._move_away(version)
                if not os.path.lexists(self._database):
                    target_path(self._database)
                    fsio.publish(built, self._database, op="publish restored database")
                state = read_state(self._directory)
                write_state(self._directory, state._replace(restore_point=None))
                interruption.finished()
        size, faults = restored.size_bytes, restored.foreign_key_faults
        return Undone(self._database, version, before, kept, earlier, size, faults)

    def _is_in_history(self, point: RestorePoint, url: str) -> bool:
        """Whether a restore point was set in this backup, and not in one at its place before."""
        if not point.is_of(url):
            return False
        if point.position is None:
            return True
        try:
            next(self._reader.stream_changes(after=point.position), None)
        except Discontinuity:
            # A compaction that has folded it is refused later, for that reason.
            first = next(self._reader.stream_changes(), None)
            return first is not None and first.version > point.version
        return True

    def _is_half_done(self, point: RestorePoint) -> bool:
        """Whether an earlier undo has started the backup over, and nothing happened since."""
        version, count = self._reader.version, self._reader.standing.version_count
        if point.undo_from is None or (version, count) != (point.version, 1):
            return False
        return self._version in (None, point.version, point.undo_from)

    def _require_point(self, point: RestorePoint | None) -> int:
        """The version before the migration, if the new release has certainly never been up."""
        backup = self._reader.version
        seen = _Seen(self._reader, point)
        version = seen.version
        if self._version is not None and self._version > backup:
            raise Discontinuity(
                f"The node ran without its backup: the database {self._database} is at version "
                f"{self._version}, the backup at {backup}. So it may have been up, and must not go "
                "back. Nothing was changed."
            )
        if self._version is not None and self._version < version:
            raise Discontinuity(
                f"The database {self._database} is older than the migration: it is at version "
                f"{self._version}, and the migration began at {version}. Nothing was changed."
            )
        if self._version == version:
            raise NotFound(
                f"Nothing to undo: the database {self._database} is at version {version}, before "
                "the migration. Nothing was changed. Start the node."
            )
        return version

    def _move_away(self, version: int) -> str | None:
        """Moves the database as found into a directory of its own; returns that."""
        used, free = self._directories(version)
        if self._version == version:  # it is the restored one, of an undo that was interrupted
            return used
        paths = [self._database, *(self._database + end for end in _COMPANIONS)]
        paths = [path for path in paths if os.path.lexists(path)]
        kept = free if used is None or self._is_there else used
        if paths:
            directories.make(kept, op=_OP)
        for path in paths:  # the database first: it must never be there without its journal
            directories.move_in(path, kept, op=_OP)
        return kept if os.path.isdir(kept) else None

    def _directories(self, version: int) -> tuple[str | None, str]:
        """The last directory that has a database moved away, and the next one that has none."""
        name, file = f"{self._database}.before-undo-{version}", os.path.basename(self._database)
        used, free, number = None, name, 1
        while os.path.lexists(os.path.join(free, file)):
            number += 1
            used, free = free, f"{name}-{number}"
        return used, free


class _Seen:
    """The facts in a history about a migration, from one pass over all changes."""

    def __init__(self, reader: Reader, point: RestorePoint | None) -> None:
        """Raises `Discontinuity`, `NotFound`: there is no point that is safe to go back to."""
        tracker = MigrationTracker()
        is_known = was_complete = False
        changed_since = snapshots_since = 0
        after_version: int | None = None
        for change in reader.stream_changes():
            tracker.follow(change)
            if point is None:
                continue
            is_known = is_known or change.version == point.version
            if change.version <= point.version:
                was_complete = tracker.is_complete
                continue
            changed_since += 1
            if change.transaction is None:
                snapshots_since += 1
            elif sets_schema_version(change.transaction):
                after_version = 0
            elif after_version is not None:
                after_version += 1
        if point is not None and not is_known:
            raise NotFound(
                f"The backup does not go back to data version {point.version}, before the "
                "migration: a compaction has folded it, or this is a different backup. Nothing was "
                "changed."
            )
        if point is not None and not was_complete:
            raise NotFound(
                "The node was new when its start was interrupted, so there is nothing to go back "
                "to. Nothing was changed. Move its database and the backup away, and start over."
            )
        if point is not None and changed_since:
            if snapshots_since:
                raise _unclear("the node ran without its backup since, and a snapshot was taken")
            if (after_version or 0) > MAX_CHANGES_OF_A_START:
                raise _unclear("too many changes followed the migration")
            self.version = point.version
        elif tracker.open_at is None:
            raise NotFound(
                "There is no interrupted migration in the backup: either none began, or the "
                "schema's version was written after it, so that the new release may have been up, "
                "and the node must not go back. Nothing was changed."
            )
        elif not tracker.is_clear:
            raise _unclear("it is unknown which change was the first of the migration")
        else:
            self.version = tracker.open_at


def _unclear(why: str) -> Discontinuity:
    return Discontinuity(
        f"Cannot tell whether it is safe to go back: {why}. Nothing was changed. Only a node whose "
        f"new release has never been up may go back. {_MANUALLY}"
    )
