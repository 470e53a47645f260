"""A migration that was cut is undone: database and backup are before it, and nothing is lost."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, redacted, url_of
from cln_backup.compaction.compact import compact, require_no_migration
from cln_backup.compaction.compactor import Compactor
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import (
    BackupError,
    Discontinuity,
    MigrationOpen,
    NodeRunning,
    NotFound,
    WriterConflict,
)
from cln_backup.node.pid_file import nodes_kept_out
from cln_backup.node.settings import Settings, create_settings, read_state, write_state
from cln_backup.operations.undo_migration import Undone, undo_migration
from cln_backup.plugin.replicator import Replicator
from cln_backup.replay.kept import KeptReplica
from cln_backup.storage import scratch
from simulator.content import differences
from tests import captured
from tests.backends.conformance import PLACES, server
from tests.histories import (
    OFF,
    ON,
    SnapshotBytes,
    append,
    build_database,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.soak import SOAK
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

SET = "UPDATE version SET version = 280"
BEFORE = [
    *started_node(),
    transaction(4, "CREATE TABLE version (version INTEGER)", "INSERT INTO version VALUES (1)"),
    transaction(5, SET),
    *payments(6, 9),
]
"""A node at version 8."""

MIGRATION = [
    transaction(9, "UPDATE payments SET description = 'old'", "ALTER TABLE payments ADD a TEXT"),
    rider(9, OFF),
    transaction(
        10,
        "ALTER TABLE channels RENAME TO temp_channels",
        "CREATE TABLE channels (id INTEGER PRIMARY KEY, peer_id INTEGER)",
        "INSERT INTO channels SELECT id, peer_id FROM temp_channels",
        "DROP TABLE temp_channels",
    ),
    rider(10, ON),
    transaction(11, "CREATE INDEX i ON payments (a)", SET),
    payment(12),
    payment(13),
]
"""The start of a newer release, in pieces; after the last one, `init` comes."""


class Node:
    """A network directory with a database and its backup."""

    def __init__(self, base: Path, url: str, before: Sequence[Change]) -> None:
        self.directory = base / "regtest"
        self.directory.mkdir(mode=0o700)
        self.database = self.directory / "lightningd.sqlite3"
        self.url = url
        self.before = list(before)
        self.version = before[-1].version
        self.original = build_database(base / "original.sqlite3", before)
        if before[0].kind is Kind.SNAPSHOT:
            create_backend(url, before[0])
            append(url, before[1:])
        else:
            create_backend(url, None)
            append(url, before)
        create_settings(str(self.directory), Settings(url))

    def starts(self, calls: Sequence[Change], *, committed: int, comes_up: bool = False) -> None:
        """A start that answers all calls, commits some of them, and then dies."""
        replicator = Replicator(str(self.directory), lambda _: None)
        for call in calls:
            assert call.transaction is not None
            replicator.db_write(call.version, call.transaction)
            replicator.settle()
        if comes_up:
            replicator.node_is_up()
        replicator.close()
        self.commits(calls[:committed])

    def commits(self, calls: Sequence[Change]) -> None:
        self.database.unlink(missing_ok=True)
        image = SnapshotBytes(self.original.read_bytes())
        build_database(self.database, [Change(self.version, image, None), *calls])

    def is_open(self) -> bool:
        return read_state(str(self.directory)).restore_point is not None

    def undo(self) -> Undone:
        return undo_migration(str(self.directory))

    def require_undone(self) -> None:
        """Database and backup are before the migration, and the next start continues."""
        assert differences(self.database, self.original) == []
        assert stat.S_IMODE(self.database.stat().st_mode) == 0o600
        found = told_by(self.url)
        assert [(change.version, change.kind) for change in found] == [
            (self.version, Kind.SNAPSHOT)
        ]
        assert read_state(str(self.directory)).restore_point is None
        log: list[str] = []
        replicator = Replicator(str(self.directory), log.append)
        replicator.db_write(self.version + 1, payment(self.version + 1).transaction or ())
        replicator.close()
        assert "Versions match up" in log
        left = [path.name for path in self.directory.iterdir() if path.name.startswith(".")]
        assert left == []


LOCAL = ["dir", "dir-encrypted", "file"]


@pytest.fixture(params=[*LOCAL, "socket", "socket-dir"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return PLACES[request.param](tmp_path)


@pytest.fixture
def node(url: str, tmp_path: Path) -> Node:
    return Node(tmp_path, url, BEFORE)


CUTS = range(1, len(MIGRATION) + 1)


@pytest.mark.parametrize("with_state", [True, False], ids=["noted", "derived"])
@pytest.mark.parametrize("cut", CUTS)
def test_cut_between_any_two_changes(tmp_path: Path, cut: int, *, with_state: bool) -> None:
    url = PLACES[("dir", "file", "dir-encrypted")[cut % 3]](tmp_path)
    node = Node(tmp_path, url, BEFORE)
    calls = MIGRATION[:cut]
    node.starts(calls, committed=cut)
    found = node.database.read_bytes()
    if not with_state:
        write_state(
            str(node.directory), read_state(str(node.directory))._replace(restore_point=None)
        )
    if not with_state and cut >= 5:  # the schema's version is in the history
        with pytest.raises(NotFound, match="no interrupted migration"):
            node.undo()
        assert node.database.read_bytes() == found
        assert told_by(url) == told([*BEFORE, *calls])
        return
    done = node.undo()
    assert (done.version, done.version_before) == (8, calls[-1].version)
    assert done.kept == f"{node.database}.before-undo-8"
    assert Path(done.kept, "lightningd.sqlite3").read_bytes() == found
    assert stat.S_IMODE(Path(done.kept).stat().st_mode) == 0o700
    assert done.earlier_history is not None
    kept_url = url_of(done.earlier_history) + url[len(url.partition("?")[0]) :]
    assert told_by(kept_url) == told([*BEFORE, *calls])
    node.require_undone()


@pytest.mark.parametrize("uncommitted", [1, 2])
def test_the_last_changes_were_not_committed(node: Node, uncommitted: int) -> None:
    node.starts(MIGRATION[:3], committed=3 - uncommitted)
    node.undo()
    node.require_undone()


def test_started_several_times_in_the_middle(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    node.starts([transaction(11, "CREATE TABLE again (x)")], committed=1)
    node.commits([*MIGRATION[:3], transaction(11, "CREATE TABLE again (x)")])
    assert node.undo().version == 8
    node.require_undone()


def test_the_migration_can_be_made_again_and_undone_again(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    first = node.undo()
    node.starts(MIGRATION[:4], committed=4)
    second = node.undo()
    assert {first.kept, second.kept} == {
        f"{node.database}.before-undo-8",
        f"{node.database}.before-undo-8-2",
    }
    node.starts(MIGRATION, committed=len(MIGRATION), comes_up=True)
    with open_reader(node.url) as reader:
        assert reader.version == 13
    with pytest.raises(NotFound):
        node.undo()


def test_a_journal_is_moved_away_with_the_database(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    done = node.undo()
    assert done.kept is not None
    names = os.listdir(done.kept)
    assert names == ["lightningd.sqlite3"]
    node.starts(MIGRATION[:3], committed=3)
    node.database.unlink()
    node.database.with_name("lightningd.sqlite3-wal").write_bytes(b"left over")
    done = node.undo()
    assert done.kept is not None
    assert "lightningd.sqlite3-wal" in os.listdir(done.kept)
    node.require_undone()


def test_a_kept_replica_is_built_again(node: Node) -> None:
    """It may be at a version and a number of changes that the new history will have, too."""
    replica_dir = node.directory / "backup.replica"
    replica_dir.mkdir(mode=0o700)
    node.starts(MIGRATION[:3], committed=3)
    with closing(KeptReplica.open(str(replica_dir))) as replica, open_reader(node.url) as reader:
        assert replica.catch_up(reader)
    state = read_state(str(node.directory))
    write_state(str(node.directory), state._replace(replica_dir=str(replica_dir)))
    node.undo()
    assert not replica_dir.exists()
    node.require_undone()


@pytest.mark.parametrize("url", ["dir", "dir-encrypted", "file"], indirect=True)
def test_restore_point_of_another_backup_at_this_place(node: Node, url: str) -> None:
    """It is dropped with a notice; the history itself tells where the migration begins."""
    node.starts(MIGRATION[:1], committed=1)
    point = read_state(str(node.directory)).restore_point
    assert point is not None
    place = Path(url.partition("://")[2].partition("?")[0])
    place.rename(place.with_name("former"))
    first = [*BEFORE[:-1], payment(8, "another"), payment(9)]
    other = [*first, transaction(10, "ALTER TABLE payments ADD a TEXT"), payment(11)]
    create_backend(url, None)
    append(url, other)
    node.database.unlink()
    build_database(node.database, other)
    if url.startswith("file:"):  # which has no digests: the place must be another one
        assert point.digest is None
        state = read_state(str(node.directory))
        point = point._replace(url=f"file://{place}-2")
        write_state(str(node.directory), state._replace(restore_point=point))
    said: list[str] = []
    done = undo_migration(str(node.directory), on_event=lambda event: said.append(event.text))
    assert done.version == 9
    assert "restore point at data version 8 was set in another backup" in said[0]
    build_database(node.directory / "expected.sqlite3", first)
    assert differences(node.database, node.directory / "expected.sqlite3") == []


def test_restore_point_names_its_history(node: Node) -> None:
    node.starts(MIGRATION[:2], committed=2)
    point = read_state(str(node.directory)).restore_point
    assert point is not None
    assert (point.version, point.changes) == (8, len(BEFORE))
    assert point.is_of(redacted(node.url))
    with open_reader(node.url) as reader:
        if point.position is not None:
            assert told(reader.stream_changes(after=point.position)) == told(MIGRATION[:2])
        assert (point.position is None) == (reader.standing.position.digest is None)


def test_restore_point_of_another_backup_is_replaced_at_a_start(node: Node) -> None:
    node.starts(MIGRATION[:1], committed=1)
    state = read_state(str(node.directory))
    assert state.restore_point is not None
    elsewhere = state.restore_point._replace(version=2, changes=1, url="dir:///elsewhere")
    write_state(str(node.directory), state._replace(restore_point=elsewhere))
    node.starts(MIGRATION[2:3], committed=1)
    point = read_state(str(node.directory)).restore_point
    assert point is not None
    assert point.version == 9
    assert point.is_of(redacted(node.url))


# Refusals


def _require_refused(node: Node, error: type[BackupError], match: str) -> None:
    before = node.database.read_bytes(), told_by(node.url)
    with pytest.raises(error, match=match):
        node.undo()
    assert (node.database.read_bytes(), told_by(node.url)) == before


def test_the_new_release_was_up(node: Node) -> None:
    node.starts(MIGRATION, committed=len(MIGRATION), comes_up=True)
    _require_refused(node, NotFound, "no interrupted migration")


def test_no_migration_at_all(node: Node) -> None:
    node.starts([transaction(9, SET)], committed=1)
    _require_refused(node, NotFound, "no interrupted migration")


def test_nothing_of_the_migration_was_committed(node: Node) -> None:
    node.starts(MIGRATION[:1], committed=0)
    _require_refused(node, NotFound, "Nothing to undo")


def test_the_node_ran_without_its_backup(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    node.commits([*MIGRATION[:3], *payments(11, 13)])
    _require_refused(node, Discontinuity, "ran without its backup")


def test_a_snapshot_was_taken_since(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    image = SnapshotBytes(node.database.read_bytes())
    append(node.url, [Change(10, image, None)])
    _require_refused(node, Discontinuity, "snapshot was taken")


def test_the_node_was_up_with_a_release_that_does_not_remove_the_restore_point(node: Node) -> None:
    calls = [*MIGRATION, *payments(14, 60)]
    node.starts(calls, committed=len(calls))
    assert read_state(str(node.directory)).restore_point is not None
    _require_refused(node, Discontinuity, "too many changes")


def test_a_rider_is_the_first_sign_in_the_history(node: Node) -> None:
    calls = [payment(9), rider(9, OFF), *MIGRATION[2:3]]
    node.starts(calls, committed=3)
    write_state(str(node.directory), read_state(str(node.directory))._replace(restore_point=None))
    _require_refused(node, Discontinuity, "unknown which change was the first")


def test_an_old_copy_was_put_back(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    build_database(node.directory / "old.sqlite3", BEFORE[:-2])
    os.replace(node.directory / "old.sqlite3", node.database)
    _require_refused(node, Discontinuity, "older than the migration")


def test_a_new_node_has_nothing_to_go_back_to(url: str, tmp_path: Path) -> None:
    create_backend(url, None)
    append(url, started_node()[:3])
    create_settings(str(tmp_path), Settings(url))
    with pytest.raises(NotFound):
        undo_migration(str(tmp_path))


def test_a_new_node_that_was_started_again_in_the_middle(url: str, tmp_path: Path) -> None:
    node = Node(tmp_path, url, started_node()[:1])
    node.starts([rider(1, OFF), started_node()[2]], committed=2)
    assert read_state(str(node.directory)).restore_point is not None
    _require_refused(node, NotFound, "node was new")


def test_a_node_that_runs(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    with open_writer(node.url):
        _require_refused(node, WriterConflict, "is being written by")
    held, holds = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with nodes_kept_out(str(node.directory.parent / "lightningd-regtest.pid"), 60):
                os.write(holds, b"1")
                signal.pause()
        finally:
            os._exit(1)
    os.close(holds)
    try:
        assert os.read(held, 1) == b"1"
        _require_refused(node, NodeRunning, "is running")
    finally:
        os.close(held)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    node.undo()
    node.require_undone()


# Compactions


@pytest.mark.parametrize("url", LOCAL, indirect=True)
@pytest.mark.parametrize("cut", CUTS)
def test_a_compaction_leaves_the_way_back(node: Node, cut: int) -> None:
    """Until the schema's version is written; the first change alone does not end the way back."""
    node.starts(MIGRATION[:cut], committed=cut)
    before = told_by(node.url)
    if cut in (2, 3, 4):
        with pytest.raises(MigrationOpen) as caught:
            compact(node.url, if_it_pays=True)
        assert caught.value.version == 8
        assert told_by(node.url) == before
    else:
        compact(node.url, if_it_pays=True)
    if cut < 5:
        node.undo()
        node.require_undone()


