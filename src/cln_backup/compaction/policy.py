"""When a backup compacts by itself: a pure decision on sizes, ages and free space.

A restore copies the snapshot and replays the log, so the log is bounded in two ways: by its size
against the snapshot's, which bounds the space, and by its number of changes, which bounds the time
of a restore. Each compaction writes one snapshot, so with a ratio of 1 a compaction writes as much
as the changes did since the last one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cln_backup.backends.place import Keeps
    from cln_backup.backends.ticket import Generation

LEAST_LOG_BYTES: Final = 16 << 20
"""A log of this size is small on any disk, however small the snapshot is."""

_WORTHWHILE: Final = 8
"""For its age or for the disk, a log is folded if it is at least this part of the snapshot."""
_WORTHWHILE_BYTES: Final = 1 << 20
_BESIDE_BYTES: Final = 4 << 20
"""For the parts of segments that are not needed, and for those prepared for later."""

_PAUSE_S: Final = 600.0
_MAX_PAUSE_S: Final = 86_400.0
_DAY_S: Final = 86_400.0


class Reason(Enum):
    """Why a compaction is due; the values are for the log and `backup-status`."""

    SIZE = "the log is larger than the policy allows"
    CHANGES = "the log has more changes than the policy allows"
    AGE = "the last compaction was long ago"
    DISK = "the disk of the backup is getting full"


class Limits(NamedTuple):
    """The policy's settings.

    Attributes:
        ratio: of the log's size to the snapshot's.
        max_changes: in the log. A restore replays some 15,000 a second, a small computer a tenth.
        max_days: since the last compaction.
        least_log_bytes: a smaller log is not compacted for its size.
    """

    ratio: float = 1.0
    max_changes: int = 500_000
    max_days: float = 30.0
    least_log_bytes: int = LEAST_LOG_BYTES


class Facts(NamedTuple):
    """The basis of the decision.

    Attributes:
        generation: the current one.
        room_bytes: the space on the backup's disk, without the reserve (`scratch.room_bytes`).
        age_s: since the last compaction, or since that is watched.
    """

    generation: Generation
    room_bytes: int
    age_s: float


class Past(NamedTuple):
    """The attempts since the last compaction that was done.

    Attributes:
        failures: how many failed, one after the other.
        failed_ago_s: since the last of them.
        refused_log_bytes: the size of the log at which a compaction did not pay; 0 if none was.
    """

    failures: int = 0
    failed_ago_s: float = 0.0
    refused_log_bytes: int = 0


NO_PAST: Final = Past()


def due(facts: Facts, limits: Limits, past: Past = NO_PAST) -> Reason | None:
    """Why the backup should be compacted now; `None` if it should not.

    After a failure only after a pause, which doubles with each one. After a compaction that did
    not pay only when the log is twice as long.
    """
    log, base = facts.generation.log_bytes, facts.generation.base_bytes
    if past.failures and past.failed_ago_s < pause_s(past.failures):
        return None
    if log < 2 * past.refused_log_bytes:
        return None
    if log >= _max_log_bytes(facts.generation, limits):
        return Reason.SIZE
    if facts.generation.log_changes >= limits.max_changes:
        return Reason.CHANGES
    if log < max(base // _WORTHWHILE, _WORTHWHILE_BYTES):
        return None
    if base <= facts.room_bytes < 2 * _needed_bytes(facts.generation):
        return Reason.DISK
    if facts.age_s >= limits.max_days * _DAY_S:
        return Reason.AGE
    return None


def pause_s(failures: int) -> float:
    """The pause after this number of failures in a row, in seconds."""
    return min(_MAX_PAUSE_S, _PAUSE_S * 2.0 ** min(failures - 1, 30))


def space_bound_bytes(facts: Facts, limits: Limits, keeps: Keeps) -> int:
    """The most that the backup uses on its disk, if its compactions succeed.

    Each generation is a snapshot and a log of at most twice the size at which a compaction is due;
    beside them, the compaction builds one more snapshot. Generations that are kept
    for some days are estimated from the growth since the last compaction.
    """
    generation = facts.generation
    base, log = generation.base_bytes, _max_log_bytes(generation, limits)
    # Up to the size of its log, a history may have become a larger snapshot.
    base += min(generation.log_bytes, log)
    log *= 2  # it may grow as much again until a compaction is done
    kept_bytes = keeps.generations * (base + log)
    if keeps.days and facts.age_s > 0:
        logged = generation.log_bytes * keeps.days * _DAY_S / facts.age_s
        kept_bytes = max(kept_bytes, round(logged * (1 + base / log)) + base + log)
    return base + log + kept_bytes + base + _BESIDE_BYTES


def _max_log_bytes(generation: Generation, limits: Limits) -> int:
    return max(round(limits.ratio * generation.base_bytes), limits.least_log_bytes)


def _needed_bytes(generation: Generation) -> int:
    """The most that a new snapshot takes: the old one, and what was added to it."""
    return generation.base_bytes + generation.log_bytes
