"""A start that heals: gaps are closed by a snapshot, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import open_reader, open_writer
from cln_backup.model.change import Kind
from cln_backup.node.settings import Alarm, read_state, write_state
from cln_backup.operations.proven import opened_when_free
from tests import programs
from tests.histories import bump, transaction
from tests.plugin.home import CAPTURES, ROOT, Home
from tests.waiting import WAIT_S

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_HEALED = "Backup healed by a snapshot"


def _grow(home: Home, calls: int = 60) -> None:
    home.init()
    home.run(*_ROUTER, "--calls", str(calls))


def _without_plugin(home: Home, *arguments: str) -> None:
    with programs.start(
        *("simulator", str(home.directory), *_ROUTER, *arguments), cwd=ROOT, stderr=subprocess.PIPE
    ) as node:
        node.communicate()
    assert node.returncode == 0


def _kept_replica(home: Home) -> None:
    """A replica as the follower keeps it, at the head of the backup; its follower has ended."""
    place = home.directory / "backup.replica"
    replica = opened_when_free(str(place), WAIT_S)
    with open_reader(home.url) as reader:
        assert replica.catch_up(reader)
    replica.close()
    directory = str(home.directory)
    write_state(directory, read_state(directory)._replace(replica_dir=str(place)))


def _commit_unseen(database: Path, *statements: str, count: int = 1) -> None:
    """Transactions that no plugin hears of."""
    connection = sqlite3.connect(database, isolation_level=None)
    for _ in range(count):
        [(version,)] = connection.execute("SELECT intval FROM vars WHERE name = 'data_version'")
        connection.execute("BEGIN")
        for statement in (*statements, bump(version + 1)):
            connection.execute(statement)
        connection.execute("COMMIT")
    connection.close()


def _refused(home: Home, *phrases: str) -> str:
    """Runs a node that must not come up; nothing of its database or its backup may change."""
    before, database = home.stored(), home.database.read_bytes()
    report = home.run(*_ROUTER, "--calls", "5", code=None)
    assert report["committed"] == 0
    assert home.stored() == before
    assert home.database.read_bytes() == database
    [line] = [line for line in home.log().splitlines() if "BROKEN" in line][-1:]
    for phrase in phrases:
        assert phrase in line
    return line


def _snapshots(home: Home) -> int:
    with open_reader(home.url) as reader:
        return sum(change.kind is Kind.SNAPSHOT for change in reader.stream_changes())


def _version(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        [(version,)] = connection.execute("SELECT intval FROM vars WHERE name = 'data_version'")
    return int(version)


def test_gaps_are_closed_by_snapshots(home: Home) -> None:
    """The node runs without its plugin, then commits once more after its plugins have gone.

    The history before stays in the backup.
    """
    _grow(home)
    _without_plugin(home, "--until", "80")
    home.run(*_ROUTER, "--calls", "10", "--after-plugin", "1")
    home.run(*_ROUTER, "--calls", "10")
    assert home.log().count(_HEALED) == 2
    assert _snapshots(home) == 2
    assert "BROKEN" not in home.log()
    home.require_same(home.database)


@pytest.mark.parametrize(("kind", "replica"), [("file", True), ("dir-encrypted", False)])
def test_old_copy_that_overtook_the_backup_is_caught(
    kind: str, replica: bool, tmp_path: Path
) -> None:
    """An old copy is put back, and passes the backup's version by new blocks alone."""
    home = Home(tmp_path, kind, follows=True)
    _grow(home)
    shutil.copyfile(home.database, home.base / "old")
    home.run(*_ROUTER, "--calls", "120")
    version = _version(home.database)
    if replica:
        _kept_replica(home)
    shutil.copyfile(home.base / "old", home.database)
    _commit_unseen(home.database, count=version - _version(home.database) + 3)
    line = _refused(home, "Backup is out of date", "are older than in the backup")
    assert "backup-cli restore" in line
    assert "next_htlc_id of channel" in line
    directory = ("--lightning-dir", str(home.directory))
    said = home.cli("snapshot", *directory, code=13)
    assert "are older than in the backup" in said
    assert _snapshots(home) == 0
    home.cli("snapshot", *directory, "--unproven")
    home.require_same(home.database)


