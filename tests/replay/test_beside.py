"""The comparison beside a running node: every state of both, and never in the node's way."""

from __future__ import annotations

import mmap
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import apsw
import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.errors import StorageError
from cln_backup.replay import pieces
from cln_backup.replay.beside import Beside, Lagging, ReplicaAt
from cln_backup.replay.content import Difference
from cln_backup.replay.kept import KeptReplica
from tests.histories import payment, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Reader
    from cln_backup.model.change import Change
    from cln_backup.replay.content import Comparison

TABLES = (
    "CREATE TABLE vars (name TEXT, val TEXT, intval INTEGER, blobval BLOB, PRIMARY KEY (name))",
    "INSERT INTO vars (name, intval) VALUES ('data_version', 0)",
    "INSERT INTO vars (name, intval) VALUES ('sum', 0)",
    "CREATE TABLE payments (version INTEGER PRIMARY KEY, description TEXT)",
    "CREATE TABLE outputs (txid BLOB, number INTEGER, value, PRIMARY KEY (txid, number))",
    "CREATE TABLE events (what TEXT, at INTEGER)",
    "CREATE TABLE blocks (height INTEGER, hash BLOB, UNIQUE (height))",
    "CREATE TABLE sorted (a TEXT, b INTEGER, c, PRIMARY KEY (a, b)) WITHOUT ROWID",
)


def busy(version: int, chance: random.Random) -> Change:
    """A transaction that adds, changes and removes rows in each kind of table."""
    some = chance.randrange(40)
    return transaction(
        version,
        f"INSERT INTO payments VALUES ({version}, 'payment {version}')",
        f"UPDATE payments SET description = 'again {version}' WHERE version % 7 = {some % 7}",
        f"DELETE FROM payments WHERE version = {some}",
        f"INSERT OR REPLACE INTO outputs VALUES (x'{some:02x}', {some % 3}, {version}.5)",
        f"DELETE FROM outputs WHERE number = {some}",
        f"INSERT INTO events VALUES ('seen', {some}), ('seen', {some}), (CAST(x'ff' AS TEXT), 1)",
        f"DELETE FROM events WHERE at = {(some * 7) % 40}",
        f"INSERT OR IGNORE INTO blocks VALUES ({some}, x'{version:08x}')",
        f"DELETE FROM blocks WHERE height > {some}",
        f"INSERT OR REPLACE INTO sorted VALUES ('{some % 5}', {some}, NULL)",
        f"UPDATE vars SET intval = intval + {some} WHERE name = 'sum'",
    )


