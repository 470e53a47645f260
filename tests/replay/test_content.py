"""The content of a database: its digest by the document, and each kind of difference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.replay import content
from cln_backup.replay.content import CHANNEL_TABLES, Difference, compare, digest, table_digests
from cln_backup.replay.replica import DatabaseFile, replay
from cln_backup.replay.tables import tables_of
from tests import captured
from tests.histories import database
from tests.operations.test_captures import MIGRATIONS
from tests.replay import independent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
_SMALL = captured.COMMITTED / "small"

# The rows of each kind of table, and values at each border of their encoding.
SCHEMA = """
CREATE TABLE keyed (id INTEGER PRIMARY KEY, a, b TEXT);
CREATE TABLE heap (a BLOB, b BLOB, PRIMARY KEY (a));
CREATE TABLE bare (a, b);
CREATE TABLE sorted (a TEXT, b INTEGER, c, PRIMARY KEY (b, a)) WITHOUT ROWID;
CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, a);
CREATE TABLE back (id INTEGER PRIMARY KEY DESC, rowid TEXT);
CREATE INDEX bare_a ON bare (a) WHERE b <> 'a  "b"';
CREATE VIEW seen AS SELECT * FROM keyed;
INSERT INTO keyed VALUES (-5, NULL, 'x'), (3, 1.5, ''), (9223372036854775807, x'', 'é');
INSERT INTO heap VALUES ('not a number', x'00'), (2, 'text');
INSERT INTO bare VALUES (1, 1), (1, 1), (1.0, '1'), (x'31', NULL), (CAST(x'ff61' AS TEXT), -1);
INSERT INTO sorted VALUES ('b', 1, 'first'), ('a', 2, 'second'), ('a', 1, 'zeroth');
INSERT INTO counted (a) VALUES (1), (2);
DELETE FROM counted WHERE id = 2;
INSERT INTO back VALUES (7, 'seven'), (1, 'one');
"""
BORDERS = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]
LENGTHS = [0, 31, 32, 255, 256, 65535, 65536]


def made(path: Path, *more: str) -> Path:
    with database(path) as connection:
        connection.executescript(SCHEMA)
        for statement in more:
            connection.execute(statement)
    return path


def opened(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)


def found_in(replica: Path, node: Path) -> list[Difference]:
    first, second = opened(replica), opened(node)
    try:
        compared = compare(first, second)
        assert not compared.left
        assert (digest(first) == digest(second)) == (not compared.differences)
        return list(compared.differences)
    finally:
        first.close()
        second.close()


def digest_of(path: Path) -> str:
    connection = opened(path)
    try:
        return digest(connection).hex()
    finally:
        connection.close()


def test_digest_is_that_of_the_document(tmp_path: Path) -> None:
    path = made(tmp_path / "a.sqlite3")
    with database(path) as connection:
        for number in BORDERS:
            connection.execute("INSERT INTO bare VALUES (?, ?)", (number, -number - 1))
        for length in LENGTHS:
            connection.execute("INSERT INTO bare VALUES (?, ?)", ("é" * length, b"\xff" * length))
            connection.execute("INSERT INTO bare VALUES (?, ?)", ("x" * length, length + 0.5))
        columns = ", ".join(f"c{number}" for number in range(40))
        connection.execute(f"CREATE TABLE wide ({columns})")
        connection.execute(f"INSERT INTO wide VALUES ({', '.join(map(str, range(40)))})")
    assert digest_of(path) == independent.content_digest(path)


@pytest.mark.parametrize("name", captured.SMALL)
def test_digest_of_a_recorded_node_is_that_of_the_document(name: str, tmp_path: Path) -> None:
    path = captured.unpacked(_SMALL / f"{name}.sqlite3.xz", tmp_path / "node.sqlite3")
    assert digest_of(path) == independent.content_digest(path)


def test_vectors_of_the_document(tmp_path: Path) -> None:
    """Each row of the table: statements that make a database, and its digest."""
    text = _FORMAT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(CREATE [^|]*)` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert len(rows) >= 4
    for number, (statements, expected) in enumerate(rows):
        path = tmp_path / f"{number}.sqlite3"
        with database(path) as connection:
            connection.executescript(statements)
        assert digest_of(path) == expected
        assert independent.content_digest(path) == expected


def test_order_of_a_table_is_known_for_each_kind(tmp_path: Path) -> None:
    connection = opened(made(tmp_path / "a.sqlite3"))
    try:
        found = {name: (one.order, one.is_ordered) for name, one in tables_of(connection).items()}
        counts = {one.table: one.rows for one in table_digests(connection)}
    finally:
        connection.close()
    assert found == {
        "back": ("_rowid_", False),
        "bare": ("rowid", False),
        "counted": ('"id"', True),
        "heap": ("rowid", False),
        "keyed": ('"id"', True),
        "sorted": ('"b", "a"', True),
        "sqlite_sequence": ("rowid", False),
    }
    assert counts == {
        "back": 2,
        "bare": 5,
        "counted": 1,
        "heap": 2,
        "keyed": 3,
        "sorted": 3,
        "sqlite_sequence": 1,
    }


def _vacuumed(path: Path) -> None:
    with database(path) as connection:
        connection.execute("DELETE FROM bare WHERE rowid = 1")
        connection.execute("INSERT INTO bare VALUES (1, 1)")
        connection.execute("VACUUM")


def _with_other_pages(path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("VACUUM")


def _with_wal(path: Path) -> None:
    with database(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA user_version = 7")


def _analyzed(path: Path) -> None:
    with database(path) as connection:
        connection.execute("ANALYZE")


def _turned(path: Path) -> None:
    """The rows of the tables whose order means nothing, in reverse."""
    with database(path) as connection:
        for table in ("bare", "heap"):
            connection.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table} ORDER BY rowid")
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"INSERT INTO {table} SELECT * FROM kept ORDER BY rowid DESC")
            connection.execute("DROP TABLE kept")


def _requoted(path: Path) -> None:
    """Another release of SQLite, which writes the definition of a table in another way."""
    with database(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            'UPDATE sqlite_master SET sql = \'CREATE TABLE  "heap" (a BLOB,\n b BLOB, '
            "PRIMARY KEY (`a`))' WHERE name = 'heap'"
        )


@pytest.mark.parametrize(
    "change", [_vacuumed, _with_other_pages, _with_wal, _analyzed, _turned, _requoted]
)
def test_innocent_differences_are_none(change: Callable[[Path], None], tmp_path: Path) -> None:
    first, second = made(tmp_path / "a.sqlite3"), made(tmp_path / "b.sqlite3")
    change(second)
    assert first.read_bytes() != second.read_bytes()
    assert found_in(first, second) == []
    assert digest_of(second) == independent.content_digest(second)


_CHANGES = [
    ("UPDATE keyed SET b = 'y' WHERE id = 3", "keyed", "1 row differs"),
    ("UPDATE keyed SET a = 1", "keyed", "3 rows differ"),
    ("DELETE FROM keyed WHERE id < 4", "keyed", "2 rows are missing in the database"),
    ("INSERT INTO keyed VALUES (4, 1, 2)", "keyed", "1 row is missing in the backup"),
    ("UPDATE keyed SET id = 4 WHERE id = 3", "keyed", "1 row is missing in the database, 1 row is"),
    ("INSERT INTO bare VALUES (1, 1)", "bare", "1 row is missing in the backup"),
    ("DELETE FROM bare WHERE rowid = 1", "bare", "1 row is missing in the database"),
    ("UPDATE bare SET b = '1' WHERE rowid = 1", "bare", "1 row is missing in the database, 1 row"),
    ("UPDATE bare SET b = 1.0 WHERE rowid = 1", "bare", "1 row is missing in the database, 1 row"),
    ("UPDATE bare SET b = '' WHERE b IS NULL", "bare", "1 row is missing in the database, 1 row"),
    ("UPDATE bare SET b = x'' WHERE b IS NULL", "bare", "1 row is missing in the database, 1 row"),
    ("UPDATE bare SET a = '1' WHERE a = x'31'", "bare", "1 row is missing in the database, 1 row"),
    (
        "UPDATE bare SET a = CAST(x'fe61' AS TEXT) WHERE b = -1",
        "bare",
        "1 row is missing in the database, 1 row",
    ),
    (
        "UPDATE bare SET a = x'ff61' WHERE b = -1",
        "bare",
        "1 row is missing in the database, 1 row",
    ),
    ("UPDATE heap SET b = 'other' WHERE a = 2", "heap", "1 row differs"),
    ("UPDATE sorted SET c = 'other' WHERE b = 2", "sorted", "1 row differs"),
    ("UPDATE sqlite_sequence SET seq = 3", "sqlite_sequence", "1 row is missing"),
    ("DROP INDEX bare_a", "bare", "the index bare_a is missing in the database"),
    ("CREATE INDEX more ON heap (b)", "heap", "the index more is missing in the backup"),
    ("DROP VIEW seen", "seen", "the view seen is missing in the database"),
    ("DROP TABLE sorted", "sorted", "the table is missing in the database"),
    ("CREATE TABLE more (a)", "more", "the table is missing in the backup"),
    ("ALTER TABLE heap ADD COLUMN c INTEGER DEFAULT 5", "heap", "the table is defined differently"),
]


@pytest.mark.parametrize(("statement", "table", "detail"), _CHANGES)
def test_each_kind_of_difference_is_found(
    statement: str, table: str, detail: str, tmp_path: Path
) -> None:
    first, second = made(tmp_path / "a.sqlite3"), made(tmp_path / "b.sqlite3", statement)
    [difference] = found_in(first, second)
    assert difference.table == table
    assert difference.detail.startswith(detail)
    assert difference.is_index == (" INDEX " in statement or " VIEW " in statement)
    assert digest_of(second) == independent.content_digest(second)


def test_changed_definition_with_the_same_columns_is_found(tmp_path: Path) -> None:
    """A constraint, and a literal that differs only by white space or quotes."""
    for number, (old, new) in enumerate(
        (("a BLOB,", "a BLOB UNIQUE,"), ("'a  \"b\"'", "'a \"b\"'"), ("'a  \"b\"'", "'a  b'"))
    ):
        first = made(tmp_path / f"{number}a.sqlite3")
        second = tmp_path / f"{number}b.sqlite3"
        with database(second) as connection:
            connection.executescript(SCHEMA.replace(old, new))
        assert found_in(first, second)


def test_rows_are_not_compared_after_the_time_is_up(tmp_path: Path) -> None:
    first = opened(made(tmp_path / "a.sqlite3"))
    second = opened(made(tmp_path / "b.sqlite3", "UPDATE keyed SET b = 'y'"))
    try:
        nothing = compare(first, second, ["keyed", "bare", "nowhere"], until=0)
        assert nothing == ((), (), ("keyed", "bare"))
        some = compare(first, second, ["bare", "keyed"])
        assert some == ((Difference("keyed", "3 rows differ"),), ("bare", "keyed"), ())
    finally:
        first.close()
        second.close()


def test_comparison_does_not_change_a_read_only_database(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a.sqlite3"), made(tmp_path / "b.sqlite3")
    _turned(second)
    before = sorted(path.name for path in tmp_path.iterdir()), second.read_bytes()
    assert found_in(first, second) == []
    assert (sorted(path.name for path in tmp_path.iterdir()), second.read_bytes()) == before


def _replayed(path: Path, changes: Iterable[Change]) -> Path:
    replica = replay(changes, str(path))
    replica.close()
    return path


@pytest.mark.parametrize("name", captured.SMALL)
def test_replay_of_a_recorded_node_has_its_content(name: str, tmp_path: Path) -> None:
    node = captured.unpacked(_SMALL / f"{name}.sqlite3.xz", tmp_path / "node.sqlite3")
    changes = captured.changes(_SMALL / f"{name}.jsonl.xz")
    assert found_in(_replayed(tmp_path / "replica.sqlite3", changes), node) == []


def test_replay_of_the_large_recording_has_its_content(
    large_captures: Path, tmp_path: Path
) -> None:
    place = large_captures / "payments600"
    node = captured.unpacked(place / "payee.sqlite3.xz", tmp_path / "node.sqlite3")
    changes = captured.changes(place / "payee.jsonl.xz")
    assert found_in(_replayed(tmp_path / "replica.sqlite3", changes), node) == []


@pytest.mark.parametrize("name", MIGRATIONS)
def test_replay_of_a_migration_has_its_content(
    name: str, large_captures: Path, tmp_path: Path
) -> None:
    """The same definitions of tables too, although another release of SQLite rewrote them."""
    place = large_captures / "migrations" / name
    before, after = (
        captured.unpacked(place / f"{which}.sqlite3.xz", tmp_path / f"{which}.sqlite3")
        for which in ("before", "after")
    )
    changes = list(captured.changes(place / "writes.jsonl.xz"))
    base = Change(changes[0].version - 1, DatabaseFile(str(before)), None)
    replica = _replayed(tmp_path / "replica.sqlite3", [base, *changes])
    assert found_in(replica, after) == []
    assert digest_of(replica) != digest_of(before)
    assert digest_of(after) == independent.content_digest(after)


@pytest.mark.parametrize("name", captured.SMALL)
def test_channel_tables_are_those_of_lightningd(name: str, tmp_path: Path) -> None:
    """Every table that refers to a channel or holds a part of one, except those that only log."""
    path = captured.unpacked(_SMALL / f"{name}.sqlite3.xz", tmp_path / "node.sqlite3")
    with database(path) as connection:
        definitions = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        )
    assert set(CHANNEL_TABLES) <= definitions.keys()
    logs = {"transaction_annotations", "channel_state_changes", "chain_moves", "channel_moves"}
    referring = {
        table
        for table, sql in definitions.items()
        if re.search(r"REFERENCES channels", sql, re.IGNORECASE)
    }
    assert referring <= set(CHANNEL_TABLES) | logs


def test_locked_database_is_an_error_of_ours(tmp_path: Path) -> None:
    first = opened(made(tmp_path / "a.sqlite3"))
    locked = apsw.Connection(str(tmp_path / "a.sqlite3"))
    try:
        locked.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="SQLITE_BUSY"):
            compare(first, first)
    finally:
        locked.close()
        first.close()


@pytest.mark.parametrize("table", ["keyed", "bare"])
def test_sort_of_a_large_table_ends_with_the_time(table: str, tmp_path: Path) -> None:
    """Whatever was found until then counts; a difference in order alone may be none."""
    fill = f"INSERT INTO {table} (a, b) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 9000) SELECT x, x FROM n"  # noqa: E501
    ours, theirs = (opened(made(tmp_path / name, fill)) for name in ("a.sqlite3", "b.sqlite3"))
    described = tables_of(ours)[table]
    with content._interrupted(ours, 0.0), content._interrupted(theirs, 0.0):
        if table == "keyed":
            assert content._counted(ours, theirs, described, 0.0) == "rows differ"
        else:
            with pytest.raises((content._TimeIsUp, apsw.InterruptError)):
                content._counted(ours, theirs, described, 0.0)
    assert compare(ours, theirs, [table], 0.0) == ((), (), (table,))
    ours.close()
    theirs.close()