@pytest.mark.parametrize("lost", [False, True], ids=["same storage", "may have lost"])
def test_head_that_was_never_committed_does_not_keep_a_gap_open(lost: bool, tmp_path: Path) -> None:
    """It was answered, the node died, and then it ran on without its plugin.

    After a loss of power nobody knows that it was not committed.
    """
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "200", "--crash", "after-answer@170", code=None)
    _commit_unseen(home.database, count=3)
    if lost:
        directory = str(home.directory)
        write_state(directory, read_state(directory)._replace(boot_id="another"))
        _refused(home, "are older than in the backup")
    else:
        home.run(*_ROUTER, "--calls", "1")
        assert _HEALED in home.log()
        home.require_same(home.database)


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_other_content_at_one_version_is_caught(kind: str, tmp_path: Path) -> None:
    """The last change was answered, not committed, and one other was committed unseen.

    `lightning-downgrade` commits such a change.
    """
    home = Home(tmp_path, kind, follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "200", "--crash", "after-answer@100", code=None)
    _kept_replica(home)
    _commit_unseen(home.database, "UPDATE channels SET msatoshi_local = msatoshi_local - 1")
    line = _refused(home, "same version and different contents")
    assert "channels (" in line
    home.cli("snapshot", "--lightning-dir", str(home.directory))
    home.run(*_ROUTER, "--calls", "1")
    home.require_same(home.database)


def test_head_is_dropped_only_if_the_contents_before_it_are_equal(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "200", "--crash", "after-answer@100", code=None)
    _kept_replica(home)
    good = home.database.read_bytes()
    with contextlib.closing(sqlite3.connect(home.database)) as connection, connection:
        connection.execute("UPDATE vars SET intval = intval + 1 WHERE name = 'next_pay_index'")
    assert "vars (" in _refused(home, "same version and different contents")
    for path in home.directory.glob("lightningd.sqlite3*"):  # a journal too
        path.unlink()
    home.database.write_bytes(good)
    home.run(*_ROUTER, "--calls", "10")
    assert "Last changes not applied" in home.log()
    assert "is compared with its backup later" not in home.log()
    home.require_same(home.database)


def test_replica_that_lags_leaves_the_comparison_to_the_follower(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "60")
    _kept_replica(home)
    home.run(*_ROUTER, "--calls", "10")
    home.cli("compact", home.url)
    home.run(*_ROUTER, "--calls", "10")
    assert "is compared with its backup later, beside the running node" in home.log()


def test_alarm_is_healed_and_then_cleared(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "200", "--crash", "after-answer@100", code=None)
    _kept_replica(home)
    directory = str(home.directory)
    # with a head that must be dropped, then without
    for number, kind in enumerate(("replay", "content"), start=1):
        alarm = Alarm(kind, "The change cannot be replayed.", 0.0)
        write_state(directory, read_state(directory)._replace(alarm=alarm))
        home.run(*_ROUTER, "--calls", "15")
        assert home.log().count(_HEALED) == number
        assert read_state(directory).alarm is None
        assert _snapshots(home) == number
        home.require_same(home.database)


def test_backup_that_does_not_replay_is_healed_at_once(tmp_path: Path) -> None:
    """The start finds out by itself, from the replica; everything before that change counts."""
    home = Home(tmp_path, "file", follows=True)
    _grow(home)
    _kept_replica(home)
    version = _version(home.database)
    with open_writer(home.url) as writer:
        writer.add_change(transaction(version + 1, "INSERT INTO nothing VALUES (1)"))
    _commit_unseen(home.database)
    home.run(*_ROUTER, "--calls", "5")
    assert _HEALED in home.log()
    home.require_same(home.database)
    _kept_replica(home)
    home.run(*_ROUTER, "--calls", "5")
    assert home.log().count(_HEALED) == 1


def test_empty_database_beside_a_backup(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    _grow(home)
    before = home.stored()
    for path in home.directory.glob("lightningd.sqlite3*"):
        path.rename(tmp_path / path.name)
    report = home.run(*_ROUTER, "--calls", "5", code=None)
    assert report["committed"] == 0
    assert home.stored() == before
    assert "began with an empty database, but its backup is not empty" in home.log()


def test_gap_of_a_node_in_wal_mode_is_closed(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    _grow(home)
    _without_plugin(home, "--until", "80", "--journal-mode", "wal")
    home.run(*_ROUTER, "--calls", "10", "--journal-mode", "wal")
    assert _HEALED in home.log()
    home.require_same(home.database)


def test_transaction_that_spilled_its_cache_locks_the_database(tmp_path: Path) -> None:
    """SQLite has written a part of it to the file already: nobody else can read that.

    A gap is then closed by hand, and a comparison is left to the follower.
    """
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    grown = ("--generate", "0", "--database-mb", "48")
    home.run(*grown, "--until", "3")
    _kept_replica(home)
    home.run(*grown, "--until", "4")
    assert "is compared with its backup later" in home.log()
    _commit_unseen(home.database)
    version, before = _version(home.database), home.stored()
    home.run(*grown, "--calls", "1", code=None)
    [line] = [line for line in home.log().splitlines() if "BROKEN" in line][:1]
    assert "Backup is out of date" in line
    assert "locked" in line
    assert f"backup-cli snapshot --lightning-dir {home.directory}" in line
    assert home.stored() == before
    home.cli("snapshot", "--lightning-dir", str(home.directory))
    home.run(*grown, "--calls", "1")
    assert _version(home.database) == version + 1
    home.require_same(home.database)
