"""A command that is stopped, at whichever step, has done all or nothing, and says which."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.model.errors import Interrupted
from cln_backup.storage import fsio, interruption
from tests.operations.stopper import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOMENTS = int(os.environ.get("CLN_BACKUP_MOMENTS", "8"))
"""How many of a command's steps are tried; by hand, set it to more than there are."""


@pytest.mark.parametrize("command", COMMANDS)
def test_command_stopped_at_any_step_did_all_or_nothing(command: str, memory_path: Path) -> None:
    """Ctrl-C in `init` left a base, a scratch directory, `backup.key` (8 of 30)."""
    ended = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.operations.stopper"),
            *(command, str(_MOMENTS), str(memory_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(results) >= min(_MOMENTS, 8)
    for result in results:
        if result["code"] == 0:
            assert result["finished"], result
        elif result["said"].startswith("Error: Stopped too late"):
            assert result["code"] == 130, result
            assert result["finished"], result
        else:
            assert result["code"] == 130, result
            assert result["said"].startswith("Error: Stopped. The unfinished result was"), result
            assert result["as_it_was"], result


@pytest.fixture
def arrived() -> Iterator[None]:
    """A signal that came inside `deferred`."""
    state = interruption.state
    state.finished = False
    state.deferring = 1
    interruption.arrived(signal.SIGINT, None)
    yield
    state.deferring = 0
    state.pending = state.stopping = state.finished = False


@pytest.mark.usefixtures("arrived")
def test_signal_is_taken_at_a_safe_point_and_once(tmp_path: Path) -> None:
    fd = fsio.create(str(tmp_path / "file"), op="create")
    try:
        with interruption.held():
            fsio.write_at(fd, [b"whole"], 0, op="write")
        with pytest.raises(Interrupted, match="the backup is unchanged"):
            fsio.write_at(fd, [b"x"], 0, op="write")
        interruption.arrived(signal.SIGINT, None)
        fsio.write_at(fd, [b"cleanup"], 0, op="write")
    finally:
        os.close(fd)


@pytest.mark.usefixtures("arrived")
def test_signal_after_the_result_is_in_place_does_not_deny_it() -> None:
    interruption.finished()
    interruption.check()
    interruption.state.deferring = 0
    with pytest.raises(Interrupted, match="too late"):
        interruption.arrived(signal.SIGINT, None)
