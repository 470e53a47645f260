from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model import statements
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import ReplayFailed
from cln_backup.operations.restore import restore
from tests import captured
from tests.histories import (
    OFF,
    ON,
    append,
    assert_same_database,
    build_database,
    bump,
    database,
    first,
    rider,
    started_node,
    transaction,
)

if TYPE_CHECKING:
    from pathlib import Path

RESERVED = (
    "UPDATE outputs SET status=123, reserved_til=1891733WHERE prev_out_tx=1 AND prev_out_index=2"
)
RESERVED_MENDED = RESERVED.replace("1891733WHERE", "1891733 WHERE")
PEER = (
    "UPDATE channels SET shachain_remote_id=6, peer_id=1WHERE channels.id=1",
    "UPDATE channels SET shachain_remote_id=6, peer_id=1 WHERE channels.id=1",
)


@pytest.mark.parametrize("statement", [RESERVED, PEER[0]])
def test_old_expansion_fault_is_one_that_sqlite_refuses(statement: str) -> None:
    """Otherwise there would be nothing to repair."""
    import apsw

    connection = apsw.Connection(":memory:")
    connection.execute("CREATE TABLE outputs (prev_out_tx, prev_out_index, status, reserved_til)")
    connection.execute("CREATE TABLE channels (id, shachain_remote_id, peer_id)")
    with pytest.raises(apsw.SQLError, match="unrecognized token"):
        connection.execute(statement)
    connection.execute(statements.mend(statement))
    connection.close()


def test_old_expansion_faults_are_mended() -> None:
    assert statements.mend(RESERVED) == RESERVED_MENDED
    assert statements.mend(PEER[0]) == PEER[1]


@pytest.mark.parametrize(
    "statement",
    [
        RESERVED_MENDED,
        PEER[1],
        bump(7),
        "UPDATE outputs SET status=123WHERE prev_out_index=2",
        "UPDATE channels SET peer_id=1WHERE id=1",
        "DELETE FROM outputs",
    ],
)
def test_other_statements_are_not_changed(statement: str) -> None:
    assert statements.mend(statement) == statement


def test_every_recorded_statement_is_left_as_it_is() -> None:
    for name in captured.SMALL:
        for change in captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz"):
            assert change.transaction is not None
            for statement in change.transaction:
                assert statements.mend(statement) == statement


def test_old_expansion_faults_are_mended_in_a_restore(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(
        url,
        [
            first(),
            transaction(
                2,
                "INSERT INTO peers (id) VALUES (1), (2)",
                "INSERT INTO channels VALUES (1, 2)",
                "INSERT INTO outputs VALUES (1, 2, 0, 0), (1, 3, 0, 0)",
            ),
            transaction(3, RESERVED, "UPDATE channels SET peer_id=1WHERE channels.id=1"),
        ],
    )
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    with database(tmp_path / "restored.sqlite3") as connection:
        rows = connection.execute("SELECT * FROM outputs ORDER BY prev_out_index").fetchall()
        assert rows == [(1, 2, 123, 1891733), (1, 3, 0, 0)]
        assert connection.execute("SELECT peer_id FROM channels").fetchall() == [(1,)]
    assert restored.version == 3


@pytest.mark.parametrize(
    "text",
    [
        "reserved_til=5WHERE",
        "peer_id=1WHERE channels.id=",
        "it''s reserved_til=12345WHERE and peer_id=77WHERE channels.id=3",
        "PRAGMA foreign_keys = OFF;",
        "x' reserved_til=1WHERE".replace("'", "''"),
    ],
)
def test_text_in_a_healthy_statement_is_never_mended(text: str, tmp_path: Path) -> None:
    """A peer may choose the contents of a text; nothing in it may change on the way back."""
    history = [
        first(),
        transaction(2, f"INSERT INTO payments VALUES (7, '{text}')"),
        transaction(3, f"UPDATE payments SET description = '{text}' WHERE version = 7"),
    ]
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, history)
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    assert_same_database(restored.path, build_database(tmp_path / "expected.sqlite3", history))
    with database(tmp_path / "restored.sqlite3") as connection:
        (stored,) = connection.execute("SELECT description FROM payments").fetchone()
        assert stored == text.replace("''", "'")


