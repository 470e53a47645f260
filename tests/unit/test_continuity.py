"""The whole decision table, cell by cell, and that nothing lies outside of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cln_backup.model.change import Head, Kind
from cln_backup.model.continuity import (
    Decision,
    Loss,
    Storage,
    database_version,
    decide,
    possible_loss,
)

APPEND, DROP, GAP = Decision.APPEND, Decision.DROP_HEAD, Decision.GAP
OLDER, FORWARD = Decision.OLDER, Decision.ROLL_FORWARD
B = 100

# D - B, kind of the head -> on the same storage, on one that may have lost a commit
TABLE: dict[tuple[int, Kind], tuple[Decision, Decision]] = {
    (0, Kind.TRANSACTION): (APPEND, APPEND),
    (0, Kind.RIDER): (APPEND, APPEND),
    (0, Kind.SNAPSHOT): (APPEND, APPEND),
    (-1, Kind.TRANSACTION): (DROP, FORWARD),
    (-1, Kind.RIDER): (OLDER, FORWARD),
    (-1, Kind.SNAPSHOT): (OLDER, FORWARD),
    (-2, Kind.TRANSACTION): (OLDER, FORWARD),
    (-2, Kind.RIDER): (OLDER, FORWARD),
    (-2, Kind.SNAPSHOT): (OLDER, FORWARD),
    (-3, Kind.TRANSACTION): (OLDER, OLDER),
    (-3, Kind.RIDER): (OLDER, OLDER),
    (-3, Kind.SNAPSHOT): (OLDER, OLDER),
    (-B, Kind.TRANSACTION): (OLDER, OLDER),
    (1, Kind.TRANSACTION): (GAP, GAP),
    (1, Kind.RIDER): (GAP, GAP),
    (1, Kind.SNAPSHOT): (GAP, GAP),
    (2, Kind.TRANSACTION): (GAP, GAP),
    (1000, Kind.SNAPSHOT): (GAP, GAP),
}


def _call(stands_at: int, *, rider: bool) -> int:
    """The version that a node at `stands_at` sends."""
    return stands_at if rider else stands_at + 1


@pytest.mark.parametrize("rider", [False, True], ids=["transaction", "rider"])
@pytest.mark.parametrize("foreign_keys", [False, True])
@pytest.mark.parametrize(("cell", "decisions"), TABLE.items(), ids=str)
def test_first_call_of_a_process(
    cell: tuple[int, Kind], decisions: tuple[Decision, Decision], foreign_keys: bool, rider: bool
) -> None:
    difference, kind = cell
    head = Head(B, kind, foreign_keys)
    for may_have_lost, decision in zip((False, True), decisions, strict=True):
        call = _call(B + difference, rider=rider)
        found = decide(call, rider=rider, head=head, first=True, may_have_lost=may_have_lost)
        assert found is decision


@pytest.mark.parametrize(("stands_at", "decision"), [(0, APPEND), (1, GAP), (2, GAP), (1000, GAP)])
@pytest.mark.parametrize("rider", [False, True])
@pytest.mark.parametrize("may_have_lost", [False, True])
def test_first_call_on_an_empty_backup(
    stands_at: int, decision: Decision, rider: bool, may_have_lost: bool
) -> None:
    call = _call(stands_at, rider=rider)
    assert decide(call, rider=rider, head=None, first=True, may_have_lost=may_have_lost) is decision


@given(
    st.integers(-5, 5),
    st.booleans(),
    st.sampled_from([None, *Kind]),
    st.booleans(),
    st.integers(5, 2**31),
)
def test_later_calls_follow_or_are_out_of_order(
    difference: int, rider: bool, kind: Kind | None, may_have_lost: bool, version: int
) -> None:
    head = None if kind is None else Head(version, kind, foreign_keys=True)
    at = 0 if head is None else version
    call = _call(max(0, at + difference), rider=rider)
    found = decide(call, rider=rider, head=head, first=False, may_have_lost=may_have_lost)
    follows = max(0, at + difference) == at
    assert found is (APPEND if follows else Decision.OUT_OF_ORDER)


@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 2**31), st.sampled_from(Kind),
       st.booleans())  # fmt: skip
def test_a_head_is_dropped_only_where_exactly_one_change_is_in_doubt(
    call: int, rider: bool, version: int, kind: Kind, may_have_lost: bool
) -> None:
    head = Head(version, kind, foreign_keys=True)
    found = decide(call, rider=rider, head=head, first=True, may_have_lost=may_have_lost)
    stands_at = database_version(call, rider=rider)
    assert (found is APPEND) == (stands_at == version)
    if found is DROP:
        assert not may_have_lost
        assert kind is Kind.TRANSACTION
        assert stands_at == version - 1
    if found in (OLDER, FORWARD):
        assert stands_at < version
    if stands_at < version - 2:
        assert found is OLDER


def test_dropping_is_never_decided_on_the_way() -> None:
    for difference, rider in itertools.product(range(-3, 4), (False, True)):
        head = Head(B, Kind.TRANSACTION, foreign_keys=True)
        call = _call(B + difference, rider=rider)
        found = decide(call, rider=rider, head=head, first=False, may_have_lost=False)
        assert found in (APPEND, Decision.OUT_OF_ORDER)


def test_where_the_database_stands() -> None:
    assert database_version(7, rider=False) == 6
    assert database_version(7, rider=True) == 7


@pytest.mark.parametrize(
    ("before", "now", "loss"),
    [
        (("a", "m"), ("a", "m"), None),
        (("a", "m"), ("a", "n"), Loss.MOUNT),
        (("a", "m"), ("b", "m"), Loss.POWER),
        (("a", "m"), ("b", "n"), Loss.POWER),
        (("a", None), ("b", None), Loss.POWER),
        (("a", None), ("a", None), Loss.UNKNOWN),
        (("a", None), ("a", "m"), Loss.UNKNOWN),
        (("a", "m"), ("a", None), Loss.UNKNOWN),
        ((None, "m"), (None, "m"), Loss.UNKNOWN),
        ((None, "m"), ("a", "m"), Loss.UNKNOWN),
        ((None, None), (None, None), Loss.UNKNOWN),
        ((None, None), ("a", "m"), Loss.UNKNOWN),
    ],
)
def test_storage_has_lost_nothing_only_where_all_is_known_and_the_same(
    before: tuple[str | None, str | None], now: tuple[str | None, str | None], loss: Loss | None
) -> None:
    assert possible_loss(Storage(*before), Storage(*now)) is loss
