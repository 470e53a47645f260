"""A start that heals, and everything that can be killed while it does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.operations.proven import opened_when_free
from tests import programs
from tests.plugin.home import CAPTURES, ROOT, WAIT_S, Home, processes_of

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_HEALED = "Backup healed by a snapshot"


def _with_gap(base: Path, kind: str) -> Home:
    home = Home(base, kind)
    home.init()
    home.run(*_ROUTER, "--calls", "60")
    with programs.start(
        *("simulator", str(home.directory), *_ROUTER, "--until", "80"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    ) as node:
        node.communicate()
    return home


def _preparing(worker: int) -> int:
    """The process id of the child that prepares the snapshot."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"plugin.start.preparing" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        time.sleep(0.005)
    raise AssertionError("no snapshot is prepared")


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


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
    child = _preparing(worker)
    if step == "copied":
        _until(lambda: list(home.directory.glob(".take-snapshot-*/snapshot.sqlite3")))
    _kill({"child": child, "worker": worker, "node": node.pid}[victim])
    replica.close()
    home.end(node, code=None)
    _until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))
    if victim == "child":
        assert "ended unexpectedly (SIGKILL" in home.log()
        assert "backup-cli snapshot" in home.log()
        assert home.stored() == before
    home.run(*_ROUTER, "--calls", "10")
    if victim != "node":  # otherwise the child may have been faster
        assert _HEALED in home.log()
    home.require_same(home.database)
    assert not list(home.directory.glob(".take-snapshot-*"))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(("kind", "after_s"), [("file", 0.0), ("dir-encrypted", 0.02)])
def test_killed_about_the_append(kind: str, after_s: float, tmp_path: Path) -> None:
    """Worker and node at once, some time after the copy was there: before, in or after it."""
    home = _with_gap(tmp_path, kind)
    node = home.start(*_ROUTER, "--calls", "5", "--rate", "5")
    _until(lambda: list(home.directory.glob(".take-snapshot-*/snapshot.sqlite3")))
    worker, guard = processes_of(node.pid)
    time.sleep(after_s)
    for pid in (worker, guard, node.pid):
        _kill(pid)
    home.end(node, code=None)
    home.run(*_ROUTER, "--calls", "10")
    home.require_same(home.database)
    assert "BROKEN" not in home.log()
