"""The restore point of a start that changes the schema: set before the change, gone with `init`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.model.errors import StorageError
from cln_backup.node.settings import Settings, State, create_settings, read_state, write_state
from cln_backup.plugin.hook import Hook
from cln_backup.plugin.replicator import Replicator
from tests.histories import OFF, append, bump, payments, started_node

if TYPE_CHECKING:
    from pathlib import Path

DDL = "ALTER TABLE payments ADD COLUMN note TEXT"
SET = "UPDATE version SET version=280;"


class Start:
    """The plugin's side of a start, in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: list[str] = []
        self.replicator = Replicator(str(directory), self.log.append)

    def call(self, version: int, *statements: str) -> None:
        self.replicator.db_write(version, [*statements, bump(version)])
        self.replicator.settle()

    def point(self) -> tuple[int, int] | None:
        found = read_state(str(self.directory)).restore_point
        return None if found is None else (found.version, found.changes)

    def again(self) -> Start:
        self.replicator.close()
        return Start(self.directory)


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A start of a node at version 6, with 8 changes in its backup."""
    directory = tmp_path / "regtest"
    directory.mkdir()
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    append(url, [*started_node(), *payments(4, 7)])
    create_settings(str(directory), Settings(url))
    return Start(directory)


def test_a_usual_start_sets_none(start: Start) -> None:
    start.call(7, SET)
    start.call(8, "UPDATE vars SET val = 'CREATE TABLE'")
    assert start.point() is None
    assert start.log[-1] == "Versions match up"


@pytest.mark.parametrize("statements", [[DDL], [DDL, SET]], ids=["pieces", "as one"])
def test_it_is_set_before_the_change_is_stored(start: Start, statements: list[str]) -> None:
    start.call(7, *statements)
    assert start.point() == (6, 8)
    assert "the restore point is data version 6" in start.log[-1]
    start.call(8, SET)
    assert start.point() == (6, 8)
    start.replicator.node_is_up()
    assert start.point() is None
    start.call(9, DDL)
    assert start.point() is None


def test_it_is_before_the_rows_that_a_migration_changed_first(start: Start) -> None:
    start.call(7, "UPDATE channels SET state = 1")
    start.replicator.db_write(7, [OFF])
    start.replicator.settle()
    assert start.point() is None
    start.call(8, DDL)
    assert start.point() == (6, 8)


def test_the_first_one_stays_when_the_node_is_started_again(start: Start) -> None:
    start.call(7, DDL)
    start.call(8, DDL)
    for version in (9, 10):
        start = start.again()
        start.call(version, DDL)
        assert start.point() == (6, 8)


def test_it_is_set_anew_when_nothing_of_the_migration_was_committed(start: Start) -> None:
    start.call(7, DDL)
    start = start.again()
    start.call(7, DDL)
    assert "Last changes not applied" in "".join(start.log)
    assert start.point() == (6, 8)


def test_that_of_another_backup_does_not_stay(start: Start) -> None:
    start.call(7, DDL)
    start.replicator.close()
    lock, url = start.directory / "backup.lock", f"dir://{start.directory.parent}/another"
    create_backend(url, None)
    append(url, started_node())
    lock.unlink()
    create_settings(str(start.directory), Settings(url))
    start = Start(start.directory)
    start.call(4, DDL)
    assert start.point() == (3, 5)


def test_a_new_node_needs_none(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    create_settings(str(tmp_path), Settings(url))
    start = Start(tmp_path)
    for change in started_node():
        assert change.transaction is not None
        start.replicator.db_write(change.version, change.transaction)
        start.replicator.settle()
    assert start.point() is None


def _break_state(directory: Path) -> None:
    """Neither root nor any other user can write it then."""
    (directory / "backup.state").unlink()
    (directory / "backup.state").mkdir()


def test_without_it_nothing_is_stored(start: Start) -> None:
    start.call(7, "UPDATE channels SET state = 1")
    _break_state(start.directory)
    with pytest.raises(StorageError):
        start.call(8, DDL)
    with open_reader(f"dir://{start.directory.parent}/backup") as reader:
        assert reader.version == 7


def test_a_node_whose_restore_point_stays_does_not_come_up(start: Start) -> None:
    hook = Hook(start.replicator, lambda _level, text: start.log.append(text))
    assert hook.node_is_up()
    start.call(7, DDL)
    _break_state(start.directory)
    assert not hook.node_is_up()
    assert hook.halted is not None
    assert "backup.state" in hook.halted


def test_fields_of_a_newer_release_stay(tmp_path: Path) -> None:
    state = tmp_path / "backup.state"
    state.write_text(json.dumps({"boot_id": "x", "of_a_newer_release": [1]}))
    write_state(str(tmp_path), read_state(str(tmp_path))._replace(mount="m"))
    assert json.loads(state.read_text())["of_a_newer_release"] == [1]
    assert read_state(str(tmp_path)) == State("x", None, "m")
