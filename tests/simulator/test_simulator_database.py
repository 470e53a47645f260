"""The simulator without a plugin makes exactly the database of every recorded node."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from simulator import content
from simulator.build import build_database, place_database
from simulator.calls import Call, committed_calls, read_recording
from simulator.database import DatabaseError, NodeDatabase, without_stray_bytes
from tests.simulator.simulated_node import CAPTURES, Setup, recordings
from tests.soak import SOAK

LOCAL = sorted(CAPTURES.glob("*/*.jsonl.xz"))
MIGRATIONS = recordings("migrations")
ELSEWHERE = pytest.mark.skipif(
    not os.environ.get("CLN_BACKUP_CAPTURES"), reason="CLN_BACKUP_CAPTURES is not set"
)


def name(path: Path) -> str:
    return path.name.partition(".")[0]


def assert_equals(database: Path, packed: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.sqlite3"
    place_database(packed, expected)
    assert content.differences(database, expected) == []


@pytest.mark.parametrize("recording", LOCAL, ids=name)
def test_recording_gives_the_recorded_database(recording: Path, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    arguments = ["--one-process"] if "crash" in recording.parts else []
    assert setup.run("--capture", str(recording), *arguments).code == 0
    assert_equals(setup.database, recording.with_name(f"{name(recording)}.sqlite3.xz"), tmp_path)


@ELSEWHERE
@pytest.mark.parametrize("folder", MIGRATIONS, ids=name)
def test_migration_gives_the_migrated_database(folder: Path, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    ended = setup.run(
        *("--capture", str(folder / "writes.jsonl.xz")),
        *("--before", str(folder / "before.sqlite3.xz")),
    )
    assert ended.code == 0
    assert_equals(setup.database, folder / "after.sqlite3.xz", tmp_path)


@ELSEWHERE
@pytest.mark.skipif(not SOAK, reason="CLN_BACKUP_SOAK is not set; takes ten seconds")
def test_long_recording_gives_the_recorded_database(tmp_path: Path) -> None:
    folder = Path(os.environ["CLN_BACKUP_CAPTURES"], "payments600")
    calls = committed_calls(read_recording(folder / "payee.jsonl.xz"))
    build_database(calls, tmp_path / "built.sqlite3")
    assert_equals(tmp_path / "built.sqlite3", folder / "payee.sqlite3.xz", tmp_path)


def test_foreign_keys_are_on_from_the_start(tmp_path: Path) -> None:
    database = NodeDatabase(str(tmp_path / "node.sqlite3"))
    database.apply(
        Call(0, 1, [
            "CREATE TABLE vars (name TEXT, intval INTEGER)",
            "CREATE TABLE child (id INTEGER REFERENCES vars(rowid))",
            "INSERT INTO vars VALUES ('data_version', 0)",
            "UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = 0",
        ])
    )  # fmt: skip
    database.commit()
    with pytest.raises(DatabaseError, match="foreign key"):
        database.apply(Call(1, 2, ["INSERT INTO child VALUES (99)"]))
    database.close()


def test_a_call_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    database = NodeDatabase(str(tmp_path / "node.sqlite3"))
    with pytest.raises(DatabaseError, match="continues with 1"):
        database.apply(Call(0, 2, ["SELECT 1"]))
    with pytest.raises(DatabaseError, match="continues with 0"):
        database.apply(Call(0, 1, ["PRAGMA foreign_keys = OFF"]))
    database.close()


def test_text_that_is_no_utf8_is_stored_as_it_is(tmp_path: Path) -> None:
    stray = b"it's caf\xe9".decode("utf-8", "surrogateescape").replace("'", "''")
    sql = f"INSERT INTO \"t'\" VALUES ('ä', '{stray}')"
    assert without_stray_bytes(sql) == (
        "INSERT INTO \"t'\" VALUES ('ä', CAST(x'697427732063616" + "6e9' AS TEXT))"
    )
    connection = apsw.Connection(str(tmp_path / "t.sqlite3"))
    connection.execute('CREATE TABLE "t\'" (a, b)')
    connection.execute(without_stray_bytes(sql))
    rows = list(connection.execute('SELECT typeof(b), CAST(b AS BLOB) FROM "t\'"'))
    assert rows == [("text", b"it's caf\xe9")]
    connection.close()


def test_wal_mode_is_kept_in_the_file(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.run("--generate", "5", "--journal-mode", "wal").code == 0
    connection = apsw.Connection(str(setup.database))
    assert list(connection.execute("PRAGMA journal_mode")) == [("wal",)]
    connection.close()


def test_wallet_may_lie_elsewhere(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    wallet = tmp_path / "elsewhere.sqlite3"
    assert setup.run("--generate", "5", "--wallet", f"sqlite3://{wallet}").code == 0
    assert wallet.exists()
    assert not setup.database.exists()