def test_statement_that_is_broken_otherwise_stays_broken(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    append(url, [first(), transaction(2, "UPDATE peers SET id=1WHERE id=2")])
    with open_reader(url) as backend, pytest.raises(ReplayFailed):
        restore(backend, str(tmp_path / "restored.sqlite3"))


def test_every_recorded_transaction_ends_with_the_bump_of_its_version() -> None:
    kinds: Counter[Kind] = Counter()
    for name in captured.SMALL:
        at = 0
        for change in captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz"):
            assert change.transaction is not None
            kinds[change.kind] += 1
            bumps = [statements.bumps_data_version_to(text) for text in change.transaction]
            if change.kind is Kind.RIDER:
                assert change.version == at
                assert set(bumps) == {None}
            else:
                at += 1
                assert change.version == at
                assert bumps == [None] * (len(bumps) - 1) + [at]
    assert kinds[Kind.RIDER] > 0
    assert kinds[Kind.TRANSACTION] > 1_000


@pytest.mark.parametrize(
    ("statement", "version"),
    [
        (bump(1), 1),
        (bump(2**31), 2**31),
        (bump(7) + ";", 7),
        ("  update VARS set intval=intval+1 where name='data_version' and intval=41\n", 42),
        (bump(7) + " OR 1", None),
        (bump(7) + "; DELETE FROM peers", None),
        (bump(7).replace("+ 1", "+ 2"), None),
        (bump(7).replace("data_version", "data_versio"), None),
        (bump(7).replace("vars", "var"), None),
        (bump(7).replace("= 6", "= 0x6"), None),
        (bump(7).replace("= 6", "= -6"), None),
        (bump(7).replace("= 6", "="), None),
        (bump(7)[:-1], None),
        ("-- " + bump(7), None),
        ("SELECT '" + bump(7) + "'", None),
        ("", None),
    ],
)
def test_bump(statement: str, version: int | None) -> None:
    assert statements.bumps_data_version_to(statement) == version


def test_tables_and_kinds_of_every_recorded_statement() -> None:
    """Compared with a second look that splits the text into words."""
    seen: Counter[str] = Counter()
    for name in captured.SMALL:
        known: set[str] = set()
        for change in captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz"):
            assert change.transaction is not None
            for statement in change.transaction:
                kind, table = statements.kind(statement), statements.table(statement)
                words = statement.replace("(", " ( ").replace(";", " ; ").split()
                verb = words[0].upper()
                seen[kind] += 1
                assert kind.split()[0] == verb
                if kind in {"PRAGMA", "DROP INDEX", "DROP TRIGGER"}:
                    assert table is None
                    continue
                assert table is not None, statement[:80]
                assert table.isidentifier()
                where = {"UPDATE": 1, "DELETE": 2, "INSERT": words.index("INTO") + 1
                         if verb == "INSERT" else 0}.get(verb)  # fmt: skip
                if where is not None:
                    assert table == words[where].strip('`"'), statement[:80]
                elif kind in {"CREATE TABLE", "ALTER TABLE"}:
                    assert table in words[2:6]
                if kind == "CREATE TABLE":
                    known.add(table)
    assert {"INSERT", "UPDATE", "DELETE", "CREATE TABLE", "ALTER TABLE", "PRAGMA"} <= set(seen)


@pytest.mark.parametrize(
    ("statement", "kind", "table"),
    [
        ("INSERT INTO peers (id) VALUES (1)", "INSERT", "peers"),
        ("INSERT OR REPLACE INTO peers VALUES (1)", "INSERT", "peers"),
        ("REPLACE INTO peers VALUES (1)", "REPLACE", "peers"),
        ("  delete\nfrom peers", "DELETE", "peers"),
        ("UPDATE OR IGNORE peers SET id = 1", "UPDATE", "peers"),
        ('UPDATE "peers" SET id = 1', "UPDATE", "peers"),
        ("UPDATE `peers` SET id = 1", "UPDATE", "peers"),
        ("UPDATE [peers] SET id = 1", "UPDATE", "peers"),
        ("UPDATE main.peers SET id = 1", "UPDATE", "peers"),
        ("CREATE TABLE IF NOT EXISTS peers (id)", "CREATE TABLE", "peers"),
        ("CREATE UNIQUE INDEX a ON peers (id)", "CREATE UNIQUE INDEX", "peers"),
        ("CREATE INDEX IF NOT EXISTS a ON peers (id)", "CREATE INDEX", "peers"),
        ("CREATE TRIGGER t AFTER INSERT ON peers BEGIN SELECT 1; END", "CREATE TRIGGER", "peers"),
        ("ALTER TABLE peers RENAME TO p", "ALTER TABLE", "peers"),
        ("DROP TABLE IF EXISTS peers", "DROP TABLE", "peers"),
        ("DROP INDEX a", "DROP INDEX", None),
        ("PRAGMA foreign_keys = OFF;", "PRAGMA", None),
        ("SELECT 1", "SELECT", None),
        ("", "statement", None),
        ("(", "statement", None),
    ],
)
def test_kind_and_table(statement: str, kind: str, table: str | None) -> None:
    assert statements.kind(statement) == kind
    assert statements.table(statement) == table


@given(st.text(max_size=200))
def test_any_text_can_be_looked_at(text: str) -> None:
    statements.kind(text)
    statements.table(text)
    statements.mend(text)
    statements.bumps_data_version_to(text)
    statements.foreign_keys_after([text], before=True)


def test_long_statement_is_looked_at_in_no_time() -> None:
    """None of the patterns may go back and forth in what a peer can make long."""
    for start in ("INSERT INTO peers VALUES (", "CREATE TRIGGER t ", "UPDATE vars SET intval "):
        for filler in ("'", " ", "x' ", "(", "1WHERE", "ON"):
            text = start + filler * 300_000
            statements.kind(text)
            statements.table(text)
            statements.mend(text)
            statements.bumps_data_version_to(text)
            statements.with_stray_bytes_as_hex(text)


@pytest.mark.parametrize(
    ("texts", "is_rider"),
    [
        ((), False),
        ((OFF,), True),
        ((OFF, ON), True),
        (("pragma x",), True),
        (("\n PRAGMA x",), True),
        (("PRAGMATIC",), False),
        ((OFF, "DELETE FROM peers"), False),
        (("DELETE FROM peers", OFF), False),
        (("-- PRAGMA x",), False),
    ],
)
def test_rider(texts: tuple[str, ...], is_rider: bool) -> None:
    assert statements.is_rider(texts) is is_rider
    if texts:
        kind = Kind.RIDER if is_rider else Kind.TRANSACTION
        assert Change(1, None, texts).kind is kind


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "pragma",
    [
        "PRAGMA foreign_keys = OFF;",
        "PRAGMA foreign_keys = ON;",
        "pragma FOREIGN_KEYS=on",
        "PRAGMA foreign_keys=0",
        "PRAGMA foreign_keys=1",
        "PRAGMA foreign_keys(OFF)",
        "PRAGMA foreign_keys ( yes )",
        "PRAGMA foreign_keys = 'no'",
        'PRAGMA foreign_keys = "true"',
        "PRAGMA main.foreign_keys = false",
        "PRAGMA foreign_keys",
        "PRAGMA foreign_keys;",
        "PRAGMA foreign_key_check",
        "PRAGMA user_version = 0",
        "PRAGMA foreign_keys = nonsense",
    ],
)
def test_foreign_keys_are_as_sqlite_has_them(pragma: str, before: bool) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(f"PRAGMA foreign_keys = {int(before)}")
    connection.execute(pragma).fetchall()
    (enforced,) = connection.execute("PRAGMA foreign_keys").fetchone()
    connection.close()
    assert statements.foreign_keys_after([pragma], before) == bool(enforced)


