"""Figures over time: kept for a day by the minute, for 90 days by the quarter; never in the way."""

from __future__ import annotations

import itertools
import logging
import os
import stat
from typing import TYPE_CHECKING

import apsw
import pytest

from cln_backup.model.health import Level
from cln_backup.monitor import figures
from cln_backup.monitor.figures import DAY_S, Event, Figures, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NOW = 1_795_446_300 // 900 * 900.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / figures.STORE_NAME)


@pytest.fixture
def kept(path: str) -> Iterator[Figures]:
    opened = Figures(path)
    yield opened
    opened.close()


def _samples(start: float, count: int, step_s: float = 60) -> list[tuple[str, Sample]]:
    return [("", Sample(start + step_s * i, 100 + i, i, 1000 * i)) for i in range(count)]


def _files_bytes(path: str) -> int:
    return sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))


def test_a_sample_comes_back_as_it_was(kept: Figures) -> None:
    sample = Sample(_NOW, 7, 5, 4096, 25.0, 85.0, 0.5, Level.WARNING)
    kept.add([("", sample)])
    assert kept.points("", _NOW - 3600, _NOW) == [sample]
    assert kept.points("", _NOW - 30 * DAY_S, _NOW, most=10_000) == [sample]
    assert kept.points("another", _NOW - 3600, _NOW) == []


def test_samples_of_a_minute_are_merged(kept: Figures) -> None:
    for p50, p99, level in ((10.0, 50.0, Level.BAD), (30.0, 40.0, Level.GOOD), (None, None, None)):
        kept.add([("", Sample(_NOW + 5, 7, 5, 4096, p50, p99, None, level))])
    assert kept.points("", _NOW, _NOW) == [
        Sample(_NOW, 7, 5, 4096, 20.0, 50.0, None, Level.BAD),
    ]


def test_a_day_by_the_minute_and_90_days_by_the_quarter(kept: Figures) -> None:
    kept.add(_samples(_NOW, 30 * 24 * 60))
    until = _NOW + 30 * DAY_S
    day = kept.points("", until - DAY_S, until, most=10_000)
    assert len(day) == 24 * 60
    assert {later.at - earlier.at for earlier, later in itertools.pairwise(day)} == {60}
    month = kept.points("", _NOW, until, most=10_000)
    assert len(month) == 30 * 24 * 4
    assert month[-1].version == day[-1].version == 100 + 30 * 24 * 60 - 1
    assert 200 <= len(kept.points("", _NOW, until)) <= 241
    assert 200 <= len(kept.points("", until - DAY_S, until)) <= 241


def test_a_clock_that_is_set_back_or_far_ahead_breaks_nothing(kept: Figures) -> None:
    kept.add(_samples(_NOW, 60))
    kept.add(_samples(_NOW + 3000 * DAY_S, 3))  # it was wrong
    kept.add(_samples(0, 3))  # no clock at all
    kept.add(_samples(_NOW + 1800, 60))  # half an hour again
    points = kept.points("", _NOW, _NOW + DAY_S, most=10_000)
    assert [point.at for point in points] == [_NOW + 60 * i for i in range(90)]


