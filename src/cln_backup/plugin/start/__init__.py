"""The first call of `db_write`: gathers facts, lets `decide` judge them, runs one action.

Nothing is opened before that call: lightningd also starts its plugins to ask for their options,
even while the node is running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cln_backup.backends.events import Event, Noticed
from cln_backup.model.continuity import EXPECT_EQUAL, decide
from cln_backup.model.errors import Discontinuity
from cln_backup.node.settings import read_settings
from cln_backup.plugin.start.actions import ACTIONS, Start
from cln_backup.plugin.start.facts import gather_facts, look_at_node
from cln_backup.plugin.start.opening import open_as_writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.events import OnEvent
    from cln_backup.model.change import Change
    from cln_backup.plugin.patience import Patience

_YOUNG = 1_000
_NEW_NODE = (
    "Its database is young: lightningd begins a new node if it finds no hsm_secret and no "
    "database, or when it is told to recover. To get the former node back, put its own hsm_secret "
    "there and restore its backup. While that can be restored, do not use recover or "
    "emergency.recover: they close all channels. For a new node, move backup.lock away, and make "
    "a new backup with backup-cli init under another name."
)


def start(
    directory: str,
    change: Change,
    log: Callable[[str], None],
    on_event: OnEvent,
    patience: Patience,
) -> Writer:
    """Opens the backup of the node in the current directory, for its first change.

    When it returns, the change follows the backup and can be appended.

    Raises:
        BackupError: the node must not commit; the message says why and what to do.
    """
    settings = read_settings(directory)
    node = look_at_node(directory, settings, log)
    try:
        backend = open_as_writer(settings.backend_url, node.node_id, log, on_event)
    except Discontinuity as error:
        if change.version < _YOUNG:
            raise Discontinuity(f"{error} {_NEW_NODE}") from None
        raise
    try:
        facts = gather_facts(change, node, backend, log)
        differences = found = ""

        def warn(text: str) -> None:
            on_event(Event(Noticed.WARNED, text))

        if node.has_replica and decide(facts) in EXPECT_EQUAL:
            from cln_backup.plugin.start.comparing import Say, compare_before_answer

            differences, found = compare_before_answer(
                node, facts, backend.place, Say(log, warn), patience.bound_s()
            )
            facts = facts._replace(
                other_content=bool(differences), alarm=facts.alarm or bool(found)
            )
        act = ACTIONS[decide(facts)]
        act(Start(node, facts, backend, log, patience, warn, differences, found))
    except BaseException:
        backend.close()
        raise
    return backend
