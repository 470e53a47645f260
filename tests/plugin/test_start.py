"""The first call of a process, for each row of the decision's table: what its action does."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.continuity import STARTED_WELL, Decision, Facts, Loss, Storage, decide
from cln_backup.model.errors import Discontinuity, StorageError
from cln_backup.node.outside import boot_id
from cln_backup.node.settings import State, read_state, write_state
from cln_backup.operations.restore import restore
from cln_backup.plugin.patience import Patience
from cln_backup.plugin.replicator import Replicator
from cln_backup.plugin.start.healing import BoundedFile
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage.mount_identity import mount_identity
from simulator.content import differences
from tests.disasters.places import kept_aside, url_in
from tests.histories import (
    OFF,
    ON,
    SnapshotBytes,
    append,
    build_database,
    image,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
)

if TYPE_CHECKING:
    from pathlib import Path

_B = 8
_HEADS = {
    Kind.TRANSACTION: [payment(_B)],
    Kind.RIDER: [payment(_B), rider(_B, OFF)],
    Kind.SNAPSHOT: [payment(_B), Change(_B, image("whole"), None)],
}
_COMPARING = f"Comparing backup version {_B} versus first write version"
_DROPPED = (
    "Last changes not applied: the node stopped before it committed version "
    f"{_B}, which is dropped from the backup"
)
_HALTS = {
    Decision.GAP: "Backup is out of date: the database",
    Decision.OLDER: "Core Lightning seems to have lost some state (failed restore?): the database",
    Decision.ROLL_FORWARD: "Core Lightning may have lost its last changes with the power or the",
}


class Node:
    """A network directory beside a backup, and the plugin's part that stores changes."""

    def __init__(self, base: Path, kind: str, changes: list[Change], on_gap: str = "halt") -> None:
        self.directory = base / "regtest"
        self.directory.mkdir()
        self.kind = kind
        self.place = base / "backup"
        self.place.mkdir(mode=0o700)
        self.url = url_in(self.place, kind)
        create_backend(self.url, None)
        append(self.url, changes)
        lock = {"backend_url": self.url, "on_gap": on_gap, "on_power_loss": "halt"}
        (self.directory / "backup.lock").write_text(json.dumps(lock))
        self.now = Storage(boot_id(), mount_identity(str(self.directory)))
        assert None not in self.now
        self.logged: list[str] = []

    def note(self, storage: Storage) -> None:
        write_state(str(self.directory), State(storage.boot_id, None, storage.mount))

    def noted(self) -> Storage:
        state = read_state(str(self.directory))
        return Storage(state.boot_id, state.mount)

    def call(self, change: Change, patience: Patience | None = None) -> None:
        assert change.transaction is not None
        replicator = Replicator(str(self.directory), self.logged.append, patience)
        try:
            replicator.db_write(change.version, change.transaction)
        finally:
            replicator.close()


def _call(stands_at: int, *, as_rider: bool) -> Change:
    return rider(stands_at, OFF) if as_rider else payment(stands_at + 1, "the first call")


