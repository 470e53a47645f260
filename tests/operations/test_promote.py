"""A promotion that is killed at each of its steps, and run again."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.backends.events import ignore
from cln_backup.model.errors import AlreadyExists
from cln_backup.operations.promote import promote
from cln_backup.operations.standby import replica_in
from cln_backup.replay.kept import KeptReplica
from tests import programs
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    payment,
    payments,
    started_node,
    told,
    told_by,
)

if TYPE_CHECKING:
    from pathlib import Path

_BEFORE = [*started_node(), *payments(4, 6)]
_MISSED = payments(6, 8)


def _standby(place: Path, scheme: str) -> tuple[str, Path]:
    """A backup, and a standby that has not seen its last changes."""
    place.mkdir()
    url, directory = f"{scheme}://{place}/backup", place / "standby"
    create_backend(url, None)
    append(url, _BEFORE)
    directory.mkdir()
    with (
        contextlib.closing(KeptReplica.open(replica_in(str(directory)))) as replica,
        open_reader(url) as reader,
    ):
        assert replica.catch_up(reader)
    append(url, _MISSED)
    return url, directory


@pytest.mark.parametrize(("scheme", "stride"), [("dir", 1), ("file", 6)])
def test_killed_at_each_step_and_run_again(memory_path: Path, scheme: str, stride: int) -> None:
    """At every moment there is no database, or the whole one; `backup.lock` is there before it."""
    expected = build_database(memory_path / "expected.sqlite3", [*_BEFORE, *_MISSED])
    labels: list[str] = []
    while labels[-1:] != ["done"]:
        place = memory_path / str(len(labels))
        url, directory = _standby(place, scheme)
        arguments = ("tests.operations.promoter", url, directory, 1 + stride * len(labels))
        with programs.start(*arguments, stdout=subprocess.PIPE, text=True) as victim:
            labels.append(str(victim.communicate()[0]).strip())
        assert victim.returncode == (0 if labels[-1] == "done" else -signal.SIGKILL)
        database = directory / "lightningd.sqlite3"
        if database.exists():
            with pytest.raises(AlreadyExists):
                promote(url, str(directory), labels.append, is_original=True, on_event=ignore)
        else:
            done = promote(url, str(directory), lambda _: None, is_original=True, on_event=ignore)
            assert done.version == 7
        lock = json.loads((directory / "backup.lock").read_text())
        assert lock == {"backend_url": url}
        assert_same_database(database, expected)
        assert not list(directory.glob("lightningd.sqlite3-*"))
        # The node continues the same backup.
        append(url, [payment(8)])
        assert told_by(url) == told([*_BEFORE, *_MISSED, payment(8)])
        shutil.rmtree(place)
    steps = {"write backup.lock", "PRAGMA user_version = 0;", "put database in place"}
    assert stride > 1 or steps < set(labels)
