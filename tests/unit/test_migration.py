"""A migration is recognized by the statements that lightningd writes."""

from __future__ import annotations

import pytest

from cln_backup.model.change import Change
from cln_backup.model.migration import MigrationTracker, alters_schema, sets_schema_version
from tests import captured
from tests.histories import OFF, image, payment, payments, rider, started_node, transaction

DDL = "ALTER TABLE payments ADD COLUMN note TEXT"
SET = "UPDATE version SET version=280;"
BASE = Change(10, image("a node"), None)


@pytest.mark.parametrize(
    "statement",
    [DDL, "CREATE UNIQUE INDEX a ON b(c)", " drop table peers;", "create table x (y)"],
)
def test_statements_that_alter_the_schema(statement: str) -> None:
    assert alters_schema([payment(4).transaction[0], statement])  # type: ignore[index]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO payments VALUES ('CREATE TABLE x')",
        "UPDATE vars SET val='DROP'",
        "DELETE FROM p",
    ],
)
def test_statements_that_do_not(statement: str) -> None:
    assert not alters_schema([statement])
    assert not sets_schema_version([statement])


def _open_at(*changes: Change) -> int | None:
    tracker = MigrationTracker()
    for change in changes:
        tracker.follow(change)
    return tracker.open_at


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], None),
        ([BASE], None),
        (started_node(), None),
        ([*started_node(), *payments(4, 7)], None),
        ([BASE, payment(11)], None),
        ([BASE, payment(11), transaction(12, DDL)], 11),
        ([BASE, transaction(11, DDL)], 10),
        ([BASE, transaction(11, DDL), rider(11, OFF), transaction(12, DDL)], 10),
        ([BASE, transaction(11, DDL, SET)], None),
        ([BASE, transaction(11, DDL), transaction(12, SET)], None),
        ([BASE, transaction(11, DDL), transaction(12, SET), transaction(13, DDL)], 12),
        ([BASE, transaction(11, DDL), Change(12, image("as found"), None)], None),
        ([*started_node(), transaction(4, SET), transaction(5, DDL)], 4),
    ],
)
def test_where_a_migration_is_open(changes: list[Change], expected: int | None) -> None:
    assert _open_at(*changes) == expected


def test_a_rider_alone_does_not_tell_where_the_migration_begins() -> None:
    tracker = MigrationTracker()
    for change in (BASE, payment(11), rider(11, OFF)):
        tracker.follow(change)
    assert (tracker.open_at, tracker.is_clear) == (11, False)


@pytest.mark.parametrize("name", captured.SMALL)
def test_a_recorded_node_is_never_in_a_migration_once_its_tables_exist(name: str) -> None:
    tracker = MigrationTracker()
    for change in captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz"):
        tracker.follow(change)
        assert tracker.open_at is None
