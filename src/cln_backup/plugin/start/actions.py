"""The actions of a start, one for each decision."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import redacted
from cln_backup.model.change import FOREIGN_KEYS_ON, Change
from cln_backup.model.continuity import STARTED_WELL, Decision, Facts
from cln_backup.model.errors import BackupError, Discontinuity
from cln_backup.node.rollforward_marker import LOG_NAME, MARKER_NAME
from cln_backup.node.settings import Alarm, read_state, write_state
from cln_backup.plugin.faults import fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from cln_backup.backends.contract import Writer
    from cln_backup.plugin.patience import Patience
    from cln_backup.plugin.start.facts import Node


_BEFORE_RECOVER = "lightning.pre-recover.*"
"""Where lightningd's command `recover` moves the files of the node that it replaces."""


class Start(NamedTuple):
    """The input of an action: the facts, and the objects that it acts on.

    Attributes:
        warn: logs a warning.
        differences: where database and backup differ, for a message; empty if nowhere.
        found: why the backup does not replay, as this start has found; empty if it has not.
    """

    node: Node
    facts: Facts
    backend: Writer
    log: Callable[[str], None]
    patience: Patience
    warn: Callable[[str], None]
    differences: str = ""
    found: str = ""


def append(start: Start) -> None:
    """Does nothing: the first change follows the backup."""
    start.log(STARTED_WELL)
    _conclude_roll_forward(start)
    _note_storage(start)
    _switch_foreign_keys_on(start)


def drop_head(start: Start) -> None:
    """Drops the head, which was answered and never committed."""
    backend = start.backend
    start.log(
        f"Last changes not applied: the node stopped before it committed version "
        f"{backend.version}, which is dropped from the backup"
    )
    _note_storage(start)
    backend.rewind(start.patience.bound_s())
    if not start.facts.alarm or not _heal(start, head_in_doubt=False):
        _switch_foreign_keys_on(start)


def take_snapshot(start: Start) -> None:
    """Closes a gap, or heals a backup that does not restore to its version, with a snapshot."""
    # An answered change that was never committed makes no difference: the snapshot replaces it.
    # After a loss of the storage, it may have been committed.
    is_healed = _heal(start, head_in_doubt=start.facts.loss is None)
    _note_storage(start)
    if not is_healed:
        _switch_foreign_keys_on(start)
    start.log(STARTED_WELL)


def _heal(start: Start, *, head_in_doubt: bool) -> bool:
    """Appends a snapshot; `False` if that was not possible, and the node may continue without."""
    from cln_backup.plugin.start.healing import append_snapshot

    where, node = _where(start), start.node
    gap = start.facts.database_version > start.backend.version
    what = "Backup is out of date" if gap else "The backup cannot be restored to its last version"
    try:
        size_bytes = append_snapshot(start, head_in_doubt=head_in_doubt)
    except Discontinuity as error:
        raise Discontinuity(
            f"{what}: {where}. {error}. Nothing was stored, and the earlier changes are safe in "
            f"the backup. Do not run this node without the plugin: {_restore(start)}"
        ) from None
    except Exception as error:  # noqa: BLE001 - the node may continue without
        why = str(error) if isinstance(error, BackupError) else fault(error)
        alarm = node.state.alarm or Alarm("replay", start.found, time.time())
        if not gap and alarm.keeps_restore_from_ending:
            _go_on_with(alarm, start, why)
            return False
        raise Discontinuity(
            f"{what}: {where}, and the start could not append a snapshot: {why} The database is "
            "safe; the node is halted until the backup is up to date. Run: "
            f"backup-cli snapshot --lightning-dir {quote(node.directory)}{_but_first(start)}"
        ) from None
    start.log(
        f"Backup healed by a snapshot: it was {'missing changes' if gap else 'not restorable'} "
        f"({where}), and a snapshot of the database ({size_bytes} bytes) is appended; the earlier "
        "history is kept"
    )
    if node.state.alarm is not None:
        write_state(node.directory, read_state(node.directory)._replace(alarm=None))
    return True


def _go_on_with(alarm: Alarm, start: Start, why: str) -> None:
    """Keeps the alarm: nothing is lost by further changes, and a stopped node loses channels.

    A restore fails until a snapshot is there; it never gives an older state.
    """
    node = start.node
    start.warn(
        f"The backup still cannot be restored to its last version, and this start could not append "
        f"a snapshot: {why} The database is safe, and each change is stored. The next start "
        f"tries again. To do it at leisure, stop the node and run: "
        f"backup-cli snapshot --lightning-dir {quote(node.directory)}{_but_first(start)}"
    )
    if node.state.alarm is None:
        with contextlib.suppress(BackupError):  # it is found again
            write_state(node.directory, read_state(node.directory)._replace(alarm=alarm))


def halt_out_of_date(start: Start) -> NoReturn:
    """Halts a node that committed changes which are missing in its backup."""
    node = start.node
    raise Discontinuity(
        f"Backup is out of date: {_where(start)}. The node ran without its backup, or made a last "
        "commit while it shut down. The database is the newer one and is safe; the node is "
        "halted until the backup is up to date. Run: "
        f"backup-cli snapshot --lightning-dir {quote(node.directory)}{_but_first(start)}"
    )


