"""The process beside a writer, and what it leaves alone once its writer is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.backends.dir.upkeep import Start
from cln_backup.process.channel import Message, send
from cln_backup.process.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.monkeypatch import MonkeyPatch

from cln_backup.storage import scratch


def _upkeep(path: Path, *, alive: bool) -> None:
    """Runs the process for a writer that is alive, or has died when the process looks first."""
    start = Start(str(path), 0, 0, os.getpid())
    module = "cln_backup.backends.dir.upkeep"
    if alive:
        upkeep = Child(module, start, (Message,), work="prepares segments")
        upkeep.wait(60)
        upkeep.close()
    else:
        readable, writable = os.pipe()
        send(writable, start)
        os.close(writable)
        subprocess.run([sys.executable, "-m", module], stdin=readable, check=True)
        os.close(readable)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup with what two writers are making, or left unfinished."""
    create_backend(f"dir://{tmp_path}/backup", None)
    for name in ("spare.new-1", "spare.first-1"):
        (tmp_path / "backup" / name).touch()
    return tmp_path / "backup"


def test_spare_is_made_for_the_writer(backup: Path) -> None:
    _upkeep(backup, alive=True)
    assert sorted(path.name for path in backup.glob("spare*")) == ["spare"]


def test_upkeep_of_a_dead_writer_makes_and_removes_nothing(backup: Path) -> None:
    """Another writer may be about to claim a segment by the name that would be removed."""
    _upkeep(backup, alive=False)
    assert sorted(path.name for path in backup.glob("spare*")) == ["spare.first-1", "spare.new-1"]


def test_spare_that_appears_while_a_leftover_is_removed_goes_too(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """The upkeep of a killed copy was at its last step: `.copy-…/spare` stayed."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    inside = tmp_path / f".copy-{os.uname().nodename}-{ended.pid}-x" / "copy"
    inside.mkdir(parents=True)
    rmdir = os.rmdir

    def late(name: str, *, dir_fd: int | None = None) -> None:
        monkeypatch.undo()
        (inside / "spare").touch()
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late)
    with scratch.directory(str(tmp_path), op="copy") as directory:
        assert [str(path) for path in tmp_path.iterdir()] == [directory]
