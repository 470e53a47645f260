"""Recorded migrations, whose last changes were lost with the power."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend
from cln_backup.model.change import Change, Kind
from cln_backup.operations.rollforward import roll_forward
from cln_backup.replay.replica import DatabaseFile, copy_database
from simulator.content import differences
from tests import captured
from tests.histories import append, database
from tests.operations.test_captures import MIGRATIONS
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def _commit(path: Path, changes: Sequence[Change]) -> None:
    """Makes the changes as the node made them, with Python's own SQLite."""
    with database(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for change in changes:
            assert change.transaction is not None
            script = list(change.transaction)
            if change.kind is Kind.TRANSACTION:
                script = ["BEGIN", *script, "COMMIT"]
            for statement in script:
                connection.execute(statement)


@pytest.mark.parametrize("name", MIGRATIONS)
@pytest.mark.parametrize("missing", [1, 2] if SOAK else [2])
def test_migration_is_completed(
    name: str, missing: int, large_captures: Path, memory_path: Path
) -> None:
    """By transactions and riders as they came: foreign keys are off for some, and on for others."""
    recording = large_captures / "migrations" / name
    changes = list(captured.changes(recording / "writes.jsonl.xz"))
    before = captured.unpacked(recording / "before.sqlite3.xz", memory_path / "before.sqlite3")
    after = captured.unpacked(recording / "after.sqlite3.xz", memory_path / "after.sqlite3")
    version = copy_database(str(before), str(memory_path / "base.sqlite3"))
    directory = memory_path / "regtest"
    directory.mkdir()
    url = f"dir://{memory_path}/backup"
    base = DatabaseFile(str(memory_path / "base.sqlite3"))
    create_backend(url, Change(version, base, None))
    append(url, changes)
    (directory / "backup.lock").write_text(json.dumps({"backend_url": url}))
    path = before.rename(directory / "lightningd.sqlite3")
    _commit(path, changes[: max(0, len(changes) - missing)])
    done = roll_forward(str(directory))
    assert done.version == changes[-1].version
    assert differences(path, after) == []
