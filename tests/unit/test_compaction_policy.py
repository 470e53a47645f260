"""When a backup compacts by itself: the decision, without any backup."""

from __future__ import annotations

import pytest

from cln_backup.backends.place import Keeps
from cln_backup.backends.ticket import Generation
from cln_backup.compaction.policy import (
    Facts,
    Limits,
    Past,
    Reason,
    due,
    pause_s,
    space_bound_bytes,
)

_MB = 1 << 20
_DAY_S = 86_400.0
_ROOMY = 1 << 50


def _facts(
    base_mb: float,
    log_mb: float,
    changes: int = 10,
    *,
    room_bytes: int = _ROOMY,
    age_days: float = 1.0,
) -> Facts:
    generation = Generation(round(base_mb * _MB), round(log_mb * _MB), changes)
    return Facts(generation, room_bytes, age_days * _DAY_S)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_facts(0, 0), None),
        (_facts(1, 15.9), None),  # small on any disk
        (_facts(1, 16), Reason.SIZE),
        (_facts(0, 16), Reason.SIZE),  # a backup that started empty
        (_facts(300, 299), None),
        (_facts(300, 300), Reason.SIZE),
        (_facts(300, 40, 499_999), None),
        (_facts(300, 40, 500_000), Reason.CHANGES),
        (_facts(300, 40, age_days=29), None),
        (_facts(300, 40, age_days=30), Reason.AGE),
        (_facts(300, 37, age_days=900), None),  # it would save little
        (_facts(1, 0.9, age_days=900), None),
        (_facts(300, 40, room_bytes=680 * _MB), None),
        (_facts(300, 40, room_bytes=679 * _MB), Reason.DISK),
        (_facts(300, 40, room_bytes=300 * _MB), Reason.DISK),
        (_facts(300, 40, room_bytes=299 * _MB), None),  # there is no room for a compaction
        (_facts(300, 37, room_bytes=400 * _MB), None),  # it would free little
    ],
)
def test_due(facts: Facts, expected: Reason | None) -> None:
    assert due(facts, Limits()) is expected


def test_limits_are_settable() -> None:
    assert due(_facts(300, 150), Limits(ratio=0.5)) is Reason.SIZE
    assert due(_facts(300, 600), Limits(ratio=2.5)) is None
    assert due(_facts(1, 0.1, 1_000), Limits(max_changes=1_000)) is Reason.CHANGES
    assert due(_facts(1, 0.1), Limits(least_log_bytes=1 << 10, ratio=0.05)) is Reason.SIZE
    assert due(_facts(300, 40, age_days=2), Limits(max_days=1.5)) is Reason.AGE


def test_failures_are_followed_by_growing_pauses() -> None:
    pauses = [pause_s(failures) for failures in range(1, 12)]
    assert pauses[0] == 600
    assert pauses == sorted(pauses)
    assert pause_s(10_000) == pauses[-1] == _DAY_S
    full = _facts(1, 17)
    for failures, pause in enumerate(pauses, 1):
        assert due(full, Limits(), Past(failures, pause - 1)) is None
        assert due(full, Limits(), Past(failures, pause)) is Reason.SIZE


def test_compaction_that_did_not_pay_waits_until_the_log_has_doubled() -> None:
    past = Past(refused_log_bytes=20 * _MB)
    assert due(_facts(1, 39, 10**6), Limits(), past) is None
    assert due(_facts(1, 40), Limits(), past) is Reason.SIZE


def test_nothing_is_due_right_after_a_compaction() -> None:
    """Else it would run in a loop: the same node, whatever it has, with an empty log."""
    for base_mb in (0, 1, 300, 10_000):
        for room_mb in (0, base_mb, base_mb * 1.5, 10**6):
            found = _facts(base_mb, 0, 1, room_bytes=round(room_mb * _MB), age_days=900)
            assert due(found, Limits()) is None


@pytest.mark.parametrize("base_mb", [0, 1, 300])
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_bound_holds_for_a_node_that_grows(base_mb: int, keep: int) -> None:
    """A node's year in steps: each compaction keeps a half of what was logged."""
    limits, keeps = Limits(), Keeps(keep, 0)
    base, log, kept = base_mb * _MB, 0, [0] * keep
    for step in range(2_000):
        facts = Facts(Generation(base, log, step), _ROOMY, 60.0 * step)
        bound = space_bound_bytes(facts, limits, keeps)
        used = base + log + sum(kept)
        if due(facts, limits) is not None:
            new = base + log // 2
            assert used + new <= bound, "while it is compacted"
            kept = [*kept, base + log][1:] if keep else []
            base, log = new, 0
        else:
            assert used <= bound
        log += 700_000


def test_bound_of_generations_kept_for_days_follows_the_growth() -> None:
    quiet = space_bound_bytes(_facts(10, 1, age_days=1), Limits(), Keeps(0, 7))
    busy = space_bound_bytes(_facts(10, 10, age_days=1), Limits(), Keeps(0, 7))
    assert quiet < busy
    assert busy > 7 * 10 * _MB, "a week's log is kept"
