"""Sizes, times and spans as the page shows them to a person."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_NONE: Final = "\N{EN DASH}"
_UNITS: Final = ("B", "KB", "MB", "GB", "TB")


def size(size_bytes: float | None) -> str:
    """A size in decimal units, such as `332.6 KB`."""
    if size_bytes is None:
        return _NONE
    amount, unit = float(size_bytes), 0
    while amount >= 999.95 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.0f} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def number(count: float | None) -> str:
    """A whole number with a separator of thousands."""
    return _NONE if count is None else f"{count:,.0f}"


def short_number(count: float | None) -> str:
    """A whole number for an axis, in millions if it is large."""
    if count is None or count < 10_000_000:
        return number(count)
    return f"{count / 1e6:,.1f} M"


def answer_time(us: float | None) -> str:
    """An answer time, given in microseconds."""
    if us is None:
        return _NONE
    if us < 999.5:
        return f"{us:.0f} µs"
    if us < 999_500:
        return f"{us / 1000:.1f} ms" if us < 99_950 else f"{us / 1000:.0f} ms"
    return f"{us / 1e6:.1f} s"


def span(seconds: float) -> str:
    """How long something lasts, in the largest unit of which there are two."""
    for length, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def lag(seconds: float | None) -> str:
    """For how long something has not been proven yet."""
    if seconds is None:
        return _NONE
    return "none" if seconds < 1 else span(seconds)


def ago(at: float | None, now: float) -> str:
    """How long ago a time is."""
    if at is None:
        return "never"
    return "now" if now - at < 1 else f"{span(now - at)} ago"


def moment(at: float) -> str:
    """A time, to the minute, in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M", _local(at))


def clock(at: float) -> str:
    """A time of day, to the second, in this machine's time zone."""
    return time.strftime("%H:%M:%S", _local(at))


def iso(at: float) -> str:
    """A time for machines, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", _local(at, time.gmtime))


def zone(at: float) -> str:
    """The name of this machine's time zone."""
    return time.strftime("%Z", _local(at)) or "local time"


def _local(at: float, of: Callable[[float], time.struct_time] = time.localtime) -> time.struct_time:
    try:
        return of(at)
    except (OverflowError, OSError, ValueError):  # from a clock or a report that is wrong
        return time.gmtime(0)
