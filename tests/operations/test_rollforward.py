"""A database that is older than its backup, brought forward by hand: `backup-cli rollforward`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, place_at
from cln_backup.model.errors import Discontinuity, NodeRunning, ReplayFailed, StorageError
from cln_backup.node.rollforward_marker import Marker, read_marker, write_marker
from cln_backup.node.settings import State, write_state
from cln_backup.operations.rollforward import RolledForward, complete, roll_forward
from cln_backup.replay.kept import KeptReplica
from simulator.content import differences
from tests import programs
from tests.histories import (
    OFF,
    ON,
    append,
    build_database,
    database,
    first,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.small_disk import fill, small_disk

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.model.change import Change

_CHANGES = [*started_node(), *payments(4, 12)]


class Stopped:
    """The network directory of a stopped node, whose database has less than its backup."""

    def __init__(self, base: Path, changes: list[Change], count: int, kind: str = "dir") -> None:
        self.directory = base / "regtest"
        self.directory.mkdir()
        self.database = self.directory / "lightningd.sqlite3"
        self.pid_file = base / "lightningd-regtest.pid"
        self.url = f"{kind}://{base}/backup"
        create_backend(self.url, None)
        append(self.url, changes)
        (self.directory / "backup.lock").write_text(json.dumps({"backend_url": self.url}))
        self.expected = build_database(base / "expected.sqlite3", changes)
        build_database(self.database, changes[:count])

    def roll_forward(self) -> RolledForward:
        return roll_forward(str(self.directory))

    def require_same(self) -> None:
        assert differences(self.database, self.expected) == []

    def names(self) -> set[str]:
        return set(os.listdir(self.directory))


_WHOLE = {"backup.lock", "lightningd.sqlite3"}


@pytest.mark.parametrize("kind", ["dir", "file"])
@pytest.mark.parametrize("missing", [1, 2, 5])
def test_missing_changes_are_applied(kind: str, missing: int, tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - missing, kind)
    before = node.database.read_bytes()
    done = node.roll_forward()
    kept = node.directory / "lightningd.sqlite3.before-rollforward-11"
    expected = RolledForward(str(node.database), 11 - missing, 11, missing, str(kept))
    assert done == expected
    node.require_same()
    assert (kept / "lightningd.sqlite3").read_bytes() == before
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert stat.S_IMODE((kept / "lightningd.sqlite3").stat().st_mode) == 0o600
    assert node.names() == {*_WHOLE, kept.name}
    assert told_by(node.url) == told(_CHANGES)
    again = node.roll_forward()
    assert again == RolledForward(str(node.database), 11, 11, 0, None)
    assert node.names() == {*_WHOLE, kept.name}


def test_second_copy_gets_another_name(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
    older = node.database.read_bytes()
    node.roll_forward()
    node.database.write_bytes(older)
    assert node.roll_forward().kept == f"{node.database}.before-rollforward-11-2"


def test_foreign_keys_are_as_they_were_on_the_node(tmp_path: Path) -> None:
    """Between the two riders the node deleted a row that others refer to, and kept those."""
    refer = [
        transaction(4, "INSERT INTO peers (id) VALUES (1)"),
        transaction(5, "INSERT INTO channels (id, peer_id) VALUES (1, 1)"),
    ]
    without = [
        rider(5, OFF),
        transaction(6, "DELETE FROM peers"),
        transaction(7, "INSERT INTO peers (id) VALUES (1)"),
    ]
    changes = [*started_node(), *refer, *without, rider(7, ON), *payments(8, 10)]
    for number, count in enumerate(range(len(changes) - 6, len(changes))):
        base = tmp_path / str(number)
        base.mkdir()
        node = Stopped(base, changes, count)
        node.roll_forward()
        node.require_same()


def test_change_between_two_riders_is_not_committed_if_a_later_one_fails(tmp_path: Path) -> None:
    """The pieces are rehearsed on a copy: the database is not left between two versions."""
    changes = [
        *started_node(),
        *payments(4, 8),
        rider(7, OFF),
        payment(8),
        rider(8, ON),
        payment(9),
    ]
    node = Stopped(tmp_path, changes, 9)
    with database(node.database) as connection:
        connection.execute("INSERT INTO payments (version) VALUES (9)")
    before = node.database.read_bytes()
    with pytest.raises(Discontinuity, match="cannot be applied"):
        node.roll_forward()
    assert node.database.read_bytes() == before
    assert node.names() == _WHOLE


@pytest.mark.parametrize("later", [0, 1])
@pytest.mark.parametrize("kind", ["dir", "file"])
def test_snapshot_among_the_changes_replaces_the_contents(
    kind: str, later: int, tmp_path: Path
) -> None:
    changes = [*_CHANGES, snapshot_of([*_CHANGES, payment(12)], tmp_path / "s.sqlite3")]
    changes += payments(13, 13 + later)
    node = Stopped(tmp_path, changes, len(_CHANGES), kind)
    done = node.roll_forward()
    assert (done.version_before, done.version) == (11, 12 + later)
    node.require_same()


@pytest.mark.parametrize("missing", [1, 3])
def test_backup_that_a_snapshot_has_healed_is_rolled_forward(missing: int, tmp_path: Path) -> None:
    """There is no kept replica; a change before the snapshot does not replay."""
    healed = [*_CHANGES, snapshot_of([*_CHANGES, payment(12)], tmp_path / "s.sqlite3")]
    healed += payments(13, 17)
    node = Stopped(tmp_path, healed, len(healed) - missing)
    bad = transaction(12, "INSERT INTO payments (version) VALUES (5)")
    shutil.rmtree(tmp_path / "backup")
    create_backend(node.url, None)
    append(node.url, [*_CHANGES, bad, *healed[len(_CHANGES) :]])
    assert node.roll_forward().version == 16
    node.require_same()


def test_backup_that_no_snapshot_has_healed_is_refused(tmp_path: Path) -> None:
    node = Stopped(tmp_path, [*_CHANGES, *payments(12, 15)], len(_CHANGES) + 2)
    bad = transaction(12, "INSERT INTO payments (version) VALUES (5)")
    shutil.rmtree(tmp_path / "backup")
    create_backend(node.url, None)
    append(node.url, [*_CHANGES, bad, *payments(13, 15)])
    before = node.database.read_bytes()
    with pytest.raises(ReplayFailed, match="data version 12"):
        node.roll_forward()
    assert node.database.read_bytes() == before
    assert node.names() == _WHOLE


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_database_with_other_content_is_refused(missing: int, tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - missing)
    with database(node.database) as connection:
        connection.execute("UPDATE payments SET description = 'other' WHERE version = 5")
    before = node.database.read_bytes()
    with pytest.raises(Discontinuity) as caught:
        node.roll_forward()
    said = str(caught.value)
    assert "its content is not the backup's (payments: 1 row differs)" in said
    assert f"backup-cli restore {node.url} {node.database}" in said
    assert "'other'" not in said
    assert node.database.read_bytes() == before
    assert node.names() == _WHOLE


@pytest.mark.parametrize("sound", [True, False])
def test_kept_replica_is_compared_with_and_cannot_refuse_alone(sound: bool, tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 2)
    kept = KeptReplica.open(str(node.directory / "backup.replica"))
    with open_reader(node.url) as reader:
        kept.catch_up(reader, to=9)
    if not sound:
        kept.without_head()
        kept.connection.execute("DELETE FROM payments WHERE version = 6")
    kept.close()
    write_state(str(node.directory), State(replica_dir=kept.directory))
    replayed: list[int] = []
    roll_forward(str(node.directory), progress=lambda change: replayed.append(change.version))
    assert bool(replayed) is not sound
    node.require_same()


def test_version_before_the_history_is_refused(tmp_path: Path) -> None:
    base = snapshot_of(_CHANGES[:8], tmp_path / "s.sqlite3")
    node = Stopped(tmp_path, [base, *_CHANGES[8:]], 1)
    node.database.unlink()
    build_database(node.database, _CHANGES[:6])
    with pytest.raises(Discontinuity, match="is not in the backup's history"):
        node.roll_forward()


def test_database_of_another_node_is_refused(tmp_path: Path) -> None:
    insert = "INSERT INTO vars (name, blobval) VALUES ('node_id', x'{}')"
    named = transaction(4, insert.format("02" * 33))
    node = Stopped(tmp_path, [*started_node(), named, *payments(5, 8)], 6)
    with place_at(node.url).open_writer("02" * 33) as writer:
        writer.add_change(payment(8))  # the node is noted with its first change
    node.database.unlink()
    other = transaction(4, insert.format("03" * 33))
    build_database(node.database, [*started_node(), other, payment(5), payment(6)])
    with pytest.raises(Discontinuity, match=f"backup of the node {'02' * 33}"):
        node.roll_forward()
    assert node.names() == _WHOLE


def test_newer_database_is_refused(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES))
    node.database.unlink()
    build_database(node.database, [*_CHANGES, payment(12)])
    with pytest.raises(Discontinuity, match="newer than the backup: it is at version 12"):
        node.roll_forward()
    assert node.names() == _WHOLE


def test_wal_is_applied_first(tmp_path: Path) -> None:
    """A process that was killed left its last commit in the WAL."""
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 2)
    change = _CHANGES[-2]
    assert change.transaction is not None
    script = ";".join(["PRAGMA journal_mode = WAL", "BEGIN", *change.transaction, "COMMIT"])
    program = (
        "import sqlite3, sys, os, signal; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.executescript(sys.argv[2]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, node.database, script], check=False)
    assert os.path.getsize(f"{node.database}-wal")
    done = node.roll_forward()
    assert (done.version_before, done.version) == (10, 11)
    assert done.kept is not None
    kept = {"lightningd.sqlite3", "lightningd.sqlite3-wal"}
    assert set(os.listdir(done.kept)) == kept
    node.require_same()


def test_running_node_is_refused(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
    before = node.database.read_bytes()
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, node.pid_file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(NodeRunning, match=f"process {process.pid} has locked"):
            node.roll_forward()
        write_marker(str(node.directory), Marker(str(node.database), str(node.pid_file)))
        with pytest.raises(NodeRunning):
            complete(str(node.directory), 0.1)
        process.communicate()
    assert node.database.read_bytes() == before
    assert complete(str(node.directory), 0) is not None
    node.require_same()


def test_no_lightningd_can_start_meanwhile(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 5)
    locked = []

    def look(_change: Change) -> None:
        start = (
            "import fcntl, sys; f = open(sys.argv[1], 'w'); "
            "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        command = [sys.executable, "-c", start, str(node.pid_file)]
        locked.append(subprocess.run(command, check=False, capture_output=True).returncode)

    roll_forward(str(node.directory), progress=look)
    assert set(locked) == {1}
    with node.pid_file.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_pid_file_of_the_configuration_is_locked(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
    other = tmp_path / "run.pid"
    (tmp_path / "config").write_text(f"pid-file={other}\n")
    node.roll_forward()
    assert other.exists()
    assert not node.pid_file.exists()


def test_plugins_process_does_not_roll_an_old_copy_forward(tmp_path: Path) -> None:
    """By itself it repairs a loss of power, and nothing else."""
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 3)
    write_marker(str(node.directory), Marker(str(node.database), str(node.pid_file)))
    with pytest.raises(Discontinuity, match="3 versions older than the backup"):
        complete(str(node.directory), 0)
    assert read_marker(str(node.directory)) is not None
    node.roll_forward()
    assert read_marker(str(node.directory)) is None
    node.require_same()


def test_unfinished_copy_is_made_again(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
    keeping = tmp_path / "regtest" / "lightningd.sqlite3.before-rollforward-11"
    keeping.mkdir()
    (keeping / "lightningd.sqlite3").write_text("half")
    marker = Marker(str(node.database), str(node.pid_file), keeping=str(keeping))
    write_marker(str(node.directory), marker)
    before = node.database.read_bytes()
    assert node.roll_forward().kept == str(keeping)
    assert (keeping / "lightningd.sqlite3").read_bytes() == before


def test_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Whatever it was full for: the copy, the replica, the journal."""
    with small_disk(tmp_path / "disk", 600) as disk:
        node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
        shutil.move(node.database, disk / "lightningd.sqlite3")
        node.database.symlink_to(disk / "lightningd.sqlite3")
        before = node.database.read_bytes()
        failed = 0
        while True:
            other = fill(disk)
            os.truncate(other, max(0, other.stat().st_size - (failed * 8 << 10)))
            try:
                node.roll_forward()
            except StorageError:
                failed += 1
                assert node.database.read_bytes() == before
                assert not os.path.exists(f"{node.database.resolve()}-journal")
                other.unlink()
                assert os.listdir(disk) == ["lightningd.sqlite3"]
            else:
                break
        assert failed > 8
        node.require_same()


def test_command_says_what_it_did(tmp_path: Path) -> None:
    node = Stopped(tmp_path, [first(), *payments(2, 6)], 4)
    done = programs.run("rollforward", "--lightning-dir", node.directory)
    kept = f"{node.database}.before-rollforward-5"
    assert done.returncode == 0, done.stderr
    assert f"Rolled {node.database} forward from data version 4 to 5: 1 change." in done.stdout
    assert f"kept in {kept}; delete it" in done.stdout
    done = programs.run("rollforward", "--json", "--lightning-dir", node.directory)
    assert json.loads(done.stdout) == {
        "database": str(node.database),
        "version_before": 5,
        "version": 5,
        "changes": 0,
        "kept": None,
    }
    done = programs.run("rollforward", "--lightning-dir", node.directory)
    assert "Nothing to do" in done.stdout


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    node = Stopped(tmp_path, _CHANGES, len(_CHANGES) - 1)
    assert complete(str(node.directory), 0) is None
