"""The follower beside a simulated node: it proves the backup, and the node does not notice it."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import open_reader
from cln_backup.node.settings import read_state
from cln_backup.operations.proven import opened_when_free
from tests.histories import assert_same_database
from tests.plugin.home import CAPTURES, Home
from tests.waiting import WAIT_S, wait_for, wait_for_process_in, wait_until, wait_until_ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _status(home: Home, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The node's `backup-status`, as soon as it is as wanted."""
    return wait_for(lambda: home.call("backup-status"), wanted, home.log, pause_s=0.1)


def _is_proven(status: dict[str, Any]) -> bool:
    return bool(status.get("proven_version") == status.get("version"))


def _follower_of(home: Home) -> int:
    """The process id of the follower."""
    return wait_for_process_in(home.directory, "cln_backup.follower.process")


def _require_replica_of(home: Home, directory: Path) -> None:
    """Compares the replica, brought to the head, with the node's database."""
    replica = opened_when_free(str(directory), WAIT_S)
    with open_reader(home.url) as reader:
        replica.catch_up(reader)
    found = bytearray(replica.connection.serialize("main"))
    found[18:20] = b"\x01\x01"
    replica.close()
    path = home.base / "replica.sqlite3"
    path.write_bytes(found)
    assert_same_database(path, home.database)


def test_replica_is_the_nodes_database(home: Home) -> None:
    """Through a crash, a compaction and a restart, and with what comes at the shutdown."""
    home.follows = True
    home.init()
    home.run(*_ROUTER, "--calls", "300", "--crash", "after-answer@299", code=None)
    node = home.start(*_ROUTER, "--variant", "--calls", "150", "--hold")
    status = _status(home, _is_proven)
    assert status["follower"] == "following"
    assert status["proof_lag_s"] == 0.0
    assert status["alarm"] is None
    home.call("backup-compact", {"force": True})
    home.call("stop")
    home.end(node)
    directory = home.directory / "backup.replica"
    assert status["replica_dir"] == str(directory)
    assert read_state(str(home.directory)).replica_dir == str(directory)
    node = home.start(*_ROUTER, "--calls", "60", "--late-writes", "3", "--hold")
    home.wait_for_calls(1)
    _status(home, _is_proven)
    home.call("stop")
    home.end(node)
    _require_replica_of(home, directory)


def test_killed_and_stopped_followers_delay_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    node = home.start(*_ROUTER, "--calls", "700", "--rate", "200", "--hold")
    home.wait_for_calls(50)
    os.kill(_follower_of(home), signal.SIGKILL)
    status = _status(home, lambda found: str(found["follower"]).startswith("waiting"))
    assert status["protected"] is True
    home.wait_for_calls(300)
    _status(home, lambda found: found["follower"] == "following")
    second = _follower_of(home)
    os.kill(second, signal.SIGSTOP)
    home.wait_for_calls(700)
    home.call("stop")
    home.end(node)
    assert "It starts again in" in home.log()
    wait_until_ended(second)  # it does not stay as it was stopped
    _require_replica_of(home, home.directory / "backup.replica")


def test_switched_off_and_moved(tmp_path: Path) -> None:
    home = Home(tmp_path, "file", follows=True)
    home.init()
    first, second = home.directory / "backup.replica", tmp_path / "elsewhere"

    def replica_dir() -> str | None:
        return read_state(str(home.directory)).replica_dir

    def lives(*options: str, leaves: Path | None = None) -> dict[str, Any]:
        node = home.start(*_ROUTER, "--calls", "30", "--hold", *options)
        status = _status(
            home, lambda found: found["protected"] and (_is_proven(found) or not home.follows)
        )
        noted = status["replica_dir"]
        wait_until(lambda: leaves is None or not leaves.exists(), f"{leaves} stays")
        wait_until(lambda: replica_dir() == noted, replica_dir)
        home.call("stop")
        home.end(node)
        return status

    lives()
    assert first.is_dir()
    status = lives("--option", f"backup-replica-dir={second}", leaves=first)
    assert status["replica_dir"] == str(second)
    assert second.is_dir()
    home.follows = False
    status = lives(leaves=second)
    assert (status["follower"], status["proven_version"]) == ("off", None)


def test_never_beside_an_encrypted_backup(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir-encrypted", follows=True)
    home.init()
    directory = home.backup / "replica"
    node = home.start(
        *(*_ROUTER, "--calls", "30", "--hold", "--option", f"backup-replica-dir={directory}")
    )
    status = _status(home, lambda found: found["protected"] is True)
    assert status["follower"] == "off"
    home.call("stop")
    home.end(node)
    assert "The backup is not followed" in home.log()
    assert not directory.exists()


def test_alarm_is_told_once_and_remembered(tmp_path: Path) -> None:
    home = Home(tmp_path, "file", follows=True)
    home.init()
    node = home.start(*_ROUTER, "--calls", "400", "--rate", "50", "--hold")
    follower = _follower_of(home)
    os.kill(follower, signal.SIGSTOP)
    read_bytes = home.backup.stat().st_size
    home.wait_for_calls(400)
    content = home.backup.read_bytes()
    at = content.rindex(b"UPDATE channels", read_bytes, len(content) - 20_000)
    with home.backup.open("r+b") as file:
        file.seek(at)
        file.write(b"UPDATE chanXels")
    os.kill(follower, signal.SIGCONT)
    status = _status(home, lambda found: found["alarm"] is not None)
    assert status["protected"] is True
    assert status["alarm"]["kind"] == "replay"
    assert status["proven_version"] < status["version"]
    time.sleep(2)
    home.call("stop")
    home.end(node)
    assert home.log().count("The backup has a fault") == 1
    assert "BROKEN" in next(line for line in home.log().splitlines() if "has a fault" in line)
    assert "hasn't declared" not in home.log()
    state = json.loads((home.directory / "backup.state").read_text())
    assert state["alarm"] == status["alarm"]


@pytest.mark.parametrize("value", ["yes", ""])
def test_wrong_value_follows(value: str, tmp_path: Path) -> None:
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    node = home.start(*_ROUTER, "--calls", "30", "--hold", "--option", f"backup-follower={value}")
    _status(home, _is_proven)
    home.call("stop")
    home.end(node)
    assert ("must be on or off" in home.log()) is bool(value)