@pytest.mark.parametrize("as_rider", [False, True], ids=["transaction", "rider"])
@pytest.mark.parametrize("lost", [False, True], ids=["same storage", "may have lost"])
@pytest.mark.parametrize("difference", [-3, -2, -1, 0, 1, 2])
@pytest.mark.parametrize("head", Kind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_row(
    kind: str, head: Kind, difference: int, lost: bool, as_rider: bool, memory_path: Path
) -> None:
    """Each row, by transaction and by rider: the log, the backup and `backup.state` after it."""
    changes = [*started_node(), *payments(4, _B), *_HEADS[head]]
    node = Node(memory_path, kind, changes)
    before = Storage("another boot", node.now.mount) if lost else node.now
    node.note(before)
    call = _call(_B + difference, as_rider=as_rider)
    facts = Facts(
        call.version,
        as_rider,
        Head(_B, head, foreign_keys=head is not Kind.RIDER),
        Loss.POWER if lost else None,
        heals=False,
    )
    decision = decide(facts)
    if decision in _HALTS:
        with pytest.raises(Discontinuity) as caught:
            node.call(call)
        assert str(caught.value).startswith(_HALTS[decision])
        assert f"is at version {_B + difference}, the backup {node.url} at {_B}" in str(
            caught.value
        )
        assert node.logged == [f"{_COMPARING} {call.version}"]
        assert told_by(node.url) == told(changes)
        assert node.noted() == before, "the question stays open"
        return
    node.call(call)
    assert node.noted() == node.now
    if decision is Decision.DROP_HEAD:
        assert node.logged[:2] == [f"{_COMPARING} {call.version}", _DROPPED]
        assert "The dropped change is kept as" in node.logged[2]
        assert list(kept_aside(node.place, kind).values()) == [told(changes[-1:])]
        changes = changes[:-1]
    else:
        assert node.logged == [f"{_COMPARING} {call.version}", STARTED_WELL]
        assert not kept_aside(node.place, kind)
    switched_on = [rider(_B, ON)] if head is Kind.RIDER else []
    assert told_by(node.url) == told([*changes, *switched_on, call])


@pytest.mark.parametrize("as_rider", [False, True], ids=["transaction", "rider"])
@pytest.mark.parametrize("head", Kind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_row_with_a_gap(kind: str, head: Kind, as_rider: bool, memory_path: Path) -> None:
    """Each row with D > B: a snapshot of the database is appended, then the call."""
    before = [*started_node(), *payments(4, _B)]
    heads = dict(_HEADS)
    build_database(memory_path / "at-b", [*before, payment(_B)])
    whole = SnapshotBytes((memory_path / "at-b").read_bytes())
    heads[Kind.SNAPSHOT] = [payment(_B), Change(_B, whole, None)]
    node = Node(memory_path, kind, [*before, *heads[head]], "snapshot")
    node.note(Storage("another boot", node.now.mount))
    database = node.directory / "lightningd.sqlite3"
    build_database(database, [*before, *heads[head], payment(_B + 1), payment(_B + 2)])
    call = _call(_B + 2, as_rider=as_rider)
    node.call(call)
    *history, snapshot, last = told_by(node.url)
    assert history == told([*before, *heads[head]])
    assert snapshot[:2] == (_B + 2, Kind.SNAPSHOT)
    assert [last] == told([call])
    assert node.noted() == node.now
    assert node.logged[0] == f"{_COMPARING} {call.version}"
    assert node.logged[1].startswith("Backup healed by a snapshot: it was missing changes")
    assert node.logged[2] == STARTED_WELL
    restored = memory_path / "restored"
    with open_reader(node.url) as reader:
        restore(reader, str(restored))
    assert differences(restored, build_database(memory_path / "expected", [
        *before, *heads[head], payment(_B + 1), payment(_B + 2), call
    ])) == []  # fmt: skip


def test_gap_that_takes_too_long_halts_with_the_command_for_it(memory_path: Path) -> None:
    """The preparing process waits for the replica; the node cannot wait as long."""
    changes = [*started_node(), payment(4)]
    node = Node(memory_path, "dir", changes, "snapshot")
    build_database(node.directory / "lightningd.sqlite3", [*changes, payment(5)])
    replica_dir = str(node.directory / "replica")
    write_state(str(node.directory), State(replica_dir=replica_dir))
    with contextlib.closing(KeptReplica.open(replica_dir)), pytest.raises(Discontinuity) as caught:
        node.call(payment(6), Patience(together_s=0, least_s=0.5))
    said = str(caught.value)
    assert "Backup is out of date" in said
    assert "The node cannot wait longer" in said
    assert f"backup-cli snapshot --lightning-dir {node.directory}" in said
    assert told_by(node.url) == told(changes)
    assert not list(node.directory.glob(".take-snapshot-*"))
    node.call(payment(6))
    assert told_by(node.url)[-2].kind is Kind.SNAPSHOT


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_append_that_takes_too_long_leaves_the_backup_as_it_was(
    kind: str, memory_path: Path
) -> None:
    changes = [*started_node(), payment(4)]
    node = Node(memory_path, kind, changes)
    database = build_database(memory_path / "database", [*changes, payment(5)])
    late = BoundedFile(str(database), until=time.monotonic())
    with open_writer(node.url) as writer, pytest.raises(StorageError, match="cannot wait longer"):
        writer.add_change(Change(5, late, None))
    assert told_by(node.url) == told(changes)
    append(node.url, [payment(5)])
    assert told_by(node.url) == told([*changes, payment(5)])


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize("as_rider", [False, True], ids=["transaction", "rider"])
def test_empty_database_beside_a_backup_is_told_apart(
    kind: str, as_rider: bool, memory_path: Path
) -> None:
    changes = [*started_node(), payment(4)]
    node = Node(memory_path, kind, changes)
    moved = node.directory / "lightning.pre-recover.4711"
    for expected in ("", f"lightningd's command recover moved earlier files to {moved}"):
        with pytest.raises(Discontinuity) as caught:
            node.call(_call(0, as_rider=as_rider))
        said = str(caught.value)
        assert said.startswith("Core Lightning began with an empty database, but its backup is not")
        assert "is at version 0, the backup" in said
        assert "do not use recover or emergency.recover: they close all channels" in said
        assert expected in said
        assert ("moved earlier files" in said) == bool(expected)
        moved.mkdir(exist_ok=True)
    assert told_by(node.url) == told(changes)


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_foreign_keys_are_on_again_after_the_head_was_dropped(kind: str, memory_path: Path) -> None:
    """The node died in a migration, between the commit and the rider that switches them on."""
    changes = [*started_node(), rider(3, OFF), payment(4)]
    node = Node(memory_path, kind, changes)
    node.note(node.now)
    call = payment(4, "sent again")
    node.call(call)
    assert told_by(node.url) == told([*changes[:-1], rider(3, ON), call])
    assert list(kept_aside(node.place, kind).values()) == [told(changes[-1:])]


@pytest.mark.parametrize("kind", ["file", "dir"])
@pytest.mark.parametrize(("stands_at", "decision"), [(0, Decision.APPEND), (1, Decision.GAP)])
def test_empty_backup(kind: str, stands_at: int, decision: Decision, memory_path: Path) -> None:
    node = Node(memory_path, kind, [])
    call = payment(stands_at + 1)
    if decision is Decision.APPEND:
        node.call(call)
        assert STARTED_WELL in node.logged
        assert told_by(node.url) == told([call])
        assert node.noted() == node.now
    else:
        with pytest.raises(Discontinuity, match="Backup is out of date"):
            node.call(call)
        assert told_by(node.url) == []
        assert node.noted() == Storage()


def test_note_that_is_true_already_is_not_written_again(memory_path: Path) -> None:
    changes = [*started_node(), payment(4)]
    node = Node(memory_path, "file", changes)
    node.note(node.now)
    path = node.directory / "backup.state"
    (node.directory / "kept").hardlink_to(path)
    node.call(payment(4, "sent again"))
    assert path.samefile(node.directory / "kept")
    node.note(node.now)
    assert not path.samefile(node.directory / "kept")
