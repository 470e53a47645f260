"""The reasons to stop a node, and the words that an operator finds in the log."""

from __future__ import annotations

import json
import shutil
import subprocess
from shlex import quote
from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.histories import payment, started_node, told, told_by
from tests.plugin.home import CAPTURES, ROOT, Home
from tests.small_disk import fill, small_disk
from tests.soak import kinds_of
from tests.socket.test_plugin import Node

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _grow(home: Home, calls: int = 60) -> None:
    home.init()
    home.run(*_ROUTER, "--calls", str(calls))


def _refused(home: Home, phrase: str, *arguments: str) -> str:
    """Runs a node that must not come up; nothing of its database or its backup may change."""
    before = home.stored()
    report = home.run(*_ROUTER, *arguments, code=None)
    assert report["committed"] == 0
    assert "failed db_write" in home.stderr
    assert home.stored() == before
    lines = [line for line in home.log().splitlines() if "BROKEN" in line]
    assert phrase in lines[0]
    return lines[0]


def test_no_backup_lock(tmp_path: Path) -> None:
    _refused(Home(tmp_path), "Could not find backup.lock in the lightning-dir")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"backend_url": 1}', "\xff"])
def test_backup_lock_that_cannot_be_understood(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    (home.directory / "backup.lock").write_text(text, encoding="latin-1")
    _refused(home, "backup.lock")


@pytest.mark.parametrize(
    ("url", "phrase"),
    [
        ("ftp://nowhere", "Unknown scheme"),
        ("file:///nowhere/backup", "There is no backup at"),
        ("file:relative", "is not absolute"),
    ],
)
def test_backup_lock_that_leads_nowhere(tmp_path: Path, url: str, phrase: str) -> None:
    home = Home(tmp_path)
    (home.directory / "backup.lock").write_text(json.dumps({"backend_url": url}))
    _refused(home, phrase)


def test_database_ahead_of_its_backup_names_the_way_out(home: Home, tmp_path: Path) -> None:
    _grow(home)
    home.set_options(on_gap="halt")
    # the node runs without its backup
    shutil.move(home.directory / "backup.lock", tmp_path / "away")
    _run_without_plugin(home, 80)
    shutil.move(tmp_path / "away", home.directory / "backup.lock")
    said = _refused(home, "Backup is out of date")
    assert f"backup-cli snapshot --lightning-dir {home.directory}" in said
    home.cli("snapshot", "--lightning-dir", str(home.directory))
    home.run(*_ROUTER, "--calls", "20")
    home.require_same(home.database)


def _run_without_plugin(home: Home, until: int) -> None:
    with programs.start(
        *("simulator", home.directory, *_ROUTER, "--until", until),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    ) as node:
        node.communicate()
    assert node.returncode == 0


def test_last_change_of_the_same_boot_is_dropped(home: Home) -> None:
    _grow(home)
    home.run(*_ROUTER, "--calls", "1", "--crash", "after-answer@60", code=None)
    home.run(*_ROUTER, "--calls", "10")
    assert "Last changes not applied" in home.log()


def test_older_database_is_refused(home: Home, tmp_path: Path) -> None:
    _grow(home)
    older = tmp_path / "older.sqlite3"
    shutil.copyfile(home.database, older)
    home.run(*_ROUTER, "--calls", "40")
    shutil.copyfile(older, home.database)
    said = _refused(home, "lost some state", "--first", "60")
    assert "backup-cli restore" in said


@pytest.mark.parametrize("behind", [1, 2])
def test_changes_lost_with_the_power_are_not_dropped(
    home: Home, tmp_path: Path, behind: int
) -> None:
    _grow(home)
    older = tmp_path / "older.sqlite3"
    shutil.copyfile(home.database, older)
    home.run(*_ROUTER, "--calls", str(behind))
    newer = tmp_path / "newer.sqlite3"
    shutil.copyfile(home.database, newer)
    shutil.copyfile(older, home.database)
    home.set_options(on_power_loss="halt")
    state = home.directory / "backup.state"
    state.write_text(json.dumps({"boot_id": "another boot", "last_compaction_at": None}))
    said = _refused(home, "lost its last changes with the power", "--first", "60")
    # what the message says to do
    for path in home.directory.glob("lightningd.sqlite3*"):
        path.unlink()
    home.cli("restore", home.url, str(home.database))
    assert f"backup-cli restore {quote(home.url)} {quote(str(home.database))}" in said
    home.require_same(newer)
    home.run(*_ROUTER, "--first", str(60 + behind), "--calls", "5")


def test_two_behind_in_the_same_boot_is_an_old_database(home: Home, tmp_path: Path) -> None:
    _grow(home)
    older = tmp_path / "older.sqlite3"
    shutil.copyfile(home.database, older)
    home.run(*_ROUTER, "--calls", "2")
    shutil.copyfile(older, home.database)
    _refused(home, "lost some state", "--first", "60")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boot_id": "another boot"}, "the machine was restarted since"),
        ({"mount": "another mount"}, "the file system of the database was remounted since"),
        ({"mount": None}, "it is unknown whether"),
        (None, "it is unknown whether"),
    ],
    ids=["boot", "mount", "older release", "no file"],
)
def test_last_change_is_dropped_only_on_storage_that_has_lost_nothing(
    tmp_path: Path, change: dict[str, object] | None, why: str
) -> None:
    home = Home(tmp_path)
    _grow(home)
    home.run(*_ROUTER, "--calls", "1", "--crash", "after-answer@60", code=None)
    path = home.directory / "backup.state"
    noted = path.read_bytes()
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(noted) | change))
    home.set_options(on_power_loss="halt")
    assert why in _refused(home, "lost its last changes with the power or the disk")
    _refused(home, "lost its last changes with the power")  # the question stays open
    path.write_bytes(noted)
    home.run(*_ROUTER, "--calls", "10")
    assert home.dropped() == ["59"]


