"""Whether a change follows the backup: the decision that keeps a history from being mixed up."""

from __future__ import annotations

from enum import Enum

from cln_backup.change import Head, Kind

STARTED_WELL = "Versions match up"
"""What the log says of a good start; others look for it."""


class Decision(Enum):
    """What to do with a call of `db_write`."""

    APPEND = "append"
    DROP_HEAD = "drop the head, then append"
    GAP = "the backup is behind the database"
    OLDER = "the database is older than the backup"
    ROLL_FORWARD = "the database lost changes with the power; the backup has them"
    OUT_OF_ORDER = "the call does not follow the one before"


def database_version(call_version: int, *, rider: bool) -> int:
    """The version at which the node's database stands while it waits for this call's answer."""
    return call_version if rider else call_version - 1


def decide(
    call_version: int, *, rider: bool, head: Head | None, first: bool, rebooted: bool
) -> Decision:
    """Decides about one call of `db_write`.

    Args:
        call_version: `data_version` of the call.
        rider: whether the call is made only of `PRAGMA` statements.
        head: the last change of the backup, `None` when it is empty.
        first: whether this is the first call of the node's process.
        rebooted: whether the machine started anew since the last answer was given.

    A transaction at version N says that the database stands at N-1, a rider at N that it stands
    at N. With the database at D and the backup at B, the first call of a process gives:

    ========  =============  ===========  ============  ==========================================
    D         head           same boot    other boot    why
    ========  =============  ===========  ============  ==========================================
    D = B     any or none    APPEND       APPEND        nothing was in doubt
    D = B-1   transaction    DROP_HEAD    ROLL_FORWARD  answered, and the node died before the
                                                        commit; after a loss of power SQLite may
                                                        also have taken a commit back
    D = B-1   rider          OLDER        ROLL_FORWARD  a rider is sent after the commit of B
    D = B-1   snapshot       OLDER        ROLL_FORWARD  a snapshot is taken after the commit of B
    D = B-2   any            OLDER        ROLL_FORWARD  SQLite's journal came back from the dead
    D < B-2   any            OLDER        OLDER         an old copy of the database
    D > B     any or none    GAP          GAP           the node ran without its backup, or
                                                        committed after its plugins had gone
    ========  =============  ===========  ============  ==========================================

    In every later call of the process D = B holds, or the call is OUT_OF_ORDER: the node
    committed what was answered, or it would not have gone on.

    Where D < B-1 or the head is no transaction, an empty backup (B = 0) cannot be meant: D is
    never negative.
    """
    behind = (0 if head is None else head.version) - database_version(call_version, rider=rider)
    if behind == 0:
        return Decision.APPEND
    if not first:
        return Decision.OUT_OF_ORDER
    if behind < 0:
        return Decision.GAP
    if rebooted and behind <= 2:
        return Decision.ROLL_FORWARD
    if behind == 1 and head is not None and head.kind is Kind.TRANSACTION:
        return Decision.DROP_HEAD
    return Decision.OLDER
