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
from tests.histories import payment, started_node, transaction
from tests.operations.test_rollforward import Stopped
from tests.plugin.home import Home
from tests.soak import SOAK

if TYPE_CHECKING:
    from pathlib import Path

_PART = 1 if SOAK else 11
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
        """Rolls forward and is killed before this step; says the step, or `done`."""
        arguments = ("tests.disasters.rollforward_victim", self.home.directory, number)
        with programs.start(*arguments, stdout=subprocess.PIPE, text=True) as victim:
            label = str(victim.communicate()[0]).strip()
        done = label.startswith("done")
        assert victim.returncode == (0 if done else -signal.SIGKILL), label
        return label

    def require_same(self, label: str) -> None:
        assert differences(self.home.database, self.expected) == [], f"killed at {label!r}"


@pytest.fixture
def tries(kind: str, missing: int, memory_path: Path) -> Tries:
    return Tries(memory_path, kind, missing)


@pytest.mark.parametrize(("kind", "missing"), [("dir", 2), ("file", 1)])
def test_killed_at_each_step_and_done_again(tries: Tries, kind: str) -> None:
    steps = int(tries.killed_at(0).partition(" ")[2])
    tries.require_same("nothing")
    assert steps > 40
    labels = []
    for number in range(1 if kind == "dir" else 4, steps + 1, _PART):
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
    said = " ".join(labels)
    assert "SQLite" in said
    assert "keep a copy" in said


def test_killed_in_a_large_change_and_done_again(memory_path: Path) -> None:
    """SQLite writes to the database long before the commit, when its cache is full."""
    rows = 100_000 if SOAK else 10_000
    insert = "INSERT INTO payments (version, description) VALUES"
    large = [f"{insert} ({10 + number}, '{number:0500}')" for number in range(rows)]
    changes = [*started_node(), payment(4), transaction(5, *large)]
    node = Stopped(memory_path, changes, len(changes) - 1)
    arguments = ("tests.disasters.rollforward_victim", node.directory)
    with programs.start(*arguments, 400, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.communicate()[0].startswith("SQLite writes")
    assert (node.directory / "lightningd.sqlite3-journal").stat().st_size > 512
    assert roll_forward(str(node.directory)).version_before == 4
    node.require_same()
