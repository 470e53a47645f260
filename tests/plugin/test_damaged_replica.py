"""A damaged replica, and another program's table, stop no healthy node."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import place_at
from cln_backup.model.change import Kind
from cln_backup.model.continuity import Facts
from cln_backup.node.settings import read_settings
from cln_backup.plugin.start import comparing
from cln_backup.plugin.start.aside import aside
from cln_backup.plugin.start.comparing import Say, compare_before_answer
from cln_backup.plugin.start.facts import look_at_node
from tests.histories import database
from tests.plugin.home import CAPTURES, Home
from tests.plugin.test_healing import _commit_unseen, _grow, _kept_replica, _refused

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_DAMAGED = "The follower's replica in {}/backup.replica was damaged"


def _flip(home: Home, statement: str) -> None:
    """What a flipped bit may do to a row: SQLite's integrity check does not find it."""
    path = home.directory / "backup.replica" / "replica.sqlite3"
    with database(path) as connection:
        connection.execute(statement)


def test_damaged_replica_does_not_stop_the_node(home: Home) -> None:
    _grow(home, 200)
    _kept_replica(home)
    _flip(home, "UPDATE channels SET msatoshi_local = msatoshi_local + 1")
    home.run(*_ROUTER, "--calls", "3")
    assert _DAMAGED.format(home.directory) in home.log()
    assert "Backup healed" not in home.log()
    assert "BROKEN" not in home.log()
    _kept_replica(home)
    home.run(*_ROUTER, "--calls", "3")
    assert home.log().count("was damaged") == 1
    home.require_same(home.database)
    assert not list(home.directory.glob(".verify-*"))


def test_damaged_replica_does_not_keep_a_gap_open(tmp_path: Path) -> None:
    """It says that a counter of the database is behind; a fresh replay does not."""
    home = Home(tmp_path, "dir")
    _grow(home, 200)
    _kept_replica(home)
    _flip(home, "UPDATE channels SET next_htlc_id = next_htlc_id + 64")
    _commit_unseen(home.database)
    home.run(*_ROUTER, "--calls", "3")
    assert "Backup healed by a snapshot" in home.log()
    assert "BROKEN" not in home.log()
    home.require_same(home.database)


@pytest.mark.parametrize("works_in_fork", [True, False])
def test_difference_counts_if_the_backup_cannot_be_replayed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works_in_fork: bool
) -> None:
    """The safe side, with the reason. A place whose library has threads gets a new process."""
    home = Home(tmp_path, "dir")
    _grow(home, 200)
    _kept_replica(home)
    _flip(home, "UPDATE channels SET msatoshi_local = msatoshi_local + 1")
    directory, lines = str(home.directory), list[str]()
    monkeypatch.chdir(directory)
    node = look_at_node(directory, read_settings(directory), lines.append)
    place, say = place_at(home.url), Say(lines.append, lines.append)
    monkeypatch.setattr(type(place), "works_in_fork", works_in_fork)
    monkeypatch.setattr(comparing, "COMPARE_S", 60.0)
    with place.open_reader() as reader:
        facts = Facts(reader.version + 1, False, reader.standing.head, None)
    assert facts.head is not None
    assert facts.head.kind is Kind.TRANSACTION
    found = compare_before_answer(node, facts, place, say, 0.0)
    assert found.differences.startswith("channels (")
    assert "could not be replayed again (It takes longer than the node can wait.)" in (
        found.differences
    )
    assert compare_before_answer(node, facts, place, say, None) == ("", "")


def test_only_lightningds_own_tables_stop_the_node(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    _grow(home, 200)
    with database(home.database) as connection:
        connection.execute("CREATE TABLE notes (text)")
        connection.execute("INSERT INTO notes VALUES ('of another program')")
    _kept_replica(home)
    node = home.start(*_ROUTER, "--calls", "3", "--hold")
    while (status := home.call("backup-status"))["database_compared_at"] is None:
        time.sleep(0.1)
    assert status["alarm"] is None
    home.call("stop")
    home.end(node)
    assert "tables of another program, or lost such: notes: the table is missing" in home.log()
    assert "BROKEN" not in home.log()
    with database(home.database) as connection:
        connection.execute("DROP TABLE offers")
    _refused(home, "different contents")
    assert "They differ in offers (the table is missing in the database)." in home.log()


def test_difference_in_the_schemas_number_stops_the_node(tmp_path: Path) -> None:
    """A migration, or lightning-downgrade, without the plugin."""
    home = Home(tmp_path, "file")
    _grow(home, 200)
    _kept_replica(home)
    with database(home.database) as connection:
        connection.execute("UPDATE version SET version = version - 1")
    _refused(home, "different contents")
    assert "They differ in version (1 row" in home.log()


def _never() -> bytes:
    while True:
        time.sleep(1)


def _crash() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("SELECT * FROM nothing")
    return b""


@pytest.mark.parametrize(
    ("work", "limit_s", "says"), [(_never, 0.1, "takes longer"), (_crash, 60.0, "unexpectedly")]
)
def test_work_aside_ends_in_time_whatever_it_does(work: object, limit_s: float, says: str) -> None:
    with pytest.raises(Exception, match=says):
        aside(work, time.monotonic() + limit_s)  # type: ignore[arg-type]
    assert aside(lambda: b"x" * 300_000, time.monotonic() + 60) == b"x" * 300_000
