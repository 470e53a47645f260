"""This machine's clock."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


_TOLERANCE_S: Final = 60.0
_TIMEX_BYTES: Final = 512
_NOT_SYNCHRONISED: Final = 5


class Clock(NamedTuple):
    """The clock, and the times that were noted.

    Attributes:
        now: seconds since 1970.
        noted: by what was noted.
        synchronised: whether the kernel says so; `None` if unknown.
    """

    now: float
    noted: Mapping[str, float]
    synchronised: bool | None


def gather(now: float, noted: Mapping[str, float | None]) -> Clock:
    """Asks the kernel about the clock."""
    known = {name: at for name, at in noted.items() if at is not None}
    return Clock(now, known, _synchronised())


def _synchronised() -> bool | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # all zeros: change nothing
    return None if state < 0 else state != _NOT_SYNCHRONISED


def judge(clock: Clock) -> Iterator[Finding]:
    """The findings about the clock."""
    ahead = {name: at for name, at in clock.noted.items() if at > clock.now + _TOLERANCE_S}
    if ahead:
        name, at = max(ahead.items(), key=lambda each: each[1])
        yield Finding(
            "clock-wrong",
            Level.WARNING,
            f"The time of {name} is {at - clock.now:,.0f} s in the future: the clock of this "
            "machine, or of the one that stored it, is or was wrong.",
            "Correct the clock (timedatectl). The backup is not affected, but ages and alarms are "
            "wrong until that time has passed.",
        )
    if clock.synchronised is False:
        yield Finding(
            "clock-not-synchronised",
            Level.WARNING,
            "No time server keeps the clock of this machine right, as far as the kernel knows.",
            "Switch on NTP: timedatectl set-ntp true. On a virtual machine, its host may do it.",
        )
    elif not ahead:
        yield Finding("clock-wrong", Level.GOOD, "The clock agrees with all times that were noted.")