@pytest.mark.parametrize("url", LOCAL, indirect=True)
def test_a_compaction_by_force_folds_it(node: Node) -> None:
    node.starts(MIGRATION[:3], committed=3)
    compact(node.url)
    _require_refused(node, NotFound, "does not go back to data version 8")


def _finish(compactor: Compactor) -> None:
    while compactor.step() is None:
        pass


@pytest.mark.parametrize("url", LOCAL, indirect=True)
def test_a_compaction_beside_a_node_leaves_the_way_back(node: Node) -> None:
    append(node.url, MIGRATION[:4])
    with open_writer(node.url) as writer:
        compactor = Compactor(writer, if_it_pays=True)
        with pytest.raises(MigrationOpen):
            _finish(compactor)
        compactor.close()
        compactor.wait()
    with open_reader(node.url) as reader, pytest.raises(MigrationOpen):
        require_no_migration(reader)


# Killed at each step

_CALLS = ("fsync", "fdatasync", "link", "rename", "replace", "unlink", "mkdir", "rmdir")


def _dies_in_step(directory: Path, step: int) -> bool:
    """Runs an undo in a process that is killed before its step N; returns whether it was."""
    pid = os.fork()
    if pid == 0:
        left = [step]

        def before(function: object) -> object:
            def run(*args: object, **options: object) -> object:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*args, **options)  # type: ignore[operator]

            return run

        for name in _CALLS:
            setattr(os, name, before(getattr(os, name)))
        code = 1
        try:
            undo_migration(str(directory))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _wait_for_the_server(url: str) -> None:
    """Until it has noticed that a client was killed."""
    if url.startswith("socket:"):
        served = server().served(url)
        wait_until(lambda: served.writer_peer() is None, "the server holds a dead connection")


