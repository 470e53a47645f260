"""The values that the page shows, and the verdict about a node."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Finding, Level, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cln_backup.monitor.figures import Event, Sample
    from cln_backup.monitor.state import NodeState

STALE_S: Final = 30.0
"""A state that is older says nothing about now."""


class Verdict(str, Enum):
    """The answer to whether a node is safe now."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    UNKNOWN = "unknown"


class Span(NamedTuple):
    """How far back the charts go.

    Attributes:
        name: in the page's address.
        label: on the page.
        seconds: how long it is.
    """

    name: str
    label: str
    seconds: float


SPANS: Final = (
    Span("day", "24 hours", 86_400.0),
    Span("week", "7 days", 7 * 86_400.0),
    Span("quarter", "90 days", 90 * 86_400.0),
)


class NodeView(NamedTuple):
    """All that the page shows of one node.

    Attributes:
        name: on a server; empty beside a node.
        state: the last one that was told; `None` if none was told yet.
        findings: about that state.
        since: when the worst level of the findings began, in seconds since 1970.
        span: which time `points` are of.
        points: samples, the oldest first.
        events: the latest first.
    """

    name: str
    state: NodeState | None = None
    findings: Sequence[Finding] = ()
    since: float | None = None
    span: Span = SPANS[0]
    points: Sequence[Sample] = ()
    events: Sequence[Event] = ()


def is_stale(view: NodeView, now: float) -> bool:
    """Whether nothing was told lately. A state from the future is stale: the clock was set."""
    return view.state is None or abs(now - view.state.at) > STALE_S


def verdict(view: NodeView, now: float) -> Verdict:
    """Whether the node is safe at a time; `UNKNOWN` rather than safe if its state is stale."""
    level = worst(view.findings)
    if level is not Level.BAD and is_stale(view, now):
        return Verdict.UNKNOWN
    return Verdict(level.value)


ORDER: Final = (Verdict.GOOD, Verdict.WARNING, Verdict.UNKNOWN, Verdict.BAD)
"""From the best to the worst."""


def worst_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict about several nodes; `UNKNOWN` if there are none."""
    return max(verdicts, key=ORDER.index, default=Verdict.UNKNOWN)
