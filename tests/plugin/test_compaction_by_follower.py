"""Compactions of a running node: its follower prepares them, or a child process does."""

from __future__ import annotations

import contextlib
import os
import signal
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from simulator import client
from tests.plugin.home import CAPTURES, Home, processes_of
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))


def _modules(node: int) -> dict[str, int]:
    """The child processes of the plugin's worker, by their modules."""
    worker, _ = processes_of(node)
    found = {}
    with open(f"/proc/{worker}/task/{worker}/children", encoding="ascii") as file:
        for pid in file.read().split():
            # One may end meanwhile.
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as command:
                found[command.read().rstrip(b"\0").rpartition(b"\0")[2].decode()] = int(pid)
    return found


def _follower(home: Home, node: int) -> int:
    wait_until(
        lambda: home.call("backup-status")["follower"] == "following", home.log, pause_s=0.05
    )
    return _modules(node)["cln_backup.follower.process"]


def _is_proven(home: Home) -> bool:
    status = home.call("backup-status")
    return bool(status["proven_version"] == status["version"])


def _force(home: Home) -> Any:
    return client.call(home.directory, "backup-compact", {"force": True}, timeout_s=None)


@pytest.mark.parametrize("kind", ["file", "dir-encrypted"])
def test_follower_makes_the_base_and_goes_on(home: Home) -> None:
    home.follows = True
    home.init()
    node = home.start(*_ROUTER, "--calls", "400", "--rate", "300", "--hold")
    follower = _follower(home, node.pid)
    for calls in (100, 200, 400):
        home.wait_for_calls(calls)
        statistics = _force(home)
        assert "cln_backup.compaction.process" not in _modules(node.pid)
    assert statistics["after"]["version_count"] == 2
    wait_until(lambda: _is_proven(home), home.log, pause_s=0.05)
    assert _follower(home, node.pid) == follower
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


def test_child_process_does_it_without_a_follower(tmp_path: Path) -> None:
    home = Home(tmp_path, "dir")
    home.init()
    node = home.start(*_ROUTER, "--calls", "100", "--hold")
    home.wait_for_calls(100)
    assert _force(home)["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)


class _Asking:
    """A request for a compaction, which runs when this is made."""

    def __init__(self, home: Home) -> None:
        self.answer: Any = None
        self._thread = Thread(target=self._ask, args=(home,))
        self._thread.start()
        wait_until(lambda: home.call("backup-status")["compacting"], home.log)

    def _ask(self, home: Home) -> None:
        with contextlib.suppress(OSError):  # the node has ended
            force = {"force": True}
            self.answer = client.call(home.directory, "backup-compact", force, timeout_s=None)

    def end(self) -> Any:
        self._thread.join()
        return self.answer


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_follower_that_ends_in_the_middle_is_replaced(tmp_path: Path, how: int) -> None:
    """Stopped first: then it cannot be done before it is killed."""
    home = Home(tmp_path, "dir", follows=True)
    home.init()
    node = home.start("--generate", "60", "--database-mb", "1", "--hold")
    home.wait_for_calls(60)
    follower = _follower(home, node.pid)
    os.kill(follower, signal.SIGSTOP)
    asking = _Asking(home)
    os.kill(follower, signal.SIGCONT if how == signal.SIGSTOP else signal.SIGKILL)
    assert asking.end()["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)
    assert not list(home.base.rglob("*compact*"))


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_node_that_shuts_down_in_the_middle(kind: str, tmp_path: Path) -> None:
    home = Home(tmp_path, kind, follows=True)
    home.init()
    node = home.start(*_ROUTER, "--calls", "60", "--hold")
    home.wait_for_calls(60)
    os.kill(_follower(home, node.pid), signal.SIGSTOP)  # then it cannot be done before
    asking = _Asking(home)
    home.call("stop")
    home.end(node)
    assert asking.end() is None
    assert "Compaction finished" not in home.log()
    node = home.start(*_ROUTER, "--calls", "40", "--hold")
    home.wait_for_calls(100)
    _follower(home, node.pid)
    assert _force(home)["after"]["version_count"] == 2
    home.call("stop")
    home.end(node)
    home.require_same(home.database)
    assert not list(home.base.rglob("*compact*"))
