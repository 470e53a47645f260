from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    BadSettings,
    BadUrl,
    Discontinuity,
    NodeRunning,
    NotFound,
    StorageError,
    WriterConflict,
)
from cln_backup.node import settings
from cln_backup.operations.initialize import Appended, Initialized, initialize, take_snapshot
from cln_backup.operations.restore import restore
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    database,
    payment,
    payments,
    rider,
    started_node,
    told_by,
    transaction,
)
from tests.operations.neighbours import holding, listening, locking

if TYPE_CHECKING:
    from cln_backup.backends.events import Event

HISTORY = [*started_node(), *payments(4, 9)]


class Node:
    """A node's directories, stopped, and a place for its backup."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.directory = base / "lightning" / "regtest"
        self.directory.mkdir(parents=True)
        self.database = self.directory / "lightningd.sqlite3"
        self.backups = base / "backups"
        self.backups.mkdir()
        self.url = f"file://{self.backups}/node.bkp"

    def init(self, wallet: str | None = None) -> Initialized:
        return initialize(self.url, str(self.directory), wallet)

    def snapshot(self) -> tuple[Appended, list[str]]:
        events: list[Event] = []
        done = take_snapshot(str(self.directory), on_event=events.append)
        return done, [event.text for event in events]

    def restored(self) -> Path:
        target = self.base / "restored.sqlite3"
        target.unlink(missing_ok=True)
        with open_reader(self.url) as backend:
            restore(backend, str(target))
        return target

    def names(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the disk, whose file system is what is tested."""
    return tmp_path_factory.mktemp("test")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def old(node: Node) -> Node:
    """A node that has run for a while."""
    build_database(node.database, HISTORY)
    return node


def test_node_that_has_run_begins_with_a_snapshot(old: Node) -> None:
    done = old.init()
    assert done.database == str(old.database)
    assert done.version == 8
    assert done.snapshot_bytes == old.database.stat().st_size
    assert_same_database(old.restored(), old.database)
    assert old.names() == {"lightningd.sqlite3", "backup.lock"}
    assert settings.read_settings(str(old.directory)) == settings.Settings(old.url)
    append(old.url, [payment(9)])
    expected = build_database(old.base / "expected", [*HISTORY, payment(9)])
    assert_same_database(old.restored(), expected)


@pytest.mark.parametrize("size", [None, 0])
def test_new_node_begins_with_an_empty_backup(node: Node, size: int | None) -> None:
    """SQLite takes a file of no bytes for a database without tables."""
    if size is not None:
        node.database.touch()
    assert node.init()[:3] == (None, 0, 0)
    assert told_by(node.url) == []
    append(node.url, HISTORY)
    assert_same_database(node.restored(), build_database(node.base / "expected", HISTORY))


def test_backup_alone_needs_no_node(node: Node) -> None:
    assert initialize(node.url, None)[:3] == (None, 0, 0)
    assert node.names() == set()
    assert told_by(node.url) == []


def test_lock_file_is_what_the_incumbent_reads(old: Node) -> None:
    import json

    old.init()
    lock = old.directory / "backup.lock"
    assert json.loads(lock.read_text()) == {"backend_url": old.url}
    assert lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["node.bkp", "backup.lock", "broken link", "broken lock link"])
def test_nothing_is_ever_overwritten(old: Node, what: str) -> None:
    backup, lock = old.backups / "node.bkp", old.directory / "backup.lock"
    if what == "broken link":
        backup.symlink_to(old.base / "nowhere")
    elif what == "broken lock link":
        lock.symlink_to(old.base / "nowhere")
    else:
        (backup if what == "node.bkp" else lock).write_text("mine")
    with pytest.raises(BackupError):
        old.init()
    assert not (old.base / "nowhere").exists()
    taken = lock if "lock" in what else backup
    assert taken.is_symlink() or taken.read_text() == "mine"
    other = backup if "lock" in what else lock
    assert not os.path.lexists(other)


def test_backup_that_is_there_already_is_not_begun_again(old: Node) -> None:
    create_backend(old.url, None)
    append(old.url, HISTORY)
    before = told_by(old.url)
    with pytest.raises(AlreadyExists):
        old.init()
    assert told_by(old.url) == before
    assert old.names() == {"lightningd.sqlite3"}


