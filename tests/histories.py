"""Small histories of a node, their databases, and what a backup says about them.

Each transaction writes so that a replay tells whether any was left out, taken twice, or is in
the wrong order: it inserts its version under a unique key and folds it into a running sum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from cln_backup.backends import open_reader, open_writer
from cln_backup.backends.ticket import Folded, MoreNeeded
from cln_backup.model.change import FOREIGN_KEYS_OFF, FOREIGN_KEYS_ON, Change, Kind
from cln_backup.operations.restore import restore
from simulator.content import differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from cln_backup.backends.contract import Reader, Writer
    from cln_backup.backends.ticket import Statistics, Ticket

_KEY = "PRIMARY KEY (name)"
SCHEMA = (
    f"CREATE TABLE vars (name VARCHAR(32), val VARCHAR(255), intval INTEGER, blobval BLOB, {_KEY})",
    "INSERT INTO vars (name, intval) VALUES ('data_version', 0)",
    "INSERT INTO vars (name, intval) VALUES ('sum', 0)",
    "CREATE TABLE peers (id INTEGER PRIMARY KEY, node_id BLOB UNIQUE)",
    "CREATE TABLE channels (id INTEGER PRIMARY KEY, peer_id INTEGER REFERENCES peers(id))",
    "CREATE TABLE payments (version INTEGER PRIMARY KEY, description TEXT)",
    "CREATE TABLE outputs (prev_out_tx BLOB, prev_out_index, status INTEGER, reserved_til INTEGER)",
)
OFF = FOREIGN_KEYS_OFF
ON = FOREIGN_KEYS_ON


class Told(NamedTuple):
    """A change as a backup tells it, with a snapshot shortened to its digest."""

    version: int
    kind: Kind
    content: tuple[bytes, ...]


class SnapshotBytes:
    """A snapshot that is held in memory."""

    def __init__(self, content: bytes, piece_bytes: int = 4096) -> None:
        self.content = content
        self._piece_bytes = piece_bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, len(self.content), self._piece_bytes):
            yield self.content[start : start + self._piece_bytes]


def image(text: str) -> SnapshotBytes:
    """A file that starts like a database but is not one; backends do not look into it."""
    return SnapshotBytes(b"SQLite format 3\x00" + text.encode())


def bump(version: int) -> str:
    """The statement that ends the transaction which makes `version`."""
    return (
        "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' "
        f"AND intval = {version - 1}"
    )


def transaction(version: int, *statements: str) -> Change:
    """A transaction as lightningd ends it."""
    return Change(version, None, [*statements, bump(version)])


def rider(version: int, *statements: str) -> Change:
    return Change(version, None, list(statements or (OFF,)))


def first() -> Change:
    """The transaction that makes the tables."""
    return transaction(1, *SCHEMA)


def payment(version: int, description: str = "") -> Change:
    """A transaction of no great size; two with one version cannot both be replayed."""
    quoted = description.replace("'", "''")
    return transaction(
        version,
        f"INSERT INTO payments (version, description) VALUES ({version}, '{quoted}')",
        f"UPDATE vars SET intval = intval * 31 % 1000003 + {version + len(description)} "
        "WHERE name = 'sum'",
    )


def payments(start: int, stop: int) -> list[Change]:
    return [payment(version, f"payment {version}") for version in range(start, stop)]


def wearing_payments(start: int, stop: int) -> list[Change]:
    """Payments, each with a long text that the next one overwrites: a history that wears."""
    worn = []
    for version in range(start, stop):
        statements = payment(version, f"payment {version}").transaction
        assert statements is not None
        text = f"REPLACE INTO vars (name, val) VALUES ('worn', '{long_text(version, 4_000)}')"
        worn.append(Change(version, None, [text, *statements]))
    return worn


def started_node() -> list[Change]:
    """The changes of a new node until its tables exist, with riders as from real ones."""
    return [
        first(),
        rider(1, OFF),
        transaction(2, "ALTER TABLE payments ADD COLUMN note TEXT DEFAULT 'none'"),
        rider(2, ON),
        transaction(3, "ALTER TABLE payments DROP COLUMN note"),
    ]


def long_text(seed: int, length: int) -> str:
    """Text of just this length that no compression or chance makes equal to another one."""
    text = ""
    while len(text) < length:
        text += hashlib.sha256(f"{seed} {len(text)}".encode()).hexdigest()
    return text[:length]


def snapshot_of(changes: Sequence[Change], path: Path) -> Change:
    """The database that the changes make, as a snapshot; built at `path`."""
    build_database(path, changes)
    return Change(changes[-1].version, SnapshotBytes(path.read_bytes()), None)


def build_database(path: Path, changes: Iterable[Change]) -> Path:
    """The database of a node that committed these changes; made with Python's own SQLite."""
    connection = _node(path)
    try:
        for change in changes:
            if change.snapshot is not None:
                connection.close()
                path.write_bytes(b"".join(change.snapshot.chunks()))
                connection = _node(path)
                continue
            assert change.transaction is not None
            if change.kind is Kind.RIDER:
                for statement in change.transaction:
                    connection.execute(statement)
                continue
            connection.execute("BEGIN")
            for statement in change.transaction:
                connection.execute(statement)
            connection.execute("COMMIT")
    finally:
        connection.close()
    return path


