"""A roll forward that is killed, at each step and at each of SQLite's writes, and done again."""

from __future__ import annotations

import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.operations.rollforward import roll_forward
from simulator.content import differences
from tests import programs
from tests.disasters.power_loss import copies, lose_power
from tests.histories import OFF, ON, payment, payments, rider, started_node, transaction
from tests.operations.test_rollforward import Stopped
from tests.plugin.home import Home
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path

_PART = 1 if SOAK else 19
"""Of these many steps, one is tried."""


class Tries:
    """A home after a loss of power, which is put back before each try."""

    def __init__(self, base: Path, kind: str, missing: int) -> None:
        self.home = Home(base / "home", kind)
        self.home.init()
        lose_power(self.home, missing)
        (self.home.directory / "lightning-rpc").unlink()
        self._master = base / "master"
        shutil.copytree(self.home.base, self._master)
        self.expected = self.home.restored()
        shutil.move(self.expected, base / "expected.sqlite3")
        self.expected = base / "expected.sqlite3"

    def again(self) -> None:
        shutil.rmtree(self.home.base)
        shutil.copytree(self._master, self.home.base)

    def killed_at(self, number: int) -> str:
        """Rolls forward and is killed before this step; says which it was, or `done`."""
        return _steps(self.home.directory, number)[-1]

    def require_same(self, label: str) -> None:
        assert differences(self.home.database, self.expected) == [], f"killed at {label!r}"


def _steps(directory: Path, fatal: int = 0) -> list[str]:
    """Rolls forward and is killed before the step of this number; says what it did."""
    arguments = ("tests.disasters.rollforward_victim", directory, fatal)
    with programs.start(*arguments, stdout=subprocess.PIPE, text=True) as victim:
        labels = str(victim.communicate()[0]).splitlines()
    assert victim.returncode == (0 if labels[-1] == "done" else -signal.SIGKILL), labels
    return labels


@pytest.fixture
def tries(kind: str, missing: int, memory_path: Path) -> Tries:
    return Tries(memory_path, kind, missing)


@pytest.mark.parametrize(("kind", "missing"), [("dir", 2), ("file", 1)])
def test_killed_at_each_step_and_done_again(tries: Tries, kind: str) -> None:
    steps = _steps(tries.home.directory)
    tries.require_same("nothing")
    assert len(steps) > 40
    touched = next(number for number, label in enumerate(steps) if label.startswith("SQLite"))
    assert steps[:touched].count("write_file: write backup.rollforward") == 2, "copy and marker"
    assert {"SQLite deletes -journal", "sync: keep a copy of the database"} <= set(steps)
    labels = []
    for number in range(1 if kind == "dir" else 4, len(steps), _PART):
        tries.again()
        labels.append(tries.killed_at(number))
        if number % 2:  # killed twice, at the same place or a little later
            labels.append(tries.killed_at(number))
        roll_forward(str(tries.home.directory))
        tries.require_same(labels[-1])
        assert len(copies(tries.home)) == 1
        kept = copies(tries.home)[0]
        assert (kept / "lightningd.sqlite3-journal").exists()
        assert not (tries.home.directory / "backup.rollforward").exists()
    assert len(set(labels)) > 2


def test_killed_in_a_large_change_and_done_again(memory_path: Path) -> None:
    """SQLite writes to the database long before the commit, when its cache is full."""
    rows = 100_000 if SOAK else 8_000
    insert = "INSERT INTO payments (version, description) VALUES"
    large = [f"{insert} ({10 + number}, '{number:0500}')" for number in range(rows)]
    changes = [*started_node(), payment(4), transaction(5, *large)]
    node = Stopped(memory_path, changes, len(changes) - 1)
    assert _steps(node.directory, 400)[-1].startswith("SQLite writes")
    assert (node.directory / "lightningd.sqlite3-journal").stat().st_size > 512
    assert roll_forward(str(node.directory)).version_before == 4
    node.require_same()


def test_killed_between_two_pieces_and_done_again(memory_path: Path) -> None:
    """Riders need commits before them: the database may be left at a version in between."""
    changes = [*started_node(), *payments(4, 8), rider(7, OFF), payment(8), rider(8, ON)]
    changes += [payment(9), rider(9, OFF), payment(10), rider(10, ON)]
    versions = set()
    number = 3
    while True:
        base = memory_path / str(number)
        base.mkdir()
        node = Stopped(base, changes, 9)
        labels = _steps(node.directory, number)
        done = roll_forward(str(node.directory))
        versions.add(done.version_before)
        node.require_same()
        if labels[-1] == "done":
            break
        assert len(list(node.directory.glob("*.before-rollforward-*"))) == 1
        number += 1 if SOAK else 9
    assert versions == {7, 8, 9, 10} if SOAK else {7, 10} <= versions