def test_second_init_is_refused(old: Node) -> None:
    old.init()
    before = told_by(old.url)
    with pytest.raises(AlreadyExists):
        old.init()
    with pytest.raises(AlreadyExists):
        initialize(f"file://{old.backups}/another.bkp", str(old.directory))
    assert told_by(old.url) == before
    assert not (old.backups / "another.bkp").exists()


def test_directory_above_is_told_from_the_network_directory(old: Node) -> None:
    with pytest.raises(NotFound, match="regtest"):
        initialize(old.url, str(old.directory.parent))
    assert not (old.backups / "node.bkp").exists()


@pytest.mark.parametrize("url", ["nonsense", "file://", "sftp://there", "file:///no/such/place/b"])
def test_bad_place_leaves_nothing(old: Node, url: str) -> None:
    with pytest.raises((BadUrl, StorageError, NotFound)):
        initialize(url, str(old.directory))
    assert old.names() == {"lightningd.sqlite3"}


def test_missing_directory_is_not_made(node: Node) -> None:
    with pytest.raises(NotFound):
        initialize(node.url, str(node.base / "none"))
    assert not (node.base / "none").exists()
    assert list(node.backups.iterdir()) == []


def test_lock_file_that_cannot_be_written_leaves_nothing(
    old: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next `init` would find a finished backup, and refuse."""
    from cln_backup.storage import fsio

    def failing(path: str, content: bytes, *, op: str, new: bool = False) -> None:
        raise StorageError(f"Cannot {op} {path} {len(content)} {new}")

    with monkeypatch.context() as patch:
        patch.setattr(fsio, "write_file", failing)
        with pytest.raises(StorageError, match=r"backup\.lock"):
            old.init()
    assert old.names() == {"lightningd.sqlite3"}
    assert list(old.backups.iterdir()) == []
    old.init()
    assert_same_database(old.restored(), old.database)


def test_same_disk_is_noticed(old: Node, memory_path: Path) -> None:
    assert old.init().same_disk
    if memory_path.stat().st_dev == old.base.stat().st_dev:
        pytest.skip("this machine has one disk only")
    (old.directory / "backup.lock").unlink()
    assert not initialize(f"file://{memory_path}/node.bkp", str(old.directory)).same_disk


_RUNNING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("done", flush=True)
sys.stdin.read()
"""


def _killed_after(path: Path, *statements: str) -> None:
    """Leaves a database as a process does that was killed after these statements."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RUNNING, str(path), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


_MANY = "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"


def test_hot_journal_is_played_back_into_the_snapshot(old: Node) -> None:
    """The node was killed in a transaction that had spilled its cache into the database."""
    expected = Path(shutil.copy(old.database, old.base / "expected.sqlite3"))
    _killed_after(
        old.database,
        "PRAGMA cache_size = 2",
        "BEGIN",
        f"INSERT INTO payments {_MANY} SELECT i, hex(randomblob(200)) FROM n",
    )
    assert (old.directory / "lightningd.sqlite3-journal").stat().st_size > 0
    assert old.database.stat().st_size > expected.stat().st_size
    assert old.init().version == 8
    assert_same_database(old.restored(), expected)
    assert_same_database(old.database, expected)


@pytest.mark.parametrize("committed", [True, False])
def test_wal_is_part_of_the_snapshot(old: Node, committed: bool) -> None:
    """As beside an older Litestream."""
    expected = Path(shutil.copy(old.database, old.base / "expected.sqlite3"))
    write = "INSERT INTO payments VALUES (99, 'in the log')"
    with database(expected) as connection:
        if committed:
            connection.execute(write)
    _killed_after(
        old.database,
        "PRAGMA journal_mode = WAL",
        "PRAGMA wal_autocheckpoint = 0",
        "BEGIN",
        write,
        "COMMIT" if committed else "SELECT 1",
    )
    assert (old.directory / "lightningd.sqlite3-wal").exists()
    assert old.init().version == 8
    assert_same_database(old.restored(), expected)
    append(old.url, [payment(9)])
    with database(expected) as connection:
        for statement in payment(9).transaction or ():
            connection.execute(statement)
    restored = old.restored()
    assert_same_database(restored, expected)
    assert {path.name for path in old.base.glob("restored*")} == {"restored.sqlite3"}


@pytest.mark.parametrize(
    "wallet",
    ["{elsewhere}/wallet.sqlite3", "sqlite3://{elsewhere}/wallet.sqlite3",
     "sqlite3://{elsewhere}/wallet.sqlite3:{elsewhere}/copy.sqlite3", "own.sqlite3"],
)  # fmt: skip
def test_wallet_elsewhere(node: Node, wallet: str) -> None:
    elsewhere = node.base / "elsewhere"
    elsewhere.mkdir()
    place = (node.directory if wallet == "own.sqlite3" else elsewhere) / wallet.rpartition("/")[2]
    if "copy" in wallet:
        place = elsewhere / "wallet.sqlite3"
    build_database(place, HISTORY)
    wallet = wallet.format(elsewhere=elsewhere)
    done = node.init(wallet)
    assert done.version == 8
    assert settings.read_settings(str(node.directory)).wallet == wallet
    assert_same_database(node.restored(), place)
    with database(place) as connection:
        for statement in payment(9).transaction or ():
            connection.execute(statement)
    appended, _ = node.snapshot()
    assert appended.version == 9
    assert_same_database(node.restored(), place)


def test_wallet_that_is_not_there_yet(node: Node) -> None:
    done = node.init("sqlite3://" + str(node.base / "later.sqlite3"))
    assert done.database is None
    (node.directory / "backup.lock").unlink()
    with pytest.raises(NotFound):
        node.init(str(node.base / "no" / "such" / "directory" / "later.sqlite3"))


OLD_SCHEMAS = {
    "no vars": ["CREATE TABLE outputs (x)", "INSERT INTO outputs VALUES (1)"],
    "no intval": ["CREATE TABLE vars (name, val)", "INSERT INTO vars VALUES ('a', 'b')"],
    "no data_version": [
        "CREATE TABLE vars (name, val, intval)",
        "INSERT INTO vars VALUES ('a', 'b', 7)",
    ],
    "data_version is NULL": [
        "CREATE TABLE vars (name, val, intval)",
        "INSERT INTO vars VALUES ('data_version', 'b', NULL)",
    ],
    "data_version is text": [
        "CREATE TABLE vars (name, val, intval)",
        "INSERT INTO vars VALUES ('data_version', 'b', 'x')",
    ],
    "no tables": ["PRAGMA user_version = 3"],
}


@pytest.mark.parametrize("name", OLD_SCHEMAS)
def test_database_that_names_no_version(node: Node, name: str) -> None:
    with database(node.database) as connection:
        for statement in OLD_SCHEMAS[name]:
            connection.execute(statement)
    assert node.init().version == 0
    assert_same_database(node.restored(), node.database)


@pytest.mark.parametrize("content", [b"not a database, but a text", b"SQLite format 3\0" * 300])
def test_file_that_is_no_database(node: Node, content: bytes) -> None:
    node.database.write_bytes(content)
    with pytest.raises((NotFound, StorageError)):
        node.init()
    assert list(node.backups.iterdir()) == []
    assert node.names() == {"lightningd.sqlite3"}
    assert node.database.read_bytes() == content


def test_damaged_database_is_not_taken_for_a_backup(node: Node) -> None:
    build_database(node.database, [*HISTORY, *payments(9, 300)])
    content = bytearray(node.database.read_bytes())
    half = len(content) // 2
    content[half : half + 4096] = b"\xff" * 4096
    node.database.write_bytes(content)
    with pytest.raises(StorageError):
        node.init()
    assert list(node.backups.iterdir()) == []
    assert node.names() == {"lightningd.sqlite3"}


def test_running_node_is_noticed_by_its_socket(old: Node) -> None:
    with listening(old.directory / "lightning-rpc"), pytest.raises(NodeRunning):
        old.init()
    assert old.names() == {"lightningd.sqlite3", "lightning-rpc"}
    assert list(old.backups.iterdir()) == []
    old.init()  # a socket without a listener


@pytest.mark.parametrize("place", ["above", "inside"])
def test_running_node_is_noticed_by_its_pid_file(old: Node, place: str) -> None:
    directory = old.directory if place == "inside" else old.directory.parent
    pid_file = directory / "lightningd-regtest.pid"
    with locking(pid_file) as process, pytest.raises(NodeRunning, match=str(process.pid)):
        old.init()
    assert list(old.backups.iterdir()) == []
    assert pid_file.exists()
    old.init()


def test_running_node_is_noticed_by_its_database(old: Node) -> None:
    """Its pid file may be anywhere, and its socket is not there yet while it migrates."""
    with holding(old.database) as process, pytest.raises(NodeRunning, match=str(process.pid)):
        old.init()
    old.init()


def test_running_node_is_noticed_before_a_snapshot(old: Node) -> None:
    old.init()
    before = told_by(old.url)
    with listening(old.directory / "lightning-rpc"), pytest.raises(NodeRunning):
        old.snapshot()
    assert told_by(old.url) == before


def test_long_directory_name_is_no_running_node(tmp_path: Path) -> None:
    """A socket's path may have 107 bytes only."""
    node = Node(tmp_path / ("x" * 80) / ("y" * 60))
    build_database(node.database, HISTORY)
    assert node.init().version == 8
    (node.directory / "backup.lock").unlink()
    with pytest.raises(NodeRunning), listening(node.directory / "lightning-rpc"):
        initialize(f"file://{node.backups}/other.bkp", str(node.directory))


def test_snapshot_after_the_node_ran_without_its_backup(old: Node) -> None:
    old.init()
    append(old.url, payments(9, 11))
    missed = [*HISTORY, *payments(9, 15)]
    old.database.unlink()
    build_database(old.database, missed)
    before = told_by(old.url)
    done, notices = old.snapshot()
    assert done.version == 14
    assert notices == []
    assert told_by(old.url)[:-1] == before
    assert_same_database(old.restored(), old.database)
    append(old.url, [payment(15)])
    expected = build_database(old.base / "expected", [*missed, payment(15)])
    assert_same_database(old.restored(), expected)


def test_snapshot_where_nothing_was_missed(old: Node) -> None:
    old.init()
    assert old.snapshot()[0].version == 8
    assert_same_database(old.restored(), old.database)


def test_snapshot_of_an_older_database_is_refused(old: Node) -> None:
    old.init()
    append(old.url, payments(9, 11))
    before = told_by(old.url)
    with pytest.raises(Discontinuity):
        old.snapshot()
    assert told_by(old.url) == before


def test_snapshot_with_a_writer_at_work_is_refused(old: Node) -> None:
    old.init()
    with open_writer(old.url), pytest.raises(WriterConflict):
        old.snapshot()


def test_snapshot_tells_what_was_mended(old: Node) -> None:
    old.init()
    path = old.backups / "node.bkp"
    path.write_bytes(path.read_bytes() + b"torn")
    _, notices = old.snapshot()
    assert notices


def test_snapshot_without_a_lock_file(old: Node) -> None:
    with pytest.raises(BadSettings, match=r"backup\.lock"):
        old.snapshot()


def test_snapshot_without_a_database(node: Node) -> None:
    node.init()
    with pytest.raises(NotFound):
        node.snapshot()


def test_snapshot_ends_a_migration_that_was_cut(node: Node) -> None:
    """Foreign keys are on again in the process that comes after the snapshot."""
    node.init()
    append(node.url, [*started_node(), rider(3)])
    build_database(node.database, [*started_node(), payment(4)])
    node.snapshot()
    with open_reader(node.url) as backend:
        assert backend.standing.head is not None
        assert backend.standing.head.foreign_keys
    append(node.url, [payment(5)])
    node.restored()


def test_snapshot_of_a_database_that_is_locked_says_so(old: Node) -> None:
    lock = sqlite3.connect(old.database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises((StorageError, NodeRunning)):
            old.init()
    finally:
        lock.close()
    assert list(old.backups.iterdir()) == []
    assert old.names() == {"lightningd.sqlite3"}


def test_another_nodes_backup_is_refused(tmp_path: Path) -> None:
    first, second = Node(tmp_path / "first"), Node(tmp_path / "second")
    for number, node in enumerate((first, second)):
        name = f"INSERT INTO vars (name, blobval) VALUES ('node_id', x'02{number:02}')"
        build_database(node.database, [*HISTORY, transaction(9, name)])
    first.init()
    first.snapshot()
    lock = first.directory / "backup.lock"
    shutil.copy(lock, second.directory / "backup.lock")
    before = told_by(first.url)
    with pytest.raises(Discontinuity):
        second.snapshot()
    assert told_by(first.url) == before
    first.snapshot()
