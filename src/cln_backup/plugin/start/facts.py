"""The facts at the first call, gathered before anything is changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.model.change import Kind
from cln_backup.model.continuity import Facts, Storage, possible_loss
from cln_backup.model.errors import BadSettings
from cln_backup.node.outside import database_in_use, database_path, lightningd_above, storage_of
from cln_backup.node.settings import OnGap, State, read_state, set_state_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Writer
    from cln_backup.model.change import Change
    from cln_backup.node.settings import Settings


class Node(NamedTuple):
    """The node, as seen from its network directory.

    Attributes:
        directory: its network directory.
        database: the path of its database, by its open files.
        wrong_lock: what is wrong in `backup.lock`, for a message; empty if nothing is.
        state: the state at the last answer, from `backup.state`.
        storage: the current storage of the database.
        node_id: its id, from its database; `None` if that has none yet.
        heals: whether `backup.lock` permits to close a gap by a snapshot.
    """

    directory: str
    database: str
    wrong_lock: str
    state: State
    storage: Storage
    node_id: str | None
    heals: bool

    @property
    def has_replica(self) -> bool:
        """Whether the follower keeps a replica, as far as `backup.state` says."""
        return self.state.replica_dir is not None and os.path.isdir(self.state.replica_dir)


def look_at_node(directory: str, settings: Settings, log: Callable[[str], None]) -> Node:
    """Gathers facts about the node; `settings` are those in `backup.lock`.

    Raises:
        BackupError: the database, or `backup.state`, cannot be read.
    """
    named = database_path(directory, settings.wallet)
    database = database_in_use(lightningd_above(), named)
    wrong_lock = ""
    if database != named:
        wrong_lock = (
            f"The node's database is {database}, but {directory}/backup.lock names {named}. "
            f"Correct backup.lock before you use backup-cli, which would use the wrong one: "
            f'"wallet": "{database}"'
        )
        log(wrong_lock)
    try:
        state = read_state(directory)
    except BadSettings as error:
        # Then nothing is assumed of the storage, and a missing change is rolled forward.
        log(f"{error} It is kept as {set_state_aside(directory)}, and the start continues.")
        state = State()
    storage = storage_of(database)
    heals = settings.on_gap is OnGap.SNAPSHOT
    return Node(directory, database, wrong_lock, state, storage, _node_id_of(database), heals)


def gather_facts(change: Change, node: Node, backend: Writer, log: Callable[[str], None]) -> Facts:
    """Gathers the facts that `decide` depends on."""
    log(f"Comparing backup version {backend.version} versus first write version {change.version}")
    loss = possible_loss(Storage(node.state.boot_id, node.state.mount), node.storage)
    rider = change.kind is Kind.RIDER
    alarm = node.state.alarm
    heals = alarm is not None and (not alarm.starts_over or backend.can_start_over)
    return Facts(change.version, rider, backend.standing.head, loss, node.heals, heals)


def _node_id_of(database: str) -> str | None:
    if not os.path.isfile(database) or not os.path.getsize(database):
        return None
    from cln_backup.replay.replica import node_id_of

    return node_id_of(database)
