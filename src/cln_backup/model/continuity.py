"""Continuity: decides at a start whether the node's database and its backup match."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from cln_backup.model.change import Head, Kind

STARTED_WELL = "Versions match up"
"""The log phrase of a good start; monitoring searches for it."""


class Decision(Enum):
    """The decision at the first call of `db_write`."""

    APPEND = "append"
    DROP_HEAD = "drop the head, then append"
    SNAPSHOT = "append a snapshot, if the database descends from what the backup holds"
    GAP = "the backup is older than the database"
    OLDER = "the database is older than the backup"
    NEW_DATABASE = "the database is empty, and the backup is not"
    OTHER_CONTENT = "the versions are equal and the contents are not"
    ROLL_FORWARD = "the database may have lost changes with its storage; the backup has them"


EXPECT_EQUAL = frozenset((Decision.APPEND, Decision.DROP_HEAD))
"""Before these the database and the backup, at the database's version, are to be compared."""


class Storage(NamedTuple):
    """The storage of the node's database, by names that change when it may have lost data.

    Attributes:
        boot_id: of this boot of the machine; `None` if unknown.
        mount: of the file system of the database's directory (`mount_identity`); `None` if
            unknown.
    """

    boot_id: str | None = None
    mount: str | None = None


class Loss(Enum):
    """Why the database's storage may have lost commits, for a message."""

    POWER = "the machine was restarted since"
    MOUNT = "the file system of the database was remounted since"
    UNKNOWN = (
        "it is unknown whether the machine was restarted, or the file system of the database "
        "remounted, since"
    )


def possible_loss(before: Storage, now: Storage) -> Loss | None:
    """Whether the storage may have lost a commit since the last answer; `None` if it has not.

    Args:
        before: the storage at the last answer, as far as it was recorded.
        now: the storage at the first call of the next process.
    """
    if None not in (before.boot_id, now.boot_id) and before.boot_id != now.boot_id:
        return Loss.POWER
    if None in (*before, *now):
        return Loss.UNKNOWN
    return None if before.mount == now.mount else Loss.MOUNT


def database_version(call_version: int, *, rider: bool) -> int:
    """The version of the node's database while the node waits for this call's answer."""
    return call_version if rider else call_version - 1


class Facts(NamedTuple):
    """Everything that the decision at a start depends on, gathered before anything is changed.

    Attributes:
        call_version: `data_version` of the first call of `db_write`.
        rider: whether the call is made only of `PRAGMA` statements.
        head: the last change of the backup, `None` when it is empty.
        loss: why the database's storage may have lost a commit; `None` when it cannot have.
        heals: whether a gap is to be closed by a snapshot (`on_gap` in `backup.lock`).
        alarm: whether the backup is known not to lead to its own version, so that it needs a
            snapshot even without a gap.
        other_content: whether the database was compared with the backup at the database's version,
            and differs.
    """

    call_version: int
    rider: bool
    head: Head | None
    loss: Loss | None
    heals: bool = True
    alarm: bool = False
    other_content: bool = False

    @property
    def database_version(self) -> int:
        """The version of the node's database."""
        return database_version(self.call_version, rider=self.rider)

    @property
    def backup_version(self) -> int:
        """The version of the backup; 0 when it is empty."""
        return 0 if self.head is None else self.head.version


def decide(facts: Facts) -> Decision:
    """Decides what to do at the first call of a process.

    A transaction at version N means that the database is at N-1, a rider at N that it is at N.
    With the database at D and the backup at B:

    ========  =============  =============  =============  ========================================
    D         head           same storage   may have lost  why
    ========  =============  =============  =============  ========================================
    D = B     any or none    APPEND         APPEND         nothing was in doubt
    D = B-1   transaction    DROP_HEAD      ROLL_FORWARD   answered, and the node died before the
                                                           commit; or the storage took a commit back
    D = B-1   rider          OLDER          ROLL_FORWARD   a rider is sent after the commit of B
    D = B-1   snapshot       OLDER          ROLL_FORWARD   a snapshot is taken after that commit
    D = B-2   any            OLDER          ROLL_FORWARD   SQLite's journal came back
    D < B-2   any            OLDER          OLDER          an old copy of the database
    D > B     any or none    SNAPSHOT       SNAPSHOT       the node ran without its backup, or
                                                           committed after its plugins had gone
    ========  =============  =============  =============  ========================================

    Four facts change a row:

    - D > B without `heals`: GAP.
    - D = 0 in a row with OLDER: NEW_DATABASE, not an old copy of the database.
    - D = B with an `alarm`: SNAPSHOT, also without `heals`. DROP_HEAD stays; its action takes the
      snapshot afterwards. If no snapshot can be appended (no time, no room), the change is
      appended, and the alarm stays; but not if a restore would succeed and give other contents.
    - `other_content`, found by comparing the database with the backup at version D before an APPEND
      or a DROP_HEAD: OTHER_CONTENT. One unseen transaction, after an answered one that was never
      committed, leads to the same version with other content.

    *Same storage* is the same run of the machine and the same mount of the database's file system.
    If either is unknown, the storage may have lost a commit: rolling forward is correct in any
    case; dropping a change that the node had committed and acted on loses funds.

    At every later call of the process D = B, or the call does not follow the backup
    (`check_follows`): a node that sends another call has committed the change answered before.

    If D < B-1 or the head is not a transaction, the backup is not empty (B = 0): D is never
    negative.
    """
    behind = facts.backup_version - facts.database_version
    if behind < 0:
        return Decision.SNAPSHOT if facts.heals else Decision.GAP
    if behind == 0:
        if facts.other_content:
            return Decision.OTHER_CONTENT
        return Decision.SNAPSHOT if facts.alarm else Decision.APPEND
    if facts.loss is not None and behind <= 2:
        return Decision.ROLL_FORWARD
    if behind == 1 and facts.head is not None and facts.head.kind is Kind.TRANSACTION:
        return Decision.OTHER_CONTENT if facts.other_content else Decision.DROP_HEAD
    return Decision.OLDER if facts.database_version > 0 else Decision.NEW_DATABASE