def test_last_of_several_pragmas_counts() -> None:
    assert statements.foreign_keys_after([OFF, ON], before=False)
    assert not statements.foreign_keys_after([ON, "PRAGMA user_version = 1", OFF], before=True)


@given(st.lists(st.binary(max_size=20).filter(lambda raw: 0 not in raw), max_size=4))
def test_text_that_is_no_utf8_becomes_the_same_value(values: list[bytes]) -> None:
    quoted = ", ".join(
        "'" + raw.decode("utf-8", "surrogateescape").replace("'", "''") + "'" for raw in values
    )
    if not values:
        return
    text = statements.with_stray_bytes_as_hex(f"SELECT {quoted}")
    connection = sqlite3.connect(":memory:")
    connection.text_factory = bytes
    row = connection.execute(text).fetchone()
    connection.close()
    assert list(row) == values
    assert all(isinstance(value, bytes) for value in row)


def test_only_what_has_to_become_hex_does() -> None:
    text = "INSERT INTO t VALUES ('plain', 'it''s', x'00ff', 'str\udcffay', 'ä')"
    assert statements.with_stray_bytes_as_hex(text) == (
        "INSERT INTO t VALUES ('plain', 'it''s', x'00ff', CAST(x'737472ff6179' AS TEXT), 'ä')"
    )


def test_riders_switch_foreign_keys_in_a_restore(tmp_path: Path) -> None:
    """A migration that drops a table would empty all that refer to it, were they enforced."""
    history = [
        first(),
        transaction(
            2,
            "CREATE TABLE refers (peer INTEGER REFERENCES peers(id) ON DELETE CASCADE)",
            "INSERT INTO peers (id) VALUES (1), (2)",
            "INSERT INTO refers VALUES (1), (2)",
        ),
        rider(2, OFF),
        transaction(
            3,
            "CREATE TABLE new_peers (id INTEGER PRIMARY KEY, node_id BLOB UNIQUE)",
            "INSERT INTO new_peers SELECT * FROM peers",
            "DROP TABLE peers",
            "ALTER TABLE new_peers RENAME TO peers",
        ),
        rider(3, ON),
        transaction(4, "DELETE FROM peers WHERE id = 2"),
    ]
    for without in (False, True):
        url = f"file://{tmp_path}/{without}.bkp"
        create_backend(url, None)
        kept = [change for change in history if not (without and change.kind is Kind.RIDER)]
        append(url, kept)
        with open_reader(url) as backend:
            restore(backend, str(tmp_path / f"{without}.sqlite3"))
        assert_same_database(
            tmp_path / f"{without}.sqlite3",
            build_database(tmp_path / f"{without}-expected.sqlite3", kept),
        )
        with database(tmp_path / f"{without}.sqlite3") as connection:
            rows = connection.execute("SELECT peer FROM refers").fetchall()
        assert rows == ([] if without else [(1,)])


def test_foreign_keys_of_the_head(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    states = []
    with open_writer(url) as backend:
        for change in started_node():
            backend.add_change(change)
            assert backend.standing.head is not None
            states.append(backend.standing.head.foreign_keys)
            with open_reader(url) as reader:
                assert reader.standing.head == backend.standing.head
    assert states == [True, False, False, True, True]