def _node(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def told(changes: Iterable[Change]) -> list[Told]:
    """The changes in a form that can be compared."""
    return [_told(change) for change in changes]


def _told(change: Change) -> Told:
    if change.transaction is None:
        assert change.snapshot is not None
        digest = hashlib.sha256(b"".join(change.snapshot.chunks())).digest()
        return Told(change.version, change.kind, (digest,))
    statements = [text.encode("utf-8", "surrogateescape") for text in change.transaction]
    return Told(change.version, change.kind, tuple(statements))


def told_by(url: str) -> list[Told]:
    """The changes that a backup gives a reader."""
    with open_reader(url) as backend:
        return told(backend.stream_changes())


def append(url: str, changes: Iterable[Change]) -> None:
    with open_writer(url) as backend:
        add_all(backend, changes)


def add_all(backend: Writer, changes: Iterable[Change]) -> None:
    for change in changes:
        backend.add_change(change)


def prepared(reader: Reader, base: Change | None, *, foreign_keys: bool) -> Ticket:
    """A compaction to this base."""
    return reader.prepare_compaction(lambda _reader: Folded(base, foreign_keys))


def compacted(reader: Reader) -> Statistics:
    """The statistics of a server's compaction."""

    def fold(_reader: Reader) -> Folded:
        raise AssertionError("a server compacts by itself")

    done = reader.prepare_compaction(fold).done
    assert done is not None
    return done


def take_over(writer: Writer, ticket: Ticket) -> Statistics:
    """Puts what was prepared in place, at once."""
    statistics = writer.take_over(ticket)
    assert not isinstance(statistics, MoreNeeded)
    return statistics


def assert_same_database(restored: str | Path, expected: str | Path) -> None:
    assert differences(restored, expected) == []


def assert_restores(url: str, history: Sequence[Change], tmp_path: Path) -> None:
    """The backup makes the database that the history makes."""
    target = tmp_path / "restored.sqlite3"
    with open_reader(url) as backend:
        restore(backend, str(target))
    expected = build_database(tmp_path / "expected.sqlite3", history)
    assert_same_database(target, expected)
    target.unlink()
    expected.unlink()


def only_lock_left(directory: Path, *names: str) -> None:
    """Checks that a directory holds these names, a writer's lock file, and nothing else."""
    found = {name for name in os.listdir(directory) if not name.endswith(".writer")}
    assert found == set(names)


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that is closed at the end, which sqlite3's own context manager does not do."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
