"""The story of each node over time: samples and events, from the states that are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.model.health import Level, worst
from cln_backup.monitor.figures import FINE_S, Event, Sample
from cln_backup.monitor.page.view import SPANS, NodeView, Span, is_stale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cln_backup.model.health import Finding
    from cln_backup.monitor.figures import Figures
    from cln_backup.monitor.state import NodeState

_VERDICT: Final = "verdict"
_UNWATCHED_S: Final = 900.0
"""A level is not said to have lasted if nothing was sampled for so long."""

_EVENTS: Final = 100


class _Node(NamedTuple):
    view: NodeView
    level: Level
    last: Mapping[str, float]


class Chronicle:
    """Stores the figures and events of all nodes, and gives the page its views of them."""

    def __init__(self, figures: Figures) -> None:
        """`figures`: the database; it stays the caller's."""
        self._figures = figures
        self._nodes: dict[str, _Node] = {}
        self._sampled_at = 0.0

    def take(
        self,
        nodes: Mapping[str, NodeState],
        findings: Mapping[str, Sequence[Finding]],
        now: float,
    ) -> None:
        """Takes the state of all nodes, and what is wrong with them, at a time."""
        samples_due = abs(now - self._sampled_at) >= FINE_S
        taken, samples = {}, []
        for name, state in nodes.items():
            view = NodeView(name, state, findings[name])
            before = self._nodes.get(name) or self._known(name, now)
            level, since = worst(view.findings), None if before is None else before.view.since
            events = list(_happened(before, view, level, now))
            if any(event.kind == _VERDICT for event in events):
                since = now
            last = {} if before is None else dict(before.last)
            last |= {event.kind: event.at for event in events}
            taken[name] = _Node(view._replace(since=since), level, last)
            if events:
                self._figures.note(name, events)
            if samples_due and not is_stale(view, now):
                samples.append((name, _sample(state, level, now)))
        self._nodes = taken
        if samples_due:
            self._sampled_at = now
            self._figures.keep_only(nodes)
            self._figures.add(samples)

    def _known(self, name: str, now: float) -> _Node | None:
        """A node as an earlier process left it; `None` if there is nothing of it."""
        events = self._figures.events(name, most=_EVENTS)
        if not events:
            return None
        last = {event.kind: event.at for event in reversed(events)}
        verdicts = self._figures.events(name, 1, _VERDICT)
        was_watched = self._figures.points(name, now - _UNWATCHED_S, now)
        if not verdicts or not was_watched:
            return _Node(NodeView(name), Level.GOOD, last)
        return _Node(NodeView(name, since=verdicts[0].at), verdicts[0].level, last)

    def names(self) -> list[str]:
        """The names of the nodes, sorted."""
        return sorted(self._nodes)

    def view(self, name: str, now: float, span: Span = SPANS[0], most: int = 240) -> NodeView:
        """A node with its samples and events; any thread may ask.

        Args:
            name: of the node; one that is not known has nothing.
            now: the time at the end of the span.
            span: how far back the samples go.
            most: how many there are at most, about; 0 for none.
        """
        node = self._nodes.get(name)
        if node is None:
            return NodeView(name, span=span)
        events = [each for each in self._figures.events(name, _EVENTS) if each.kind != _VERDICT]
        return node.view._replace(
            span=span,
            points=self._figures.points(name, now - span.seconds, now, most) if most else (),
            events=sorted(events, key=lambda event: event.at, reverse=True),
        )


def _sample(state: NodeState, level: Level, now: float) -> Sample:
    return Sample(
        now,
        state.version,
        state.version_count,
        state.backupsize,
        state.answer_p50_us,
        state.answer_p99_us,
        state.proof_lag_s,
        level,
    )


def _happened(before: _Node | None, view: NodeView, level: Level, now: float) -> Iterator[Event]:
    """The events between two states of a node; of the first one, all that it tells of."""
    yield from _of_findings(before, view, now)
    if before is None or before.view.since is None or before.level is not level:
        yield Event(now, _VERDICT, level, level.value)
    state = view.state
    assert state is not None
    last = {} if before is None else before.last
    for kind, at, event_level, text in _dated(state):
        if at is not None and abs(at - last.get(kind, -1.0)) > 1.0:
            yield Event(at, kind, event_level, text)
    for notice in state.notices:
        if notice.at > last.get("notice", -1.0):
            yield Event(notice.at, "notice", Level.GOOD, notice.text)
    was = None if before is None else before.view.state
    if was is not None and was.release != state.release and state.release:
        yield Event(now, "release", Level.GOOD, f"Release {state.release} is running.")


def _of_findings(before: _Node | None, view: NodeView, now: float) -> Iterator[Event]:
    if before is None or before.view.state is None:
        old: dict[str, Finding] = {}
    else:
        old = {finding.code: finding for finding in before.view.findings}
    new = {finding.code: finding for finding in view.findings}
    for code, finding in new.items():
        was = old[code].level if code in old else Level.GOOD
        if finding.level not in (was, Level.GOOD):
            yield Event(now, "finding", finding.level, finding.text)
    for code, finding in old.items():
        ended = code not in new or new[code].level is Level.GOOD
        if finding.level is not Level.GOOD and ended:
            yield Event(now, "over", Level.GOOD, f"Over: {finding.text}")


def _dated(state: NodeState) -> Iterator[tuple[str, float | None, Level, str]]:
    """The events that the state itself dates: kind, time, level, text."""
    yield "compaction", state.last_compaction_at, Level.GOOD, "A compaction ended."
    passed = state.drill_passed is not False
    yield (
        "drill",
        state.drilled_at,
        Level.GOOD if passed else Level.BAD,
        "A rehearsal of a restore passed." if passed else "A rehearsal of a restore failed.",
    )
    yield (
        "proof",
        state.database_compared_at,
        Level.GOOD,
        "All tables of the node's database were compared with the backup.",
    )