def test_it_stays_small_with_many_nodes(kept: Figures, path: str) -> None:
    names = [f"node-{i}" for i in range(40)]
    for name in names:
        kept.add((name, sample) for _, sample in _samples(_NOW, 600))
        kept.note(name, (Event(_NOW, "notice", Level.GOOD, "x" * 4000) for _ in range(250)))
    kept.add((name, _samples(_NOW, 1)[0][1]) for name in names)
    for name in names:
        kept.note(name, [Event(_NOW, "notice", Level.GOOD, "the last one")])
    for name in names:
        most = 1440 * (120_000 // 40) // (1440 + 8640)
        assert len(kept.points(name, _NOW, _NOW + DAY_S, most=10_000)) == most
        assert len(kept.events(name, most=1000)) == 150
    assert _files_bytes(path) < 16 << 20


def test_events_are_the_last_ones_and_short(kept: Figures) -> None:
    for number in range(205):
        kept.note("", [Event(_NOW + number, "drill", Level.GOOD, f"{number} " + "x" * 600)])
    kept.note("", [Event(_NOW, "alarm", Level.BAD, "It does not replay.")])
    assert kept.events("", most=1) == [Event(_NOW, "alarm", Level.BAD, "It does not replay.")]
    assert len(kept.events("", most=1000)) == 200
    drills = kept.events("", most=2, kind="drill")
    assert [event.text.partition(" ")[0] for event in drills] == ["204", "203"]
    assert len(drills[0].text) == 500


def test_nodes_that_are_gone_are_removed(kept: Figures) -> None:
    for name in ("alice", "bob"):
        kept.add([(name, Sample(_NOW))])
        kept.note(name, [Event(_NOW, "notice", Level.GOOD, "text")])
    kept.keep_only({"bob"})
    assert not kept.points("alice", _NOW, _NOW)
    assert not kept.events("alice")
    assert len(kept.points("bob", _NOW, _NOW)) == len(kept.events("bob")) == 1


def test_only_the_owner_may_read_it_and_it_survives_a_restart(kept: Figures, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    kept.add(_samples(_NOW, 5))
    kept.close()
    again = Figures(path)
    assert len(again.points("", _NOW, _NOW + DAY_S, most=10_000)) == 5
    again.close()


@pytest.mark.parametrize("damage", ["text", "page", "format"])
def test_a_damaged_file_is_thrown_away(
    kept: Figures, path: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept.add(_samples(_NOW, 500))
    kept.close()
    if damage == "format":
        other = apsw.Connection(path)
        other.execute("PRAGMA user_version = 99").fetchall()
        other.close()
    else:
        with open(path, "r+b") as file:
            file.seek(0 if damage == "text" else 4096)
            file.write(b"This is not a database. " * 200)
    again = Figures(path)
    assert again.points("", _NOW, _NOW + DAY_S) == []
    again.add(_samples(_NOW, 5))
    assert len(again.points("", _NOW, _NOW + DAY_S, most=10_000)) == 5
    again.close()
    assert not caplog.records


def test_damage_while_it_runs_is_thrown_away(kept: Figures, path: str) -> None:
    kept.add(_samples(_NOW, 500))
    kept.close()
    opened = Figures(path)
    with open(path, "r+b") as file:
        size_bytes = os.path.getsize(path)
        file.write(b"\xff" * size_bytes)
    assert opened._connection is not None
    opened._connection.execute("PRAGMA shrink_memory").fetchall()
    for _ in range(2):
        opened.add(_samples(_NOW, 5))
    assert len(opened.points("", _NOW, _NOW + DAY_S, most=10_000)) == 5
    opened.close()


def test_no_place_for_it_is_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    missing = Figures(str(tmp_path / "none" / "backup.figures"))
    for _ in range(3):
        missing.add(_samples(_NOW, 5))
        missing.note("", [Event(_NOW, "notice", Level.GOOD, "text")])
    assert not missing.points("", _NOW, _NOW + DAY_S)
    assert not missing.events("")
    assert len(caplog.records) == 1
    assert "The backup is not affected" in caplog.text


def test_figures_begin_as_soon_as_an_earlier_process_has_let_go(
    kept: Figures, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept.add(_samples(_NOW, 1))
    later = Figures(path)
    later.add(_samples(_NOW + 60, 1))
    assert "Cannot keep figures" in caplog.text
    kept.close()
    assert later.points("", 0, 2 * _NOW) == []
    later.add(_samples(_NOW + 120, 1))
    found = later.points("", _NOW, _NOW + 600)
    assert [sample.at for sample in found] == [_NOW, _NOW + 120]
    later.close()
    later.add(_samples(_NOW + 180, 1))  # it stays closed
    assert later.points("", 0, 2 * _NOW) == []


def test_a_link_is_not_followed(tmp_path: Path, path: str) -> None:
    target = tmp_path / "hsm_secret"
    target.write_bytes(b"secret")
    os.symlink(target, path)
    opened = Figures(path)
    opened.add(_samples(_NOW, 5))
    opened.close()
    assert target.read_bytes() == b"secret"
