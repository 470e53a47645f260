"""A node's state becomes findings: every code in a table, and nothing for a node that is well."""

from __future__ import annotations

from typing import Any

import pytest

from cln_backup.model.health import Level
from cln_backup.monitor.state import findings, state_of

_NOW = 1_800_000_000.0
_WELL = {
    "at": _NOW - 5,
    "protected": True,
    "halted": None,
    "important": True,
    "backend_url": "dir:///mnt/backup/node",
    "version": 100,
    "backupsize": 1 << 20,
    "version_count": 10,
    "last_change_age_s": 5.0,
    "space_bound_bytes": 60 << 20,
    "free_bytes": 1 << 32,
    "follower": "following",
    "proven_version": 100,
    "proven_at": _NOW - 5,
    "proof_lag_s": 0.0,
    "alarm": None,
    "drilled_at": _NOW - 86_400,
    "drill_passed": True,
    "answer_p50_us": 90,
    "answer_p99_us": 400,
    "release": "0.2.0",
    "a_field_of_a_later_release": 1,
}


def test_node_that_is_well_has_one_good_finding() -> None:
    (found,) = findings(state_of(_WELL), _NOW)
    assert (found.code, found.level) == ("not-protected", Level.GOOD)


@pytest.mark.parametrize(
    ("changed", "code", "level"),
    [
        ({"halted": "No space left on device"}, "halted", Level.BAD),
        ({"ended": "gone"}, "node-ended", Level.BAD),
        ({"protected": False}, "not-protected", Level.BAD),
        ({"important": False}, "not-important", Level.WARNING),
        ({"protected": None, "connected": False, "away_s": 601.0}, "node-away", Level.WARNING),
        ({"alarm": {"kind": "replay", "text": "bad", "at": 1.0}}, "replay", Level.BAD),
        ({"alarm": {"kind": "content", "text": "bad", "at": 1.0}}, "content", Level.BAD),
        ({"free_bytes": 1 << 20}, "room", Level.BAD),
        ({"free_bytes": 100 << 20}, "room", Level.WARNING),
        ({"space_bound_bytes": 1 << 34}, "room", Level.WARNING),
        ({"quota_bytes": 1 << 20}, "quota", Level.WARNING),
        ({"answer_p50_us": 1_500_000}, "slow", Level.WARNING),
        ({"follower": "off", "proof_lag_s": None}, "not-followed", Level.WARNING),
        ({"proof_lag_s": 1000.0}, "proof-lag", Level.WARNING),
        ({"drill_passed": False}, "drill-failed", Level.BAD),
        ({"drilled_at": _NOW - 91 * 86_400}, "drill-old", Level.WARNING),
    ],
)
def test_each_fault_has_its_finding(changed: dict[str, Any], code: str, level: Level) -> None:
    (found,) = findings(state_of(_WELL | changed), _NOW)
    assert (found.code, found.level) == (code, level)
    assert found.text.endswith((".", "device", "gone", "bad"))
    assert found.remedy


def test_server_that_knows_little_finds_nothing() -> None:
    (found,) = findings(state_of({"at": _NOW - 500, "connected": True}), _NOW)
    assert (found.code, found.level) == ("not-protected", Level.GOOD)


def test_plugin_that_tells_nothing_may_be_waiting_for_its_backup() -> None:
    (found,) = findings(state_of(_WELL), _NOW, silent_s=61)
    assert (found.code, found.level) == ("no-answer", Level.BAD)
    assert findings(state_of(_WELL), _NOW, silent_s=59)[0].level is Level.GOOD


def test_clock_that_jumps_is_no_silence() -> None:
    """As at the start of a machine without a clock of its own, or after a suspension."""
    (found,) = findings(state_of(_WELL | {"at": _NOW - 86_400}), _NOW)
    assert found.level is Level.GOOD
