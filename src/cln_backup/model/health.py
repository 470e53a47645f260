"""Findings about a protected node, as values: for the doctor, the page and the alarms.

Each finding has a code, which is also the name of its page in docs/alarms.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Level(str, Enum):
    """How bad a finding is: green, yellow or red."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        code: of its kind; it never changes.
        level: how bad it is.
        text: what is so, in one sentence.
        remedy: what to do; empty if there is nothing to do.
    """

    code: str
    level: Level
    text: str
    remedy: str = ""


_ORDER = (Level.GOOD, Level.WARNING, Level.BAD)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of some findings; good if there are none."""
    return max((finding.level for finding in findings), key=_ORDER.index, default=Level.GOOD)
