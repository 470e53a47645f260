from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import apsw
import pytest

from simulator import content

if TYPE_CHECKING:
    from pathlib import Path

BASE = (
    "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, value)",
    "CREATE TABLE b (k TEXT PRIMARY KEY, v) WITHOUT ROWID",
    "CREATE INDEX a_value ON a (value)",
    "CREATE VIEW everything AS SELECT * FROM a",
    "INSERT INTO a (value) VALUES (1), ('x'), (x'00ff'), (NULL), (1.5), ('ä')",
    "INSERT INTO a (value) VALUES (CAST(x'e9' AS TEXT))",
    "INSERT INTO b VALUES ('k', 1)",
)

CHANGES = {
    "a value": ["UPDATE a SET value = 2 WHERE id = 1"],
    "a type": ["UPDATE a SET value = '1' WHERE id = 1"],
    "integer or real": ["UPDATE a SET value = 1.0 WHERE id = 1"],
    "text or blob": ["UPDATE a SET value = CAST('x' AS BLOB) WHERE id = 2"],
    "empty or null": ["UPDATE a SET value = '' WHERE id = 4"],
    "bytes of a text": ["UPDATE a SET value = CAST(x'e8' AS TEXT) WHERE id = 7"],
    "a row less": ["DELETE FROM b"],
    "a row more": ["INSERT INTO b VALUES ('l', 2)"],
    "a rowid": ["UPDATE a SET id = 90 WHERE id = 7", "UPDATE sqlite_sequence SET seq = 7"],
    "sqlite_sequence": ["UPDATE sqlite_sequence SET seq = 99"],
    "an index": ["DROP INDEX a_value"],
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; END"],
    "a column": ["ALTER TABLE b ADD COLUMN w"],
    "a table": ["CREATE TABLE c (x)"],
}


def make(path: Path, *statements: str) -> Path:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path


def dump(path: Path) -> bytes:
    return subprocess.run(["sqlite3", path, ".dump"], capture_output=True, check=True).stdout


def test_equal_whatever_the_pages_are_like(tmp_path: Path) -> None:
    a = make(tmp_path / "a", *BASE)
    b = make(
        tmp_path / "b",
        *("PRAGMA page_size = 512", "CREATE TABLE gone (x)", *BASE, "DROP TABLE gone"),
        *("INSERT INTO b VALUES ('gone', 1)", "DELETE FROM b WHERE k = 'gone'", "VACUUM"),
    )
    assert content.differences(a, b) == []
    assert content.main([str(a), str(b)]) == 0


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_found(change: list[str], tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", *BASE), make(tmp_path / "b", *BASE, *change)
    assert content.differences(a, b)
    assert content.differences(b, a)
    assert content.main([str(a), str(b)]) == 1
    if shutil.which("sqlite3"):
        assert dump(a) != dump(b)


def test_order_of_rows_and_of_tables_counts(tmp_path: Path) -> None:
    a = make(tmp_path / "a", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1), (2)")
    b = make(tmp_path / "b", "CREATE TABLE t (x)", "INSERT INTO t VALUES (2), (1)")
    assert len(content.differences(a, b)) == 2
    c = make(tmp_path / "c", "CREATE TABLE t (x)", "CREATE TABLE u (x)")
    d = make(tmp_path / "d", "CREATE TABLE u (x)", "CREATE TABLE t (x)")
    assert content.differences(c, d) == ["schema: the same objects, created in another order"]


def test_no_more_than_the_first_differences(tmp_path: Path) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
    a = make(tmp_path / "a", "CREATE TABLE t (x)", f"INSERT INTO t {rows} SELECT i FROM n")
    b = make(tmp_path / "b", "CREATE TABLE t (x)", f"INSERT INTO t {rows} SELECT -i FROM n")
    assert len(content.differences(a, b, limit=7)) == 7


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_crashed_database_is_read_as_the_next_process_would(mode: str, tmp_path: Path) -> None:
    a = make(tmp_path / "a", f"PRAGMA journal_mode = {mode}", *BASE)
    writer = apsw.Connection(str(a))
    writer.execute("PRAGMA cache_spill = 1")
    writer.execute("PRAGMA cache_size = 1")
    if mode == "wal":
        writer.execute("INSERT INTO b VALUES ('in the log', 1)")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO a (value) SELECT randomblob(3000) FROM a, a, a")
    crashed = tmp_path / "crashed"
    for suffix in ("", "-journal", "-wal"):
        if (tmp_path / f"a{suffix}").exists():
            shutil.copyfile(tmp_path / f"a{suffix}", f"{crashed}{suffix}")
    writer.execute("ROLLBACK")
    before = {file.name: file.read_bytes() for file in tmp_path.glob("crashed*")}
    assert content.differences(a, crashed) == []
    assert {file.name: file.read_bytes() for file in tmp_path.glob("crashed*")} == before
    writer.close()


def test_what_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 10)
    a = make(tmp_path / "a", *BASE)
    assert content.main([str(a), str(tmp_path / "text")]) == 2
    assert content.main([str(a), str(tmp_path / "missing")]) == 2
