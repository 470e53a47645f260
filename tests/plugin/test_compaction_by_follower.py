"""Compactions of a running node: its follower prepares them, or a child process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from tests import programs
from tests.plugin.home import CAPTURES, WAIT_S, Home, processes_of

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _modules(node: int) -> dict[str, int]:
    """The child processes of the plugin's worker, by their modules."""
    worker, _ = processes_of(node)
    found = {}
    with open(f"/proc/{worker}/task/{worker}/children", encoding="ascii") as file:
        for pid in file.read().split():
            with open(f"/proc/{pid}/cmdline", "rb") as command:
                found[command.read().rstrip(b"\0").rpartition(b"\0")[2].decode()] = int(pid)
    return found


def _follower(home: Home, node: int) -> int:
    while home.call("backup-status")["follower"] != "following":
        pass
    return _modules(node)["cln_backup.follower.process"]


def _force(home: Home) -> Any:
    return home.call("backup-compact", {"force": True})


def test_follower_makes_the_base_and_goes_on(home: Home) -> None:
    home.init()
    node = home.start(*_ROUTER, "--calls", "400", "--rate", "300", "--hold")
    follower = _follower(home, node.pid)
    for calls in (100, 200, 400):
        home.wait_for_calls(calls)
        statistics = _force(home)
        assert "cln_backup.compaction.process" not in _modules(node.pid)
    assert statistics["after"]["version_count"] == 2
    while home.call("backup-status")["proven_version"] != home.call("backup-status")["version"]:
        pass
    assert _follower(home, node.pid) == follower
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


def test_child_process_does_it_without_a_follower(home: Home) -> None:
    home.init()
    off = ("--option", "backup-follower=off")
    node = home.start(*_ROUTER, "--calls", "100", "--hold", *off)
    home.wait_for_calls(100)
    assert _force(home)["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_follower_that_ends_in_the_middle_is_replaced(home: Home, how: int) -> None:
    """Stopped first: then it cannot be done before it is killed."""
    home.init()
    node = home.start("--generate", "60", "--database-mb", "1", "--hold")
    home.wait_for_calls(60)
    follower = _follower(home, node.pid)
    os.kill(follower, signal.SIGSTOP)
    asking = programs.start(
        *("simulator.client", home.directory, "backup-compact", '{"force": true}'),
        stdout=subprocess.PIPE,
    )
    while not home.call("backup-status")["compacting"]:
        pass
    os.kill(follower, signal.SIGCONT if how == signal.SIGSTOP else signal.SIGKILL)
    answer, _ = asking.communicate(timeout=WAIT_S)
    assert json.loads(answer)["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)
    assert not list(home.base.rglob("*compact*"))
