"""Each finding is told once when it gets worse, and once when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cln_backup.model.health import Finding, Level
from cln_backup.monitor.alarms import STORE_NAME, Alarms

if TYPE_CHECKING:
    from pathlib import Path

_LEVELS = st.sampled_from(Level)


def _finding(level: Level, code: str = "room") -> Finding:
    return Finding(code, level, "The disk has 5 MB left.", "Free some space.")


def _told(alarms: Alarms, level: Level, at_s: float) -> list[tuple[Level, Level]]:
    notices = alarms.take({"node": [_finding(level)]}, 1000.0 + at_s, at_s)
    return [(notice.was, notice.finding.level) for notice in notices]


def test_bad_is_told_at_once_and_only_once(tmp_path: Path) -> None:
    alarms = Alarms(str(tmp_path))
    assert _told(alarms, Level.BAD, 0) == [(Level.GOOD, Level.BAD)]
    assert _told(alarms, Level.BAD, 1) == []
    assert _told(alarms, Level.BAD, 10_000) == []


def test_end_is_told_once_and_after_a_minute(tmp_path: Path) -> None:
    alarms = Alarms(str(tmp_path))
    _told(alarms, Level.BAD, 0)
    assert _told(alarms, Level.GOOD, 10) == []
    assert _told(alarms, Level.GOOD, 69) == []
    assert _told(alarms, Level.GOOD, 70) == [(Level.BAD, Level.GOOD)]
    assert _told(alarms, Level.GOOD, 200) == []


def test_what_comes_and_goes_is_not_told(tmp_path: Path) -> None:
    alarms = Alarms(str(tmp_path))
    for at_s in range(0, 1000, 100):
        assert _told(alarms, Level.WARNING, at_s) == []
        assert _told(alarms, Level.GOOD, at_s + 50) == []


def test_warning_that_becomes_bad_is_told_twice(tmp_path: Path) -> None:
    alarms = Alarms(str(tmp_path))
    assert _told(alarms, Level.WARNING, 0) == []
    assert _told(alarms, Level.WARNING, 120) == [(Level.GOOD, Level.WARNING)]
    assert _told(alarms, Level.BAD, 121) == [(Level.WARNING, Level.BAD)]


def test_restart_tells_nothing_twice_and_tells_the_end(tmp_path: Path) -> None:
    _told(Alarms(str(tmp_path)), Level.BAD, 0)
    after = Alarms(str(tmp_path))
    assert _told(after, Level.BAD, 0) == []
    assert _told(after, Level.GOOD, 1) == []
    assert _told(after, Level.GOOD, 61) == [(Level.BAD, Level.GOOD)]
    assert (tmp_path / STORE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[[1]]", b'[["", "room", "purple", "", ""]]', b"[" * 100_000, b"\xff"]
)
def test_broken_store_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STORE_NAME).write_bytes(content)
    assert _told(Alarms(str(tmp_path)), Level.BAD, 0) == [(Level.GOOD, Level.BAD)]


def test_alarm_is_told_although_it_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / STORE_NAME).mkdir()
    assert _told(Alarms(str(tmp_path)), Level.BAD, 0) == [(Level.GOOD, Level.BAD)]


def test_findings_of_two_nodes_are_told_apart(tmp_path: Path) -> None:
    alarms = Alarms(str(tmp_path))
    bad = _finding(Level.BAD)
    notices = alarms.take({"alice": [bad], "bob": [bad]}, 1.0, 1.0)
    assert [notice.node for notice in notices] == ["alice", "bob"]
    notices = alarms.take({"alice": [bad], "bob": []}, 2.0, 2.0)
    notices += alarms.take({"alice": [bad], "bob": []}, 99.0, 99.0)
    assert [(notice.node, notice.finding.level) for notice in notices] == [("bob", Level.GOOD)]


@given(st.lists(st.tuples(_LEVELS, st.integers(0, 200)), max_size=40))
def test_last_notice_is_the_level_that_lasts(steps: list[tuple[Level, int]]) -> None:
    """Two notices in a row differ, and in the end the told level is the true one."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        alarms, at_s, told = Alarms(directory), 0.0, Level.GOOD
        for level, passed_s in steps:
            at_s += passed_s
            for was, now in _told(alarms, level, at_s):
                assert (was, now) == (told, level)
                assert was is not now
                told = now
        last = steps[-1][0] if steps else Level.GOOD
        for was, now in [*_told(alarms, last, at_s), *_told(alarms, last, at_s + 121)]:
            assert was is told
            told = now
        assert told is last
