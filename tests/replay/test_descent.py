"""Whether a database descends from a backup: all recordings, at all distances."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import apsw
import pytest

from cln_backup.model.change import Kind
from cln_backup.replay.descent import Behind, behind
from tests import captured
from tests.operations.test_captures import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cln_backup.model.change import Change

_COUNTERS = ("next_index_local", "next_index_remote", "next_htlc_id")


def states(changes: Iterable[Change], every: int) -> Iterator[tuple[int, apsw.Connection]]:
    """The database at each so many changes, in memory."""
    node = apsw.Connection(":memory:")
    node.execute("PRAGMA foreign_keys = ON")
    for number, change in enumerate(changes, 1):
        statements = list(change.transaction or ())
        if change.kind is Kind.TRANSACTION:
            statements = ["BEGIN", *statements, "COMMIT"]
        for statement in statements:
            node.execute(statement)
        if number % every == 0:
            yield change.version, copied(node)


def copied(connection: apsw.Connection) -> apsw.Connection:
    copy = apsw.Connection(":memory:")
    copy.deserialize("main", connection.serialize("main"))
    return copy


def _number(connection: apsw.Connection, query: str) -> int:
    number = connection.execute(query).fetchall()[0][0]
    assert isinstance(number, int)
    return number


def grown(connection: apsw.Connection) -> dict[str, int]:
    """Everything of a recorded node that only grows, found in another way than `behind` does."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if "network_events" not in tables:  # the start of a new node
        return {}
    found = {
        str(name): int(value)
        for name, value in connection.execute(
            "SELECT name, intval FROM vars WHERE name LIKE 'last\\_%\\_index' ESCAPE '\\' "
            "OR name LIKE 'bip%\\_max\\_index' ESCAPE '\\' OR name = 'next_pay_index'"
        )
    }
    for row, *numbers in connection.execute(
        f"SELECT id, {', '.join(_COUNTERS)} FROM channels WHERE scid IS NOT NULL"
    ):
        found |= {f"{name} {row}": n for name, n in zip(_COUNTERS, numbers, strict=True)}
    for row, index in connection.execute(
        "SELECT c.id, min_index FROM channels c, shachains s ON s.id = shachain_remote_id "
        "WHERE scid IS NOT NULL"
    ):
        found[f"revocations {row}"] = 2**48 - index
    for table in ("channel_moves", "chain_moves"):
        found[table] = _number(connection, f"SELECT count(*) FROM {table}")
    return found


def _checked(changes: Iterable[Change], every: int) -> set[str]:
    """Compares each two states; returns what was ever found to be smaller."""
    found = [(version, state, grown(state)) for version, state in states(changes, every)]
    assert len(found) > 5
    names: set[str] = set()
    for number, (earlier, old, old_numbers) in enumerate(found):
        for later, new, new_numbers in found[number:]:
            assert behind(old, new) == ()
            moved = {name for name, value in new_numbers.items() if old_numbers.get(name) != value}
            caught = behind(new, old)
            assert bool(caught) == bool(moved) or not old_numbers, (earlier, later, moved, caught)
            assert all(one.database is None or one.database < one.backup for one in caught)
            names |= {one.what.partition(" of channel ")[0] for one in caught}
    return names


@pytest.mark.parametrize("name", captured.SMALL)
def test_each_later_state_of_a_recorded_node_descends_from_each_earlier(name: str) -> None:
    changes = captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz")
    names = _checked(changes, 35)
    common = {*_COUNTERS, "revocations", "last_htlcs_created_index", "rows of channel_moves"}
    of = {
        "payee": {"next_pay_index", "last_invoices_created_index", "last_invoices_updated_index"},
        "payer": {"last_sendpays_created_index", "rows of chain_moves"},
        "router": {"last_forwards_created_index", "rows of chain_moves"},
    }[name]
    # One that neither pays nor is paid has offered no HTLC, and so on.
    assert names >= (common | of) - ({"next_htlc_id"} if name == "payee" else set())


def test_large_recording_descends(large_captures: Path) -> None:
    changes = captured.changes(large_captures / "payments600" / "payee.jsonl.xz")
    names = _checked(itertools.islice(changes, 1_800), 220)
    assert "paid invoices that are the same, of the newest" in names


@pytest.mark.parametrize("name", MIGRATIONS)
def test_migrated_database_descends_from_the_one_before(
    name: str, large_captures: Path, tmp_path: Path
) -> None:
    place = large_captures / "migrations" / name
    paths = [
        captured.unpacked(place / f"{which}.sqlite3.xz", tmp_path / f"{which}.sqlite3")
        for which in ("before", "after")
    ]
    before, after = (apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) for path in paths)
    try:
        assert behind(before, after) == ()
        channels = _number(before, "SELECT count(*) FROM channels")
        if channels:  # matched, although the old release may not have stored their ids
            advanced = copied(before)
            advanced.execute("UPDATE channels SET next_index_remote = next_index_remote + 1")
            assert [one.what[:17] for one in behind(advanced, after)] == (
                ["next_index_remote"] * channels
            )
    finally:
        before.close()
        after.close()


@pytest.fixture(scope="module")
def recorded() -> apsw.Connection:
    changes = captured.changes(captured.COMMITTED / "small" / "router.jsonl.xz")
    *_, (_, state) = states(changes, 500)
    return state


@pytest.fixture
def router(recorded: apsw.Connection) -> apsw.Connection:
    """A database of a node with two channels, 52 moves and so on."""
    state = copied(recorded)
    state.execute("PRAGMA foreign_keys = ON")
    return state


