"""A start that heals, and everything that can be killed while it does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.operations.proven import opened_when_free
from tests import programs
from tests.plugin.home import CAPTURES, ROOT, Home, processes_of
from tests.waiting import WAIT_S, wait_for_process_in, wait_until, wait_until_ended

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_HEALED = "Backup healed by a snapshot"


def _with_gap(base: Path, kind: str) -> Home:
    home = Home(base, kind, follows=True)
    home.init()
    home.run(*_ROUTER, "--calls", "60")
    with programs.start(
        *("simulator", str(home.directory), *_ROUTER, "--until", "80"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    ) as node:
        node.communicate()
    return home


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _until_copied(home: Home) -> None:
    """Waits until the replica has been copied, and the copy is perhaps complete."""
    wait_until(
        lambda: list(home.directory.glob(".take-snapshot-*/snapshot.sqlite3")),
        "no snapshot is prepared",
        pause_s=0.005,
    )


@pytest.mark.parametrize(
    ("victim", "step"),
    [("child", "replica"), ("worker", "copied"), ("node", "copied")],
)
def test_killed_while_the_snapshot_is_prepared(victim: str, step: str, tmp_path: Path) -> None:
    """The child waits, because the test holds the replica; the copy may be complete by then."""
    home = _with_gap(tmp_path, "dir" if step == "copied" else "file")
    before = home.stored()
    replica = opened_when_free(str(home.directory / "backup.replica"), WAIT_S)
    node = home.start(*_ROUTER, "--calls", "5")
    worker, _guard = processes_of(node.pid)
    child = wait_for_process_in(home.directory, "plugin.start.preparing")
    if step == "copied":
        _until_copied(home)
    _kill({"child": child, "worker": worker, "node": node.pid}[victim])
    replica.close()
    home.end(node, code=None)
    wait_until_ended(child)
    if victim == "child":
        assert "ended unexpectedly (SIGKILL" in home.log()
        assert "backup-cli snapshot" in home.log()
        assert home.stored() == before
    home.run(*_ROUTER, "--calls", "10")
    if victim != "node":  # otherwise the child may have been faster
        assert _HEALED in home.log()
    home.require_same(home.database)
    assert not list(home.directory.glob(".take-snapshot-*"))


@pytest.mark.parametrize(("kind", "after_s"), [("file", 0.0), ("dir-encrypted", 0.02)])
def test_killed_about_the_append(kind: str, after_s: float, tmp_path: Path) -> None:
    """Worker and node at once, some time after the copy was there: before, in or after it."""
    home = _with_gap(tmp_path, kind)
    node = home.start(*_ROUTER, "--calls", "5", "--rate", "5")
    _until_copied(home)
    worker, guard = processes_of(node.pid)
    time.sleep(after_s)
    for pid in (worker, guard, node.pid):
        _kill(pid)
    home.end(node, code=None)
    home.run(*_ROUTER, "--calls", "10")
    home.require_same(home.database)
    assert "BROKEN" not in home.log()
