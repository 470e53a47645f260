"""The whole decision table, cell by cell, and that nothing is outside of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cln_backup.backends.follows import check_follows
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.continuity import (
    Decision,
    Facts,
    Loss,
    Storage,
    database_version,
    decide,
    possible_loss,
)
from cln_backup.model.errors import BadChange, Discontinuity
from cln_backup.plugin.start.actions import ACTIONS
from tests.histories import rider as rider_at
from tests.histories import transaction

LOSSES = (None, *Loss)
APPEND, DROP, GAP = Decision.APPEND, Decision.DROP_HEAD, Decision.GAP
OLDER, FORWARD = Decision.OLDER, Decision.ROLL_FORWARD
SNAPSHOT, NEW, OTHER = Decision.SNAPSHOT, Decision.NEW_DATABASE, Decision.OTHER_CONTENT
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
    (1 - B, Kind.TRANSACTION): (OLDER, OLDER),
    (-B, Kind.TRANSACTION): (NEW, NEW),
    (-B, Kind.RIDER): (NEW, NEW),
    (-B, Kind.SNAPSHOT): (NEW, NEW),
    (1, Kind.TRANSACTION): (SNAPSHOT, SNAPSHOT),
    (1, Kind.RIDER): (SNAPSHOT, SNAPSHOT),
    (1, Kind.SNAPSHOT): (SNAPSHOT, SNAPSHOT),
    (2, Kind.TRANSACTION): (SNAPSHOT, SNAPSHOT),
    (1000, Kind.SNAPSHOT): (SNAPSHOT, SNAPSHOT),
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
    call = _call(B + difference, rider=rider)
    on_same_storage, where_some_may_be_lost = decisions
    for loss in LOSSES:
        facts = Facts(call, rider, head, loss)
        expected = on_same_storage if loss is None else where_some_may_be_lost
        assert decide(facts) is expected
        # on_gap
        assert decide(facts._replace(heals=False)) is (GAP if expected is SNAPSHOT else expected)
        # an alarm
        alarmed = SNAPSHOT if expected is APPEND else expected
        assert decide(facts._replace(alarm=True)) is alarmed
        if expected is APPEND:  # an alarm is no gap
            assert decide(facts._replace(alarm=True, heals=False)) is SNAPSHOT
        # a comparison, which is made only where the contents should be equal
        if expected in (APPEND, DROP):
            for alarm in (False, True):
                assert decide(facts._replace(other_content=True, alarm=alarm)) is OTHER
        assert (facts.database_version, facts.backup_version) == (B + difference, B)


@pytest.mark.parametrize(("stands_at", "decision"), [(0, APPEND), (1, SNAPSHOT), (1000, SNAPSHOT)])
@pytest.mark.parametrize("rider", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_first_call_on_an_empty_backup(
    stands_at: int, decision: Decision, rider: bool, loss: Loss | None
) -> None:
    call = _call(stands_at, rider=rider)
    assert decide(Facts(call, rider, None, loss)) is decision


@given(
    st.integers(-5, 5),
    st.booleans(),
    st.sampled_from([None, *Kind]),
    st.integers(5, 2**31),
)
def test_later_calls_follow_or_are_out_of_order(
    difference: int, rider: bool, kind: Kind | None, version: int
) -> None:
    at = 0 if kind is None else version
    stands_at = max(0, at + difference)
    call = _call(stands_at, rider=rider)
    change = rider_at(call) if rider else transaction(call, "DELETE FROM peers")
    if stands_at == at:
        check_follows(change, at, empty=kind is None)
    else:
        with pytest.raises(Discontinuity):
            check_follows(change, at, empty=kind is None)


@pytest.mark.parametrize("stands_at", range(-3, 4))
def test_later_call_that_does_not_follow_is_told_so_before_its_end_is_judged(
    stands_at: int,
) -> None:
    """Whatever the transaction is: a node is told of the other program."""
    change = Change(_call(B + stands_at, rider=False), None, ["DELETE FROM peers"])
    with pytest.raises(BadChange if stands_at == 0 else Discontinuity):
        check_follows(change, B, empty=False)


@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 2**31), st.sampled_from(Kind),
       st.sampled_from(LOSSES))  # fmt: skip
def test_a_head_is_dropped_only_where_exactly_one_change_is_in_doubt(
    call: int, rider: bool, version: int, kind: Kind, loss: Loss | None
) -> None:
    head = Head(version, kind, foreign_keys=True)
    found = decide(Facts(call, rider, head, loss))
    stands_at = database_version(call, rider=rider)
    assert (found is APPEND) == (stands_at == version)
    assert (found is SNAPSHOT) == (stands_at > version)
    if found is DROP:
        assert loss is None
        assert kind is Kind.TRANSACTION
        assert stands_at == version - 1
    if found in (OLDER, FORWARD, NEW):
        assert stands_at < version
    if stands_at < version - 2:
        assert found is (OLDER if stands_at else NEW)
    assert found not in (GAP, OTHER)


@pytest.mark.parametrize("head", [1, 2])
def test_new_node_that_died_before_its_first_commit_is_no_new_database(head: int) -> None:
    """The database is empty, and so is the backup, once the head is dropped."""
    facts = Facts(1, False, Head(head, Kind.TRANSACTION, foreign_keys=True), None)
    assert decide(facts) is (DROP if head == 1 else NEW)
    assert decide(facts._replace(loss=Loss.POWER)) is FORWARD


def test_every_decision_has_one_action() -> None:
    assert set(ACTIONS) == set(Decision)
    assert len(set(ACTIONS.values())) == len(Decision)


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