def _names(found: Iterable[Behind]) -> list[str]:
    return [one.what.partition(" of channel")[0].partition(" ")[0] for one in found]


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("UPDATE channels SET next_index_local = next_index_local - 1", ["next_index_local"] * 2),
        ("UPDATE channels SET next_htlc_id = 0", ["next_htlc_id"]),
        ("UPDATE shachains SET min_index = min_index + 1", ["revocations"] * 2),
        ("DELETE FROM shachains", ["revocations"] * 2),
        ("DELETE FROM channels WHERE id = 1", ["channel"]),
        # The channel is another one, under the same row id.
        ("UPDATE channels SET full_channel_id = x'00' WHERE id = 1", ["channel"]),
        ("UPDATE vars SET intval = 0 WHERE name = 'bip86_max_index'", ["bip86_max_index"]),
        ("DELETE FROM vars WHERE name = 'bip86_max_index'", ["bip86_max_index"]),
        ("DELETE FROM channel_moves WHERE id = 7", ["rows"]),
        ("UPDATE channel_moves SET fees = fees + 1 WHERE id = 7", ["rows"]),
        ("DELETE FROM chain_moves WHERE id = (SELECT max(id) FROM chain_moves)", ["rows"]),
    ],
)
def test_older_and_foreign_states_are_found(
    statement: str, names: list[str], router: apsw.Connection
) -> None:
    other = copied(router)
    other.execute(statement)
    assert _names(behind(router, other)) == names


@pytest.mark.parametrize(
    "statement",
    [
        # Two that were not confirmed: one has vanished, the other's id has changed.
        "DELETE FROM channels WHERE id = 1",
        "UPDATE channels SET full_channel_id = x'00'",
        # A channel was closed, and the rows of its moves name another account.
        "UPDATE channel_moves SET account_channel_id = NULL, account_nonchannel_id = 1",
        "UPDATE channels SET id = id + 10",
        "UPDATE channels SET next_index_local = next_index_local + 1, state = 10",
        (
            "INSERT INTO channel_moves SELECT id + 99, 1, NULL, 1, 1, 1, NULL, 0, 0, 0 "
            "FROM channel_moves"
        ),
        "DELETE FROM network_events",
        "DELETE FROM forwards",
        "DELETE FROM blocks WHERE height > 100",
    ],
)
def test_innocent_changes_descend(statement: str, router: apsw.Connection) -> None:
    router.execute("UPDATE channels SET scid = NULL")
    other = copied(router)
    other.execute(statement)
    assert behind(router, other) == ()


def test_channel_that_is_being_opened_may_vanish(router: apsw.Connection) -> None:
    """Seen in a block that was undone, and forgotten."""
    router.execute("UPDATE channels SET state = 2 WHERE id = 1")
    other = copied(router)
    other.execute("DELETE FROM channels WHERE id = 1")
    assert behind(router, other) == ()


def test_two_channels_with_one_id_count_together(router: apsw.Connection) -> None:
    """A peer chooses a part of the id of a channel."""
    router.execute("UPDATE channels SET full_channel_id = x'01'")
    assert behind(router, copied(router)) == ()
    older = copied(router)
    older.execute(
        "UPDATE channels SET next_index_local = 1 WHERE next_index_local = "
        "(SELECT max(next_index_local) FROM channels)"
    )
    assert "next_index_local" in _names(behind(router, older))


def test_invoices_may_be_deleted_but_not_changed() -> None:
    changes = captured.changes(captured.COMMITTED / "small" / "payee.jsonl.xz")
    *_, (_, payee) = states(changes, 440)
    assert payee.execute("SELECT count(*) FROM invoices WHERE state = 1").fetchall() > [(1,)]
    for statement, names in (
        ("DELETE FROM invoices WHERE id < 5", []),
        ("UPDATE invoices SET description = NULL, updated_index = 1000", []),
        ("UPDATE invoices SET payment_hash = x'00' WHERE id = 3", ["invoices"]),
        (
            "UPDATE invoices SET state = 0, pay_index = NULL, paid_timestamp = NULL WHERE id = 3",
            ["paid"],
        ),
    ):
        other = copied(payee)
        other.execute(statement)
        assert _names(behind(payee, other)) == names, statement
    # Before release 23.08 the id of a deleted invoice was used again.
    payee.execute("DELETE FROM vars WHERE name = 'last_invoices_created_index'")
    other = copied(payee)
    other.execute("UPDATE invoices SET payment_hash = x'00' WHERE id = 3")
    assert behind(payee, other) == ()


def test_doubled_moves_that_a_migration_removed_descend(router: apsw.Connection) -> None:
    other = copied(router)
    other.execute("DELETE FROM chain_moves WHERE id = 3")
    assert _names(behind(router, other)) == ["rows"]
    other.execute("UPDATE version SET version = version + 1")
    assert behind(router, other) == ()
    other.execute("UPDATE chain_moves SET output_sat = output_sat + 1 WHERE id = 4")
    assert _names(behind(router, other)) == ["rows"]


def test_variables_of_old_releases_are_text(router: apsw.Connection) -> None:
    router.execute("UPDATE vars SET val = '12', intval = NULL WHERE name = 'next_pay_index'")
    router.execute("INSERT INTO vars (name, intval) VALUES ('last_invoice_created_index', 5)")
    other = copied(router)
    # A migration renames the variable with the typing error.
    other.execute("DELETE FROM vars WHERE name = 'last_invoice_created_index'")
    other.execute("UPDATE vars SET intval = 12 WHERE name = 'next_pay_index'")
    assert behind(router, other) == ()
    other.execute("UPDATE vars SET intval = 11 WHERE name = 'next_pay_index'")
    assert behind(router, other) == (Behind("next_pay_index", 11, 12),)


def test_nothing_is_compared_with_an_empty_database() -> None:
    """A backup that is empty, or of a node that has no tables yet."""
    empty = apsw.Connection(":memory:")
    assert behind(empty, empty) == ()