@pytest.mark.parametrize("kind", ["dir", "file", "socket"])
def test_killed_at_every_step(kind: str, memory_path: Path) -> None:
    """Also the second attempt, at the same step; the third one completes the work."""
    step = 0
    while True:
        base = memory_path / str(step)
        (base / "place").mkdir(parents=True)
        node = Node(base, PLACES[kind](base / "place"), BEFORE)
        node.starts(MIGRATION[:4], committed=4)
        found = node.database.read_bytes()
        if not _dies_in_step(node.directory, step):
            break
        _wait_for_the_server(node.url)
        if node.database.exists():
            is_found = node.database.read_bytes() == found
            assert is_found or differences(node.database, node.original) == []
        assert told_by(node.url)[-1].version in (8, 10)
        if node.is_open():
            _dies_in_step(node.directory, step)
            _wait_for_the_server(node.url)
        if node.is_open():
            node.undo()
        with scratch.directory(str(node.directory), op="undo"):
            pass  # as the next start, it removes what a process left that was killed at its end
        node.require_undone()
        kept = node.directory / "lightningd.sqlite3.before-undo-8" / "lightningd.sqlite3"
        assert kept.read_bytes() == found
        step += 1 if SOAK else 4
    assert step > (10 if kind == "socket" else 20)  # the server's own steps are not killed here


