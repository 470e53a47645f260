"""What is done at a start: one action for each decision."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import redacted
from cln_backup.model.change import FOREIGN_KEYS_ON, Change
from cln_backup.model.continuity import STARTED_WELL, Decision, Facts
from cln_backup.model.errors import Discontinuity
from cln_backup.node.settings import write_state
from cln_backup.plugin.start.opening import log_notices

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from cln_backup.backends.contract import Backend
    from cln_backup.plugin.patience import Patience
    from cln_backup.plugin.start.facts import Node


class Start(NamedTuple):
    """What an action may need: what was found, and what it acts on."""

    node: Node
    facts: Facts
    backend: Backend
    log: Callable[[str], None]
    patience: Patience


def append(start: Start) -> None:
    """Nothing was in doubt: the first change can follow."""
    start.log(STARTED_WELL)
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
    backend.patience_s = start.patience.bound_s()
    backend.rewind()
    log_notices(backend, start.log)
    _switch_foreign_keys_on(start)


def halt_out_of_date(start: Start) -> NoReturn:
    """Halts a node that committed changes which its backup does not have."""
    node = start.node
    raise Discontinuity(
        f"Backup is out of date: {_where(start)}. The node ran without its backup, or made a last "
        "commit while it shut down. The database is the newer one and is safe; the node "
        "stays down until the backup has it too. Run: "
        f"backup-cli snapshot --lightning-dir {quote(node.directory)}"
        + (f". But first: {node.wrong_lock}" if node.wrong_lock else "")
    )


def halt_lost_commit(start: Start) -> NoReturn:
    """Halts a node whose storage may have taken back what it had committed."""
    assert start.facts.loss is not None
    raise Discontinuity(
        "Core Lightning may have lost its last changes with the power or the disk: "
        f"{_where(start)}, and {start.facts.loss.value}. SQLite may have taken back what the node "
        "had committed and told its peers, so the backup may have the only copy. It is safe "
        f"to bring the database forward to it: {_restore(start)}"
    )


def halt_older_database(start: Start) -> NoReturn:
    """Halts a node that would go on from an old database."""
    raise Discontinuity(
        f"Core Lightning seems to have lost some state (failed restore?): {_where(start)}. A node "
        "that goes on from an old database can lose its funds. Was an old copy of the database "
        f"put here, or another node's? If the backup is this node's, {_restore(start)}"
    )


ACTIONS: dict[Decision, Callable[[Start], None]] = {
    Decision.APPEND: append,
    Decision.DROP_HEAD: drop_head,
    Decision.GAP: halt_out_of_date,
    Decision.ROLL_FORWARD: halt_lost_commit,
    Decision.OLDER: halt_older_database,
}
"""The action of each decision. One that returns has made the backup ready for the first change."""


def _note_storage(start: Start) -> None:
    """Notes which storage the answers to come are given on, before the first of them.

    Nothing is in doubt at this moment: a later loss can only be of what is answered from now on.
    """
    node = start.node
    if node.storage != (node.state.boot_id, node.state.mount):
        write_state(node.directory, node.state._replace(**node.storage._asdict()))


def _switch_foreign_keys_on(start: Start) -> None:
    """Appends a rider where the backup ends with foreign keys off.

    The process that switched them off is gone; this one has them on.
    """
    backend = start.backend
    if backend.head is not None and not backend.head.foreign_keys:
        backend.patience_s = start.patience.bound_s()
        backend.add_change(Change(start.facts.database_version, None, [FOREIGN_KEYS_ON]))


def _where(start: Start) -> str:
    return (
        f"the database {start.node.database} is at version {start.facts.database_version}, the "
        f"backup {redacted(start.backend.url)} at {start.backend.version}"
    )


def _restore(start: Start) -> str:
    database = start.node.database
    return (
        f"move {database} away (with -journal and -wal; keep it), then run: "
        f"backup-cli restore {quote(redacted(start.backend.url))} {quote(database)}"
    )