def roll_forward(start: Start) -> NoReturn:
    """Halts a node whose storage may have undone its last commits, and has them applied again."""
    assert start.facts.loss is not None
    from cln_backup.plugin.start.rollforward import ask_and_halt

    ask_and_halt(
        start.node.directory,
        start.node.database,
        "Core Lightning may have lost its last changes with the power or the disk: "
        f"{_where(start)}, and {start.facts.loss.value}. SQLite may have undone commits that the "
        "node's peers know of, so the backup may have the only copy",
        _restore(start),
    )


def halt_older_database(start: Start) -> NoReturn:
    """Halts a node that would continue from an old database."""
    raise Discontinuity(
        f"Core Lightning seems to have lost some state (failed restore?): {_where(start)}. A node "
        "that continues from an old database can lose its funds. Was the database replaced by an "
        f"old copy, or by another node's? If the backup is this node's, {_restore(start)}"
    )


def halt_new_database(start: Start) -> NoReturn:
    """Halts a node that began with an empty database beside the backup of its own."""
    directory = start.node.directory
    moved = sorted(glob.glob(os.path.join(glob.escape(directory), _BEFORE_RECOVER)))
    raise Discontinuity(
        f"Core Lightning began with an empty database, but its backup is not empty: "
        f"{_where(start)}. The backup is unchanged, and the node is halted before it stores "
        "anything. "
        + (f"lightningd's command recover moved earlier files to {moved[-1]}. " if moved else "")
        + "If the database was lost or moved away, put it back, or restore it, before anything "
        f"else: put this node's own hsm_secret into {directory} (if there is none, lightningd "
        f"makes a new one: move that away, keep it); {_restore(start)}. While a backup can be "
        "restored, do not use recover or emergency.recover: they close all channels. Only for "
        f"a new node: move {directory}/backup.lock away, and make a new backup with "
        "backup-cli init under another name"
    )


def halt_other_content(start: Start) -> NoReturn:
    """Halts a node whose database and backup are at one version with different contents."""
    directory = quote(start.node.directory)
    raise Discontinuity(
        "The database and the backup have the same version and different contents: "
        f"{_where(start)}. They differ in {start.differences}. The database was changed while "
        "this plugin was off (by lightningd without it, or by lightning-downgrade after a "
        "crash), or was put there by hand. Both are unchanged, and the node is halted, because an "
        "old state can lose its funds. All differences: backup-cli verify --against "
        f"{directory}. If only this node and its tools wrote to this database, it is the newer "
        f"one: backup-cli snapshot --lightning-dir {directory} checks that nothing in it is older "
        "than in the backup, and appends it. If it is a copy that was put there by hand, "
        f"{_restore(start)}"
    )


ACTIONS: dict[Decision, Callable[[Start], None]] = {
    Decision.APPEND: append,
    Decision.DROP_HEAD: drop_head,
    Decision.SNAPSHOT: take_snapshot,
    Decision.GAP: halt_out_of_date,
    Decision.ROLL_FORWARD: roll_forward,
    Decision.OLDER: halt_older_database,
    Decision.NEW_DATABASE: halt_new_database,
    Decision.OTHER_CONTENT: halt_other_content,
}
"""The action of each decision. If it returns, the backup is ready for the first change."""


def _conclude_roll_forward(start: Start) -> None:
    directory = start.node.directory
    if any(os.path.lexists(os.path.join(directory, name)) for name in (MARKER_NAME, LOG_NAME)):
        from cln_backup.plugin.start.rollforward import conclude

        conclude(directory, start.log)


def _note_storage(start: Start) -> None:
    """Records the current storage of the database, before the first answer.

    Nothing is in doubt at this moment: only changes answered from now on can be lost later.
    """
    node = start.node
    if node.storage != (node.state.boot_id, node.state.mount):
        state = read_state(node.directory)
        write_state(node.directory, state._replace(**node.storage._asdict()))


def _switch_foreign_keys_on(start: Start) -> None:
    """Appends a rider if the backup ends with foreign keys off.

    The process that switched them off has ended; this one has them on.
    """
    backend = start.backend
    head = backend.standing.head
    if head is not None and not head.foreign_keys:
        change = Change(start.facts.database_version, None, [FOREIGN_KEYS_ON])
        backend.add_change(change, start.patience.bound_s())


def _but_first(start: Start) -> str:
    wrong = start.node.wrong_lock
    return f". But first: {wrong}" if wrong else ""


def _where(start: Start) -> str:
    return (
        f"the database {start.node.database} is at version {start.facts.database_version}, the "
        f"backup {redacted(start.backend.place.url)} at {start.backend.version}"
    )


def _restore(start: Start) -> str:
    database = start.node.database
    return (
        f"move {database} away (with -journal and -wal; keep it), then run: "
        f"backup-cli restore {quote(redacted(start.backend.place.url))} {quote(database)}"
    )
