"""What a compaction is spoken of with: sizes, what it folds, and the ticket of a prepared one."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

if TYPE_CHECKING:
    from cln_backup.backends.contract import Backend, Standing
    from cln_backup.model.change import Change

_MANY_CHANGES: Final = 100_000
"""So many take a restore some 6 s, and a small computer a minute."""


class Size(TypedDict):
    """How large a backup is, in the words of the community's plugin."""

    backupsize: int
    version_count: int


class Sizes(TypedDict):
    """How large a backup was and is, as the community's plugin tells it."""

    before: Size
    after: Size


class Statistics(Sizes, total=False):
    """What a compaction changed; nothing, where it tells only what the backup `would_be`."""

    would_be: Size


class Folded(NamedTuple):
    """What a compaction puts in the place of all changes before the head.

    Attributes:
        base: a snapshot of them; `None` where the head is a snapshot itself.
        foreign_keys: whether they are enforced after the base.
    """

    base: Change | None
    foreign_keys: bool


class Ticket(NamedTuple):
    """A compaction that a reader prepared; only its backend understands what it holds.

    It can be passed to another process.

    Attributes:
        before, after: how large the backup was, and would be with it.
        done: what was done already, where nothing is left to be taken over.
        content: what its backend must know.
    """

    before: Size
    after: Size
    done: Statistics | None = None
    content: bytes = b""

    def pays(self) -> bool:
        """Whether the compaction is worth it: for the room, or for the time of a restore."""
        folded = self.before["version_count"] - self.after["version_count"]
        return self.after["backupsize"] < self.before["backupsize"] or folded >= _MANY_CHANGES


class MoreNeeded(Enum):
    """What `Writer.take_over` answers where a reader must work first."""

    PREPARE = "prepare"
    """There is no ticket yet: `Reader.prepare_compaction`."""

    COPY = "copy"
    """The writer appended more than it can copy at once: `Reader.prepare_more`."""


def size_of(backend: Backend) -> Size:
    """How large the backup is now, in bytes and changes."""
    count = backend.standing.version_count
    return {"backupsize": backend.size_bytes, "version_count": count}


def worth_folding(standing: Standing) -> bool:
    """Whether a snapshot would stand for more changes than one."""
    return standing.head is not None and standing.version_count > 1


def nothing_to_fold(backend: Backend) -> Ticket:
    """What `Reader.prepare_compaction` gives where a compaction would change nothing."""
    size = size_of(backend)
    return Ticket(size, size, {"before": size, "after": size})
