"""The proof of a backup on a server: how far it was replayed, and the faults that it has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cln_backup.follower.messages import Alarm, Progress

_MAX_SAMPLES: Final = 1024


class Proof:
    """The proof of one backup, as its follower tells it.

    Attributes:
        progress: the last report of the follower; `None` before the first one.
        alarm: the fault of the backup; `None` if no fault is known.
        alarm_at: when that was raised, in seconds since 1970.
    """

    progress: Progress | None
    alarm: Alarm | None

    def __init__(self) -> None:
        self.progress = None
        self.alarm = None
        self.alarm_at = 0.0
        self._passed_at: float | None = None
        self._heads: list[tuple[float, int]] = []

    def take(self, progress: Progress) -> None:
        """Takes a report over. It ends an alarm if what was wrong has been found right since."""
        self.progress = progress
        if self.alarm is not None:
            passed_at = progress.passed_at(self.alarm.kind)
            if passed_at not in (None, self._passed_at):
                self.alarm = None

    def raise_alarm(self, alarm: Alarm) -> None:
        """Keeps an alarm until it has ended."""
        before = self.progress
        self.alarm = alarm
        self.alarm_at = time.time()
        self._passed_at = None if before is None else before.passed_at(alarm.kind)

    def is_followed(self) -> bool:
        """Whether the replica is at hand, without any trouble."""
        progress = self.progress
        return progress is not None and progress.trouble is None and self.alarm is None

    def look_at(self, head_version: int) -> None:
        """Notes the version of the head, for `lag_s`; call it about once a second."""
        heads = self._heads
        if heads and heads[-1][1] > head_version:
            heads.clear()  # the head was dropped
        if not heads or heads[-1][1] < head_version:
            heads.append((time.monotonic(), head_version))
        while len(heads) > 1 and heads[0][1] <= self.version:
            del heads[0]
        if len(heads) > _MAX_SAMPLES:
            del heads[1:-1:2]

    @property
    def version(self) -> int:
        """The data version up to which the backup is proven; 0 if it is not."""
        return 0 if self.progress is None else self.progress.proven_version

    def so_far(self) -> tuple[int, int]:
        """For the wire: the version, and when that was found, in ms since 1970; zeros if none."""
        progress = self.progress
        if progress is None or progress.proven_at is None or not progress.proven_version:
            return 0, 0
        return progress.proven_version, int(progress.proven_at * 1000)

    def lag_s(self) -> float:
        """For how long there has been a change that is not proven yet; 0 if there is none."""
        for at, head_version in list(self._heads):
            if head_version > self.version:
                return time.monotonic() - at
        return 0.0