class Node:
    """A node and its backup; each change is answered first, and committed later."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.path = directory / "lightningd.sqlite3"
        self.database = apsw.Connection(str(self.path))
        self.backup = open_writer(url)
        self.answered: Change | None = None
        self.answer(transaction(1, *TABLES))
        self.commit()

    @property
    def version(self) -> int:
        return self.backup.version

    def answer(self, change: Change) -> None:
        self.backup.add_change(change)
        self.answered = change

    def commit(self) -> None:
        assert self.answered is not None
        for statement in ("BEGIN", *(self.answered.transaction or ()), "COMMIT"):
            self.database.execute(statement)
        self.answered = None

    def do(self, change: Change) -> None:
        self.answer(change)
        self.commit()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    url = f"dir://{tmp_path}/backup"
    create_backend(url, None)
    node = Node(url, tmp_path)
    yield node
    node.backup.close()
    node.database.close()


@pytest.fixture
def reader(node: Node) -> Iterator[Reader]:
    with open_reader(node.url) as reader:
        yield reader


@pytest.fixture
def replica(tmp_path: Path, reader: Reader) -> Iterator[KeptReplica]:
    replica = KeptReplica.open(str(tmp_path / "backup.replica"))
    replica.catch_up(reader)
    yield replica
    replica.close()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ROWS", 5)
    monkeypatch.setattr(pieces, "WHOLE_PIECES", 100)


def compared(
    node: Node,
    replica: KeptReplica,
    reader: Reader,
    between: Callable[[], object] = lambda: None,
) -> Comparison:
    beside, at = Beside(str(node.path)), ReplicaAt(replica, reader)
    try:
        while beside.step(at):
            between()
        return beside.result
    finally:
        beside.close()


def _life(
    node: Node, seed: int, change: Callable[[int, random.Random], Change] = busy
) -> Callable[[], None]:
    """Nothing, an answer, a commit, or several of both."""
    chance = random.Random(seed)

    def go_on() -> None:
        for _ in range(chance.choice((0, 0, 1, 2, 3))):
            if node.answered is None:
                node.answer(change(node.version + 1, chance))
            else:
                node.commit()

    return go_on


@pytest.mark.parametrize("seed", range(4))
def test_running_node_is_the_same_as_its_backup(
    seed: int, node: Node, replica: KeptReplica, reader: Reader
) -> None:
    """The node answers and commits between any two pieces; rows move, vanish and come again."""
    chance = random.Random(seed)
    for version in range(2, 60):
        node.do(busy(version, chance))
    life, begun = _life(node, seed), node.version

    def between() -> None:
        life()
        if chance.random() < 0.3:  # the follower goes on, too
            reader.wait_for_more(0)
            replica.catch_up(reader)

    result = compared(node, replica, reader, between)
    assert result == ((), ("vars", "blocks", "events", "outputs", "payments", "sorted"), ())
    assert node.version > begun + 5


_PLANTED = [
    ("UPDATE payments SET description = 'x' WHERE version = 30", "payments", "1 row differs"),
    ("DELETE FROM payments WHERE version < 41", "payments", "rows are missing in the database"),
    ("INSERT INTO payments VALUES (-1, 'x')", "payments", "1 row is missing in the backup"),
    ("DELETE FROM payments WHERE version > 50", "payments", "rows are missing in the database"),
    (
        "UPDATE outputs SET value = 'x' WHERE number = 2 AND txid = x'FF'",
        "outputs",
        "1 row differs",
    ),
    ("DELETE FROM outputs WHERE txid = x'FF'", "outputs", "1 row is missing in the database"),
    ("INSERT INTO events VALUES ('kept', 99)", "events", "1 row is missing in the backup"),
    ("DELETE FROM events WHERE at = 77", "events", "1 row is missing in the database"),
    ("UPDATE events SET at = '88' WHERE at = 88", "events", None),
    ("UPDATE events SET what = NULL WHERE at = 77", "events", "1 row is missing in the database"),
    ("UPDATE blocks SET hash = 'text' WHERE height = 0", "blocks", "1 row differs"),
    ("UPDATE sorted SET c = '' WHERE a = 'z'", "sorted", "1 row differs"),
    ("UPDATE vars SET val = 'x' WHERE name = 'sum'", "vars", "1 row differs"),
    ("CREATE INDEX mine ON events (at)", "events", "the index mine is missing in the backup"),
]


@pytest.mark.parametrize(("statement", "table", "detail"), _PLANTED)
def test_difference_is_found_beside_a_running_node(
    statement: str, table: str, detail: str | None, node: Node, replica: KeptReplica, reader: Reader
) -> None:
    chance = random.Random(1)
    for version in range(2, 60):
        node.do(busy(version, chance))
    node.do(
        transaction(
            node.version + 1,
            "INSERT INTO outputs VALUES (x'FF', 2, 1)",
            "INSERT INTO events VALUES ('kept', 77), ('kept', 88)",
            "INSERT OR IGNORE INTO blocks VALUES (0, x'00')",
            "INSERT INTO sorted VALUES ('z', 1, NULL)",
        )
    )
    node.database.execute(statement)
    life = _life(node, 2, lambda version, _chance: payment(version))
    result = compared(node, replica, reader, lambda: node.version < 75 and life())
    found = [one for one in result.differences if one.table == table]
    assert len(result.differences) == len(found) == (0 if detail is None else 1)
    assert not result.left
    for one in found:
        assert detail is not None
        assert detail in one.detail
        assert one.is_index == ("INDEX" in statement)


def _vacuum(node: Node) -> None:
    node.database.execute("VACUUM")


def _turn(node: Node) -> None:
    for table in ("events", "outputs", "blocks", "vars"):
        node.database.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table}")
        node.database.execute(f"DELETE FROM {table}")
        node.database.execute(f"INSERT INTO {table} SELECT * FROM kept ORDER BY rowid DESC")
        node.database.execute("DROP TABLE kept")


def _wal(node: Node) -> None:
    node.database.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("change", [_vacuum, _turn, _wal])
def test_innocent_differences_are_none_beside_a_running_node(
    change: Callable[[Node], None], node: Node, replica: KeptReplica, reader: Reader
) -> None:
    chance = random.Random(3)
    for version in range(2, 50):
        node.do(busy(version, chance))
    change(node)
    result = compared(node, replica, reader, _life(node, 4))
    assert result == ((), ("vars", "blocks", "events", "outputs", "payments", "sorted"), ())


def test_table_that_has_neither_order_nor_key_is_left_if_it_is_large(
    node: Node, replica: KeptReplica, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "WHOLE_PIECES", 10)
    rows = ", ".join(f"('seen', {number})" for number in range(60))
    node.do(transaction(2, f"INSERT INTO events VALUES {rows}"))
    _turn(node)
    result = compared(node, replica, reader)
    assert result.left == ("events",)
    assert not result.differences


def test_keys_that_are_null_are_not_unique(
    node: Node, replica: KeptReplica, reader: Reader
) -> None:
    """SQLite accepts NULL in a primary key, any number of times."""
    rows = ", ".join(f"(NULL, 1, {number})" for number in range(12))
    node.do(transaction(2, f"INSERT INTO outputs VALUES {rows}"))
    _turn(node)
    assert compared(node, replica, reader).differences == ()
    node.database.execute("DELETE FROM outputs WHERE value = 7")
    [difference] = compared(node, replica, reader).differences
    assert difference == Difference("outputs", "1 row is missing in the database")


def test_head_that_was_dropped_and_replaced_is_not_a_difference(
    node: Node, replica: KeptReplica, reader: Reader
) -> None:
    """The node died before it committed; its next start sent other statements."""
    node.answer(payment(2, "never committed"))
    reader.wait_for_more(0)
    replica.catch_up(reader)
    assert replica.version == 2
    node.backup.rewind()
    node.do(payment(2, "committed"))
    assert compared(node, replica, reader).differences == ()


def test_node_of_which_the_backup_lags_is_not_compared(
    node: Node, replica: KeptReplica, reader: Reader
) -> None:
    beside, at = Beside(str(node.path)), ReplicaAt(replica, reader)
    node.database.execute("UPDATE vars SET intval = 2 WHERE name = 'data_version'")
    for _ in range(2):
        with pytest.raises(Lagging, match="version 2, but the backup at 1"):
            beside.step(at)
    node.database.execute("UPDATE vars SET intval = 1 WHERE name = 'data_version'")
    while beside.step(at):
        pass
    assert beside.result.differences == ()
    beside.close()


def test_schema_that_changes_meanwhile_makes_it_begin_again(
    node: Node, replica: KeptReplica, reader: Reader
) -> None:
    changes = [
        transaction(2, "ALTER TABLE events ADD COLUMN more INTEGER DEFAULT 5"),
        transaction(3, "DROP TABLE outputs"),
    ]

    def between() -> None:
        if changes:
            node.do(changes.pop(0))

    result = compared(node, replica, reader, between)
    assert result == ((), ("vars", "blocks", "events", "payments", "sorted"), ())


def test_locked_database_is_tried_again_later(
    node: Node, replica: KeptReplica, reader: Reader
) -> None:
    beside, at = Beside(str(node.path)), ReplicaAt(replica, reader)
    node.database.execute("BEGIN EXCLUSIVE")
    assert beside.step(at)
    assert (beside.is_locked, beside.pieces) == (True, 0)
    node.database.execute("COMMIT")
    assert beside.step(at)
    assert (beside.is_locked, beside.pieces) == (False, 1)
    while beside.step(at):
        node.database.execute("BEGIN EXCLUSIVE")  # no lock is held between two steps
        node.database.execute("COMMIT")
    assert beside.result.differences == ()
    beside.close()
    beside = Beside(str(node.path), locked_for_s=-1)
    node.database.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="has been locked"):
        beside.step(at)
    node.database.execute("COMMIT")
    beside.close()


def test_node_never_waits_for_more_than_one_piece(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that commits all the time; both make progress."""
    monkeypatch.setattr(pieces, "PIECE_ROWS", 50)
    rows = ", ".join(f"('{'x' * 50}', {number})" for number in range(400))
    node.do(transaction(2, f"INSERT INTO events VALUES {rows}"))
    node.database.close()
    node.backup.close()
    counter = tmp_path / "pieces"
    counter.write_bytes(bytes(8))
    with (
        counter.open("r+b") as file,
        open_reader(node.url) as reader,
        subprocess.Popen(
            [sys.executable, "-m", "tests.replay.writing_node", node.url, node.path, counter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as writer,
    ):
        shared = mmap.mmap(file.fileno(), 8)
        replica = KeptReplica.open(str(tmp_path / "backup.replica"))
        done = versions = 0
        while done < 100 or versions < 20:
            beside, at = Beside(str(node.path)), ReplicaAt(replica, reader)
            while beside.step(at):
                shared[:] = (done + beside.pieces).to_bytes(8, "big")
                time.sleep(0.005)  # as a follower does, and so that the node can try meanwhile
            assert beside.result.differences == ()
            done += beside.pieces
            versions = replica.version
            beside.close()
        out, _ = writer.communicate("stop\n")
        replica.close()
    version, most = map(int, out.split())
    assert version >= versions
    assert most <= 2
    node.backup = open_writer(node.url)


def test_pieces_are_bounded(
    node: Node, replica: KeptReplica, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows, and by time: then each piece has one row, and SQLite itself stops a search."""
    rows = ", ".join(f"({number}, 'x')" for number in range(20))
    node.do(transaction(2, f"INSERT INTO payments VALUES {rows}"))
    sizes: list[int] = []
    read = pieces.Way._bounded_once

    def counting(self: pieces.Way, *arguments: object) -> pieces.Piece:
        piece = read(self, *arguments)  # type: ignore[arg-type]
        sizes.append(len(piece.rows))
        return piece

    monkeypatch.setattr(pieces.Way, "_bounded_once", counting)
    assert compared(node, replica, reader).differences == ()
    assert max(sizes) == 5
    sizes.clear()
    monkeypatch.setattr(pieces, "PIECE_S", 0.0)
    assert compared(node, replica, reader).differences == ()
    assert max(sizes) == 1
