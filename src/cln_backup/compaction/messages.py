"""The messages between the writer of a compaction and the process that prepares it.

That is a child process of its own, or the follower, which has a replica at hand.
"""

from __future__ import annotations

from typing import TypeAlias

from cln_backup.backends.secrets import Secret
from cln_backup.backends.ticket import Size, Statistics, Ticket
from cln_backup.process.channel import Failed, Message


class Start(Message):
    """The request to compact.

    Attributes:
        secret: to unlock the backup, if its URL does not name one.
        scratch_dir: where to replay; `None` for the backup's default.
        if_it_pays: whether to keep the backup unchanged if a compaction is not worth it.
    """

    url: str
    secret: Secret | None
    scratch_dir: str | None
    if_it_pays: bool


class Ready(Message):
    """A compaction is prepared."""

    ticket: Ticket


class More(Message):
    """The answer to `Ready`: copy the changes appended since."""


class Compacted(Message):
    """Everything is done: a server has compacted the backup, or there was nothing to fold."""

    statistics: Statistics


class NotWorthIt(Message):
    """The staged replacement was removed: the backup would not get smaller."""

    would_be: Size


class Compact(Message):
    """The request to a follower, which prepares a compaction from its replica.

    Attributes:
        if_it_pays: as for `Start`.
        keep_migration: whether to read the history first, and refuse within a migration.
    """

    if_it_pays: bool
    keep_migration: bool = False


class Declined(Message):
    """The answer of a follower that cannot prepare one now; the backup is unchanged."""


class NotPrepared(Message):
    """The error that ended the work of a follower, which continues; the backup is unchanged."""

    error: Failed


class Settled(Message):
    """The writer has decided: the follower need not copy more.

    Attributes:
        taken: whether the prepared compaction has replaced the backup.
    """

    taken: bool


CompactionAnswer: TypeAlias = Ready | Compacted | NotWorthIt | Declined | NotPrepared
"""The answers of a follower about a compaction."""