# The recordings of real nodes

RECORDED = {
    "channel_htlcs-pre-pagination": 1,
    "dangling-peer": 7,
    "invoices_pre_waitindex": 1,
    "l1-before-moves-in-db": 1,
    "last_tx_closed": 7,
    "oldstyle-scids": 7,
    "upgrade_inflight": 7,
    "v0.12.1-forward": 5,
}
"""Each recorded migration with the number of its calls."""


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        (name, cut)
        for name, calls in RECORDED.items()
        for cut in range(1, calls + 1)
        if SOAK or cut in {1, 3, calls}
    ],
)
def test_recorded_migration_cut_between_any_two_changes(
    large_captures: Path, tmp_path: Path, name: str, cut: int
) -> None:
    folder = large_captures / "migrations" / name
    calls = list(captured.changes(folder / "writes.jsonl.xz"))
    assert len(calls) == RECORDED[name]
    before = captured.unpacked(folder / "before.sqlite3.xz", tmp_path / "before.sqlite3")
    version = calls[0].version - 1
    url = PLACES[("dir", "file", "dir-encrypted")[(cut + len(name)) % 3]](tmp_path)
    node = Node(tmp_path, url, [Change(version, SnapshotBytes(before.read_bytes()), None)])
    node.starts(calls[:cut], committed=cut)
    assert node.undo().version == version
    assert differences(node.database, before) == []
    node.starts(calls, committed=len(calls), comes_up=True)
    recorded = captured.unpacked(folder / "after.sqlite3.xz", tmp_path / "after.sqlite3")
    assert differences(node.database, recorded) == []
    assert [change.version for change in told_by(url)] == [version, *(c.version for c in calls)]
