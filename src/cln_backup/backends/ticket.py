"""The terms of a compaction: sizes, the folded base, and the ticket of a prepared one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend, Standing
    from cln_backup.model.change import Change

_MANY_CHANGES: Final = 100_000
"""A restore replays so many in about 6 s, a small computer in a minute."""


class Size(TypedDict):
    """The size of a backup, with the field names of the community's plugin."""

    backupsize: int
    version_count: int


class Sizes(TypedDict):
    """The size of a backup before and after, with the field names of the community's plugin."""

    before: Size
    after: Size


class Statistics(Sizes, total=False):
    """The result of a compaction; if it changed nothing, the size that the backup `would_be`."""

    would_be: Size


class Generation(NamedTuple):
    """The newest snapshot of a backup and the log after it, as they are on their storage.

    Attributes:
        base_bytes: of the snapshot that the history starts with; 0 without one.
        log_bytes: of everything after it, which a compaction would fold.
        log_changes: the number of changes in the log.
        made_at: when the snapshot was made, in seconds since 1970; `None` if unknown.
    """

    base_bytes: int
    log_bytes: int
    log_changes: int
    made_at: float | None = None


class Folded(NamedTuple):
    """The replacement of all changes before the head.

    Attributes:
        base: a snapshot of them; `None` if the head is a snapshot itself.
        foreign_keys: whether they are enforced after the base.
    """

    base: Change | None
    foreign_keys: bool


class Ticket(NamedTuple):
    """A compaction that a reader prepared; only its backend understands the content.

    It can be passed to another process.

    Attributes:
        before, after: the size of the backup before, and with it.
        done: the result, if there is nothing left to take over.
        content: data of its backend.
    """

    before: Size
    after: Size
    done: Statistics | None = None
    content: bytes = b""

    def pays(self) -> bool:
        """Whether the compaction is worth it: for the disk space, or for the time of a restore."""
        folded = self.before["version_count"] - self.after["version_count"]
        return self.after["backupsize"] < self.before["backupsize"] or folded >= _MANY_CHANGES


class MoreNeeded(Enum):
    """The result of `Writer.take_over` if a reader must work first."""

    PREPARE = "prepare"
    """There is no ticket yet: `Reader.prepare_compaction`."""

    COPY = "copy"
    """The writer appended more than it can copy at once: `Reader.prepare_more`."""


def size_of(backend: Backend) -> Size:
    """The current size of the backup, in bytes and changes."""
    count = backend.standing.version_count
    return {"backupsize": backend.size_bytes, "version_count": count}


def worth_folding(standing: Standing) -> bool:
    """Whether a snapshot would replace more than one change."""
    return standing.head is not None and standing.version_count > 1


def nothing_to_fold(backend: Backend) -> Ticket:
    """The result of `Reader.prepare_compaction` if a compaction would change nothing."""
    size = size_of(backend)
    return Ticket(size, size, {"before": size, "after": size})
