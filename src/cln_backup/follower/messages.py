"""The messages between the follower and the process that started it.

A request has the name of its backup. A new kind of request is a `Message` in `ASKS`, and is
handled in `process`; its answer is one in `SAYS`.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from cln_backup.backends.opening import Opening  # noqa: TC001 - a message has it as a type
from cln_backup.compaction.messages import (
    Compact,
    CompactionAnswer,
    More,
    Settled,
)
from cln_backup.model.node_files import Wanted  # noqa: TC001 - a message has it as a type
from cln_backup.process.channel import Message


class NodeDirectory(NamedTuple):
    """A node's network directory, whose small files are kept beside the backup.

    Attributes:
        path: of the directory.
        wanted: the files to keep.
    """

    path: str
    wanted: Wanted


class Backup(NamedTuple):
    """A backup to follow.

    Attributes:
        name: the parent's name for it, in all messages.
        opening: how to open it.
        directory: of its replica.
        database: the node's own, which is compared with the replica once; `None` if it is not on
            this machine.
        node: its directory; `None` if that is not on this machine.
    """

    name: str
    opening: Opening
    directory: str
    database: str | None = None
    node: NodeDirectory | None = None


class Start(Message):
    """The backups to follow.

    Attributes:
        obsolete: directories of former replicas, which are removed first. With no backup, the
            process ends after that.
    """

    backups: list[Backup]
    obsolete: list[str]


class Progress(Message):
    """The state of a backup's proof; sent at most once a second, and only when it has changed.

    Attributes:
        proven_version: the data version up to which the backup was replayed, its head included.
        proven_at: when that was found, in seconds since 1970; `None` if never.
        looked_at: everything that was stored before this time was replayed.
        trouble: why the follower cannot continue at the moment; it tries again.
        checked_at: when SQLite's integrity check last passed.
        foreign_key_faults: rows that violated a foreign key then; they are the node's own.
        compared_at: when the node's database was compared with the replica.
        node_files_at: when the node's small files in the backup were last stored.
        node_files_trouble: why newer ones cannot be stored at the moment.
    """

    name: str
    proven_version: int
    proven_at: float | None
    looked_at: float | None
    trouble: str | None = None
    checked_at: float | None = None
    foreign_key_faults: int = 0
    compared_at: float | None = None
    node_files_at: float | None = None
    node_files_trouble: str | None = None

    def passed_at(self, alarm_kind: str) -> float | None:
        """When what such an alarm is about was last found to be right; `None` if never.

        The alarm is over when this changes after it: by the order of the messages, because a clock
        may be set back. For "content", only a start tells.
        """
        if alarm_kind == "content":
            return None
        return self.checked_at if alarm_kind == "integrity" else self.proven_at


class Alarm(Message):
    """Something is wrong in a backup; sent once.

    Attributes:
        kind: "replay" (a change does not replay, or does not lead to the next version), "damaged"
            (its bytes are invalid), "integrity" (SQLite finds errors in what it makes), or
            "content" (the node's database has other contents).
    """

    name: str
    kind: str
    text: str


class Removed(Message):
    """The replica in an obsolete directory was removed."""

    directory: str


class CompactionAsk(Message):
    """A request of the writer about a compaction from the replica (`compaction.messages`).

    Attributes:
        number: of the compaction; no other one of the same parent has it.
    """

    name: str
    number: int
    asked: Compact | More | Settled


class CompactionSaid(Message):
    """The answer to one, about the compaction of that number.

    It may come after the writer has given that compaction up, and begun another one.
    """

    name: str
    number: int
    said: CompactionAnswer


Said: TypeAlias = Progress | Alarm | Removed | CompactionSaid
SAYS: Final = (Progress, Alarm, Removed, CompactionSaid)
Asked: TypeAlias = CompactionAsk
ASKS: Final = (CompactionAsk,)
