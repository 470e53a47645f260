"""The process that waits for the end of its node, and then rolls the database forward."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cln_backup.node.rollforward_marker import Marker, read_marker, write_marker
from cln_backup.plugin.rollforward_process import MODULE, Begin
from cln_backup.process.channel import Message
from cln_backup.process.child import Child
from tests.histories import payments, started_node
from tests.operations.test_rollforward import Stopped
from tests.waiting import WAIT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHANGES = [*started_node(), *payments(4, 12)]


class _Node(Stopped):
    """A node that was halted, with the request to roll its database forward."""

    def __init__(self, base: Path, missing: int = 1) -> None:
        super().__init__(base, _CHANGES, len(_CHANGES) - missing)
        write_marker(str(self.directory), Marker(str(self.database), str(self.pid_file)))

    def process(self, wait_s: float = WAIT_S) -> Child[Message]:
        child = Child(MODULE, Begin(str(self.directory), wait_s), (Message,), work="works")
        child.release()
        return child

    def log(self) -> list[str]:
        path = self.directory / "backup.rollforward.log"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def _lightningd(pid_file: Path) -> Iterator[None]:
    """A process with the lock that lightningd has."""
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(pid_file)]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_waits_for_the_end_of_the_node(tmp_path: Path) -> None:
    node = _Node(tmp_path)
    with _lightningd(node.pid_file):
        found = node.database.read_bytes()
        process = node.process()
        second = node.process()
        third = node.process(0.0)
        # One of the three waits, and the others leave it to that one.
        wait_until(
            lambda: sum(each.is_running() for each in (process, second, third)) == 1,
            "none of them has ended",
        )
        assert node.database.read_bytes() == found
    for each in (process, second, third):
        each.wait(WAIT_S)
    last = node.process(0.0)
    last.wait(WAIT_S)
    node.require_same()
    assert read_marker(str(node.directory)) is None
    assert node.log()[-1].endswith("delete it once the node has run well.")
    assert len(list(node.directory.glob("*.before-rollforward-*"))) == 1


def test_node_that_does_not_end_is_left_alone(tmp_path: Path) -> None:
    node = _Node(tmp_path)
    with _lightningd(node.pid_file):
        node.process(0.2).wait(WAIT_S)
        assert "Not rolled forward: lightningd is running" in node.log()[-1]
    assert read_marker(str(node.directory)) is not None
    node.process(0.0).wait(WAIT_S)
    node.require_same()


def test_pid_file_that_its_node_removes_is_made_again(tmp_path: Path) -> None:
    """Lightningd removes it at the end of an orderly shutdown, while it still has the lock."""
    node = _Node(tmp_path)
    with _lightningd(node.pid_file):
        process = node.process()
        wait_until((node.directory / "backup.rollforward.log").exists, "it has not begun")
        node.pid_file.unlink()
    process.wait(WAIT_S)
    node.require_same()
    assert node.pid_file.exists()


def test_backup_that_cannot_be_opened_is_told_and_tried_at_the_next_start(tmp_path: Path) -> None:
    node = _Node(tmp_path)
    backup = tmp_path / "backup"
    backup.rename(tmp_path / "away")
    node.process(0.0).wait(WAIT_S)
    assert f"There is no backup at {backup}" in node.log()[-1]
    marker = read_marker(str(node.directory))
    assert marker is not None
    assert marker.refused is None
    (tmp_path / "away").rename(backup)
    node.process(0.0).wait(WAIT_S)
    node.require_same()


def test_refusal_is_noted(tmp_path: Path) -> None:
    node = _Node(tmp_path, missing=3)
    node.process(0.0).wait(WAIT_S)
    marker = read_marker(str(node.directory))
    assert marker is not None
    assert marker.refused is not None
    assert "3 versions older" in marker.refused
    assert marker.refused in node.log()[-1]
    assert (node.directory / "backup.rollforward.log").stat().st_mode & 0o777 == 0o600
