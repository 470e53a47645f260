"""The node never runs on without its backup: worker, guard and both are killed."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.plugin.home import CAPTURES, Home, processes_of
from tests.waiting import has_ended, wait_until, wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_FATAL = "returned failed db_write"


def _require_nothing_unprotected(home: Home, report: dict[str, object]) -> None:
    assert report["unprotected_commits"] == 0
    status = home.cli("status", "--json", home.url)
    assert f'"version": {report["data_version"]}' in status or (
        # one change may be answered and not committed
        f'"version": {int(str(report["data_version"])) + 1}' in status
    )


@pytest.mark.parametrize("important", [True, False])
@pytest.mark.parametrize("when", ["", ":when=sent", ":when=sent,delay-ms=1"])
def test_killed_worker_halts_the_node(tmp_path: Path, important: bool, when: str) -> None:
    home = Home(tmp_path)
    home.init()
    report = home.run(*_ROUTER, "--crash", f"kill-plugin@70{when}", important=important, code=None)
    _require_nothing_unprotected(home, report)
    assert report["data_version"] < 200
    home.run(*_ROUTER, "--calls", "50", important=important)
    home.require_same(home.database)


@pytest.mark.parametrize(("important", "seed"), [(seed % 2 == 0, seed) for seed in range(6)])
def test_worker_killed_at_any_moment_under_load(tmp_path: Path, important: bool, seed: int) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start("--generate", "4000", important=important)
    worker, _ = processes_of(node.pid)
    home.wait_for_calls(20)
    time.sleep(0.0371 * seed)
    os.kill(worker, signal.SIGKILL)
    report = home.end(node, code=None)
    assert node.returncode != 0
    _require_nothing_unprotected(home, report)


def test_worker_killed_while_idle_is_told_and_halts_at_the_next_write(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--rate", "2", "--before-init", "1", important=False)
    worker, _ = processes_of(node.pid)
    home.wait_for_calls(1)
    os.kill(worker, signal.SIGKILL)
    report = home.end(node, code=None)
    assert _FATAL in home.stderr
    assert "the node is halted" in home.log().lower()
    _require_nothing_unprotected(home, report)


def test_killed_guard_comes_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--rate", "400", important=False)
    worker, guard = processes_of(node.pid)
    home.wait_for_calls(50)
    os.kill(guard, signal.SIGKILL)
    home.wait_for_calls(150)
    _, second = processes_of(node.pid)
    assert second != guard
    assert "guard process was killed" in home.log()
    os.kill(worker, signal.SIGKILL)
    report = home.end(node, code=None)
    _require_nothing_unprotected(home, report)


def test_both_killed_stops_a_node_that_has_the_plugin_as_important(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--rate", "400")
    worker, guard = processes_of(node.pid)
    home.wait_for_calls(50)
    os.kill(worker, signal.SIGSTOP)  # so that no second guard comes between
    os.kill(guard, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    report = home.end(node, code=None)
    assert report["data_version"] < 800
    _require_nothing_unprotected(home, report)


def test_the_lock_dies_with_the_worker_and_not_with_its_guards(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--hold", "--calls", "50", important=False)
    worker, guard = processes_of(node.pid)
    home.wait_for_calls(50)
    assert f"process {worker}" in home.cli("compact", home.url, code=7)
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: processes_of(node.pid)[1] != guard, "no second guard")
    second = processes_of(node.pid)[1]
    os.kill(worker, signal.SIGKILL)
    wait_until_ended(worker)
    assert not has_ended(second)
    home.cli("compact", home.url)
    node.kill()
    node.communicate()


def test_signals_do_not_take_the_backup_from_a_running_node(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.init()
    node = home.start(*_ROUTER, "--rate", "400", important=False)
    worker, guard = processes_of(node.pid)
    home.wait_for_calls(50)
    for pid in (worker, guard):
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, name)
    report = home.end(node)
    assert report["unprotected_commits"] == 0
    home.require_same(home.database)
