"""Compares the node's database with the backup at the same version, before the first answer.

The version proves little: where the last change was answered and never committed, and one other
transaction was committed unseen, both are at one version with different contents. The kept replica
of the follower is at hand; where it is missing or lags, the follower compares later.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from cln_backup.model import statements
from cln_backup.model.errors import BackupError, Discontinuity, ReplayFailed, WriterConflict
from cln_backup.operations.proven import opened_when_free
from cln_backup.plugin.faults import fault
from cln_backup.replay.content import CHANNEL_TABLES, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.place import Place
    from cln_backup.model.continuity import Facts
    from cln_backup.plugin.start.facts import Node
    from cln_backup.replay.kept import KeptReplica

COMPARE_S: Final = 2.0
"""The limit for everything together."""

_OPEN_S: Final = 1.0
_WAIT_S: Final = 1.0
_FEW_CHANGES: Final = 2_000
_NAMED: Final = 6
"""How many differences a message lists."""


class Compared(NamedTuple):
    """The result of a comparison.

    Attributes:
        differences: where database and backup differ, for a message; empty if nowhere, as far as
            they were compared.
        alarm: why the backup does not lead to its own version, for a message; empty if it does, or
            if that is unknown.
    """

    differences: str = ""
    alarm: str = ""


def compare_before_answer(
    node: Node, facts: Facts, place: Place, log: Callable[[str], None]
) -> Compared:
    """Compares what matters most within two seconds: channels, and what the head touched.

    Nothing is changed, except that the replica catches up. Errors other than a difference are
    logged: the node's start does not depend on the replica.
    """
    directory = node.state.replica_dir
    if facts.backup_version == 0 or directory is None or not os.path.isdir(directory):
        return Compared()
    try:
        return _compare(directory, node.database, facts, place)
    except _Later as later:
        why = str(later)
    except WriterConflict:
        why = "another process uses the replica"
    except BackupError as error:
        why = str(error)
    except apsw.Error as error:
        why = f"SQLite reports {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - nothing of this may stop a healthy node
        why = fault(error)
    log(f"The database is compared with its backup later, beside the running node: {why}")
    return Compared()


class _Later(Exception):
    """The comparison is left to the follower."""


def _compare(directory: str, database: str, facts: Facts, place: Place) -> Compared:
    until, at = time.monotonic() + COMPARE_S, facts.database_version
    with (
        contextlib.closing(opened_when_free(directory, _WAIT_S)) as replica,
        place.open_reader(timeout_s=_OPEN_S) as reader,
    ):
        touched = _touched_since(replica, reader)
        try:
            to = None if at == facts.backup_version else at
            if not replica.catch_up(reader, to=to, until=until):
                raise _Later("the replica lags")
        except ReplayFailed as error:
            return Compared(alarm=str(error))
        if replica.version != at:
            raise _Later(f"the replica is at version {replica.version}")
        own = apsw.Connection(database, flags=apsw.SQLITE_OPEN_READONLY)
        with contextlib.closing(own):
            own.execute("BEGIN")
            found = compare(replica.connection, own, (*CHANNEL_TABLES, *touched), until)
    parts = [f"{table} ({detail})" for table, detail, is_index in found.differences if not is_index]
    rest = len(parts) - _NAMED
    return Compared(", ".join(parts[:_NAMED]) + (f" and {rest} more" if rest > 0 else ""))


def _touched_since(replica: KeptReplica, reader: Reader) -> list[str]:
    """The tables that the changes after the replica's position touch: usually the head alone.

    Raises `_Later` if the replica is so far away that it would take long.
    """
    if replica.position is None:
        raise _Later("the replica is new")
    found: list[str | None] = []
    try:
        for number, change in enumerate(reader.stream_changes(after=replica.position)):
            if change.transaction is None or number == _FEW_CHANGES:
                raise _Later("the replica lags")
            found += map(statements.table, change.transaction)
    except Discontinuity:
        raise _Later("the backup was compacted since the replica") from None
    return [name for name in dict.fromkeys(found) if name is not None]
