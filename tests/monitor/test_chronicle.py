"""What happens to nodes over time, from the states that are told, over restarts too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.model.health import Level
from cln_backup.monitor.chronicle import Chronicle
from cln_backup.monitor.figures import STORE_NAME, Figures
from cln_backup.monitor.page.view import Verdict, verdict
from cln_backup.monitor.state import Fault, NodeState, Noted, findings
from tests.monitor.examples import NOW, state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FAULT = Fault("replay", "it does not replay", NOW)


@pytest.fixture
def figures(tmp_path: Path) -> Iterator[Figures]:
    opened = Figures(str(tmp_path / STORE_NAME))
    yield opened
    opened.close()


@pytest.fixture
def chronicle(figures: Figures) -> Chronicle:
    return Chronicle(figures)


def _later(now: float, **changes: Any) -> NodeState:
    """The state of `NOW`, told later."""
    return state(NOW, at=now, **changes)


def _take(chronicle: Chronicle, now: float, of: NodeState, name: str = "") -> None:
    chronicle.take({name: of}, {name: findings(of, now)}, now)


def _told(chronicle: Chronicle, now: float) -> list[tuple[str, float]]:
    events = chronicle.view("", now).events
    return [(event.kind, event.at) for event in events]


def test_a_first_state_dates_what_was_before(chronicle: Chronicle) -> None:
    of = state(NOW, notices=(Noted(NOW - 60, "The torn end was cut off."),))
    _take(chronicle, NOW, of)
    view = chronicle.view("", NOW)
    assert {event.kind: event.at for event in view.events} == {
        "compaction": of.last_compaction_at,
        "drill": of.drilled_at,
        "proof": of.database_compared_at,
        "notice": NOW - 60,
    }
    assert (view.since, view.state, verdict(view, NOW)) == (NOW, of, Verdict.GOOD)


def test_the_same_again_is_no_event(chronicle: Chronicle, figures: Figures) -> None:
    for minute in range(5):
        now = NOW + 60 * minute
        notices = (Noted(NOW - 60, "The torn end was cut off."),)
        of = _later(now, last_compaction_at=NOW - 5, notices=notices)
        _take(chronicle, now, of)
    assert len(figures.events("", 100)) == 5  # and the verdict
    assert chronicle.view("", now).since == NOW
    assert [point.at for point in figures.points("", NOW, now)] == [
        NOW // 60 * 60 + 60 * minute for minute in range(5)
    ]


def test_a_fault_begins_and_is_over(chronicle: Chronicle) -> None:
    _take(chronicle, NOW, state(NOW))
    _take(chronicle, NOW + 10, _later(NOW + 10, alarm=_FAULT))
    view = chronicle.view("", NOW + 10)
    assert (view.since, verdict(view, NOW + 10)) == (NOW + 10, Verdict.BAD)
    assert view.events[0].kind == "finding"
    assert view.events[0].level is Level.BAD
    _take(chronicle, NOW + 20, _later(NOW + 20, alarm=_FAULT))
    _take(chronicle, NOW + 30, _later(NOW + 30))
    view = chronicle.view("", NOW + 30)
    assert (view.since, verdict(view, NOW + 30)) == (NOW + 30, Verdict.GOOD)
    assert [event.kind for event in view.events[:2]] == ["over", "finding"]
    assert "it does not replay" in view.events[0].text


def test_what_is_new_is_an_event(chronicle: Chronicle) -> None:
    before = state(NOW, last_compaction_at=None, drilled_at=None, database_compared_at=None)
    _take(chronicle, NOW, before)
    assert _told(chronicle, NOW) == []
    after = _later(
        NOW + 60,
        last_compaction_at=NOW + 11,
        drilled_at=NOW + 12,
        drill_passed=False,
        database_compared_at=NOW + 13,
        release="9.9",
        notices=(Noted(NOW + 14, "One."), Noted(NOW + 15, "Two.")),
    )
    _take(chronicle, NOW + 60, after)
    told = _told(chronicle, NOW + 60)
    assert ("drill", NOW + 12) in told
    assert {kind for kind, _ in told} == {
        "compaction", "drill", "proof", "notice", "release", "finding",
    }  # fmt: skip
    assert [at for kind, at in told if kind == "notice"] == [NOW + 15, NOW + 14]


def test_a_restart_continues_what_it_finds(chronicle: Chronicle, figures: Figures) -> None:
    _take(chronicle, NOW, state(NOW, last_compaction_at=NOW - 5))
    count = len(figures.events("", 100))
    soon = Chronicle(figures)
    _take(soon, NOW + 120, _later(NOW + 120, last_compaction_at=NOW - 5))
    assert soon.view("", NOW + 120).since == NOW
    assert len(figures.events("", 100)) == count
    late = Chronicle(figures)  # nothing was watched for an hour: it is not said to have lasted
    _take(late, NOW + 7200, _later(NOW + 7200))
    assert late.view("", NOW + 7200).since == NOW + 7200


def test_a_clock_that_is_set_back(chronicle: Chronicle, figures: Figures) -> None:
    _take(chronicle, NOW, state(NOW))
    _take(chronicle, NOW - 86_400, _later(NOW - 86_400))
    view = chronicle.view("", NOW - 86_400)
    assert verdict(view, NOW - 86_400) is Verdict.GOOD
    assert len(figures.points("", NOW - 2 * 86_400, NOW)) == 2
    assert verdict(view, NOW) is Verdict.UNKNOWN


def test_a_stale_state_leaves_no_sample(chronicle: Chronicle, figures: Figures) -> None:
    _take(chronicle, NOW + 100, state(NOW))
    assert figures.points("", NOW, NOW + 200) == []


def test_a_node_that_is_no_longer_told_is_gone(chronicle: Chronicle, figures: Figures) -> None:
    _take(chronicle, NOW, state(NOW, protected=None), "alice")
    assert chronicle.names() == ["alice"]
    _take(chronicle, NOW + 60, _later(NOW + 60, protected=None), "bob")
    assert chronicle.names() == ["bob"]
    assert figures.events("alice") == []
    assert chronicle.view("alice", NOW).state is None