@pytest.mark.parametrize("kind", kinds_of("file", "dir-encrypted"))
def test_second_node_on_one_backup_is_refused_and_told_who_has_it(
    home: Home, tmp_path: Path
) -> None:
    home.init()
    node = home.start(*_ROUTER, "--calls", "50", "--hold")
    home.wait_for_calls(50)
    other = Home(tmp_path / "other", home.kind)
    shutil.copy(home.directory / "backup.lock", other.directory)
    shutil.copy(home.database, other.database)
    report = other.run(*_ROUTER, "--first", "50", code=None)
    assert report["committed"] == 0
    assert "is being written by process" in other.log()
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


def test_plugin_that_is_loaded_twice_in_a_node_is_told_so(home: Home) -> None:
    """It was told that two nodes shared the backup."""
    home.init()
    one, other = Node(home.directory), Node(home.directory)  # this process plays lightningd
    change = started_node()[0]
    assert one.write(change) == {"result": "continue"}
    said = other.write(change)
    assert said["result"] == "halt"
    assert "is loaded twice in this node" in said["reason"]
    assert "two nodes" not in said["reason"]
    other.close()
    one.close()


@pytest.mark.parametrize("away", [-1, 1])
def test_call_that_does_not_follow_the_one_before_halts(tmp_path: Path, away: int) -> None:
    home = Home(tmp_path)
    home.init()
    node = Node(home.directory)
    changes = started_node()
    for change in changes:
        assert node.write(change) == {"result": "continue"}
    at = changes[-1].version
    said = node.write(payment(at + 1 + away))
    assert said["result"] == "halt"
    assert said["reason"].startswith(
        f"The node sent a change for data version {at + 1 + away}, but the backup is at {at}. "
    )
    assert node.write(payment(at + 1)) == said, "once halted, always halted"
    node.close()
    assert told_by(home.url) == told(changes)


def test_backup_of_another_node_at_the_same_version_is_refused(kind: str, tmp_path: Path) -> None:
    """Only the node's id tells them apart; its database does not change in the hook."""
    payer = ("--capture", str(CAPTURES / "small" / "payer.jsonl.xz"))
    one, other = Home(tmp_path / "one", kind), Home(tmp_path / "other", kind)
    for home, capture in ((one, _ROUTER), (other, payer)):
        home.init()
        home.run(*capture, "--until", "60")
        home.run(*capture, "--until", "61")  # a later process knows its node's id
    shutil.copy(one.directory / "backup.lock", other.directory)
    report = other.run(*payer, "--calls", "5", code=None)
    assert report["committed"] == 0
    assert "is the backup of the node" in other.log()
    assert "do not use recover or emergency.recover" in other.log(), "its database is young"
    one.run(*_ROUTER, "--until", "70")
    one.require_same(one.database)


def test_disk_full_halts_and_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    _grow(home, 300)  # the backup is larger than the database then
    limit_kib = home.backup.stat().st_size // 1024 + 20
    command = programs.installed(home.command(*_ROUTER))
    node = subprocess.run(
        ["/bin/bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "-", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert node.returncode != 0
    assert "Cannot append entry" in home.log()
    home.run(*_ROUTER, "--calls", "30")
    home.require_same(home.database)


@pytest.mark.parametrize("kind", ["dir", "dir-encrypted"])  # a file has no segments
def test_full_disk_that_has_no_room_for_a_segment_halts_and_says_so(
    home: Home, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "backup", 600):
        _grow(home)
        other = fill(home.backup)
        _refused(home, "Free space")
        other.unlink()
        home.run(*_ROUTER, "--calls", "30")
        home.require_same(home.database)


def test_backup_moved_away_under_a_running_node_halts_it(home: Home, tmp_path: Path) -> None:
    home.init()
    node = home.start(*_ROUTER, "--rate", "400")
    home.wait_for_calls(50)
    home.backup.rename(tmp_path / "moved")
    report = home.end(node, code=None)
    assert report["data_version"] < 800
    assert "was moved, removed or replaced" in home.log()
    (tmp_path / "moved").rename(home.backup)
    home.run(*_ROUTER, "--calls", "30")
    home.require_same(home.database)
