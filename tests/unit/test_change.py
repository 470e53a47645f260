from __future__ import annotations

import dataclasses

import pytest

from cln_backup.backends.follows import check_follows
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import BadChange, Discontinuity
from tests.histories import OFF, bump, image, payment, rider, transaction


def test_kinds() -> None:
    assert payment(3).kind is Kind.TRANSACTION
    assert rider(3).kind is Kind.RIDER
    assert Change(3, image("a database"), None).kind is Kind.SNAPSHOT
    assert Change(3, None, []).kind is Kind.TRANSACTION


def test_change_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        payment(3).version = 4  # type: ignore[misc]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("version", [0, 1, 7, 2**31])
def test_what_follows(version: int, empty: bool) -> None:
    check_follows(transaction(version + 1, "DELETE FROM peers"), version, empty=empty)
    check_follows(rider(version), version, empty=empty)
    check_follows(Change(version, image("a"), None), version, empty=empty)
    check_follows(Change(version + 9, image("a"), None), version, empty=empty)


@pytest.mark.parametrize("away", [-2, -1, 0, 2, 3])
def test_transaction_that_does_not_follow(away: int) -> None:
    with pytest.raises(Discontinuity):
        check_follows(transaction(7 + away, "DELETE FROM peers"), 7, empty=False)


@pytest.mark.parametrize("away", [-1, 1])
def test_rider_that_does_not_follow(away: int) -> None:
    with pytest.raises(Discontinuity):
        check_follows(rider(7 + away), 7, empty=False)


def test_older_snapshot_does_not_follow() -> None:
    with pytest.raises(Discontinuity):
        check_follows(Change(6, image("a"), None), 7, empty=False)
    check_follows(Change(6, image("a"), None), 7, empty=True)


@pytest.mark.parametrize(
    "statements",
    [[], ["DELETE FROM peers"], [bump(9)], [bump(8), "DELETE FROM peers"], [OFF, bump(9)]],
)
def test_transaction_that_nobody_could_prove_whole_is_refused(statements: list[str]) -> None:
    with pytest.raises(BadChange):
        check_follows(Change(8, None, statements), 7, empty=False)
