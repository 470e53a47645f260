"""`verify --against` and `drill`: a node's database, running and stopped, against its backup."""

from __future__ import annotations

import json
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import open_writer
from tests.histories import database, payment
from tests.plugin.home import CAPTURES, Home
from tests.replay import independent

if TYPE_CHECKING:
    from pathlib import Path

_ROUTER = ("--capture", str(CAPTURES / "small" / "router.jsonl.xz"))
_PAYER = ("--capture", str(CAPTURES / "small" / "payer.jsonl.xz"))
_NOT_COMMITTED = "has not committed the last change of its backup"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("made") / "home", "dir")
    home.init()
    home.run(*_ROUTER, "--calls", "600")
    return home


@pytest.fixture
def stopped(made: Home, tmp_path: Path) -> Home:
    """A stopped node with a backup."""
    home = Home(tmp_path / "home", "dir")
    ignored = shutil.ignore_patterns("*-rpc", "*.replica")
    shutil.copytree(made.base, home.base, dirs_exist_ok=True, ignore=ignored)
    home.set_options(backend_url=home.url)
    return home


def _asked(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    printed = home.cli(*arguments, "--json", code=code)
    fields: dict[str, Any] = json.loads(printed.splitlines()[0])
    return fields


def _against(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    return _asked(home, "verify", "--against", str(home.directory), *arguments, code=code)


def _drill(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    return _asked(home, "drill", "--lightning-dir", str(home.directory), *arguments, code=code)


def _state(home: Home) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((home.directory / "backup.state").read_text())
    return state


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_running_node_is_compared_and_a_restore_rehearsed(home: Home) -> None:
    home.init()
    node = home.start(*_ROUTER, "--calls", "650", "--rate", "100", "--hold")
    home.wait_for_calls(250)
    found = _against(home)
    assert (found["good"], found["differences"], found["not_compared"]) == (True, "", [])
    assert found["tables"] > 30
    assert found["compared_version"] >= found["version"] >= 248
    drilled = _drill(home)
    assert drilled["passed"] is True
    assert drilled["compared_version"] >= drilled["version"] > found["version"]
    status = home.call("backup-status")
    assert (status["drill_passed"], status["drilled_at"] > 0) == (True, True)
    home.wait_for_calls(650)
    home.call("stop")
    home.end(node)
    found = _against(home, home.url)
    with database(home.database) as connection:
        [tables] = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
        ).fetchone()
    assert found["tables"] == tables
    assert found["content_digest"] == independent.content_digest(home.database)
    assert _state(home)["drill_passed"] is True
    assert not [path for path in home.base.rglob(".*") if path.is_dir()]


def test_difference_is_an_error_with_names_and_counts(stopped: Home) -> None:
    with database(stopped.database) as connection:
        connection.execute("UPDATE channels SET next_htlc_id = next_htlc_id + 1 WHERE id = 1")
        connection.execute("DELETE FROM forwards WHERE in_htlc_id > 20")
        connection.execute("DROP INDEX utxoset_spend")
    said = "channels: 1 row differs; forwards: "
    found = _against(stopped, code=13)
    assert found["differences"].startswith(said)
    assert "missing in the database" in found["differences"]
    assert found["indexes"] == "utxoset: the index utxoset_spend is missing in the database"
    assert found["error"]["type"] == "Discontinuity"
    printed = stopped.cli("verify", "--against", str(stopped.directory), code=13)
    assert "Error: The backup differs from" in printed
    assert said in printed
    before = _state(stopped)
    assert before["drilled_at"] is None
    drilled = _drill(stopped, code=13)
    assert (drilled["passed"], drilled["differences"]) == (False, found["differences"])
    after = _state(stopped)
    assert after["drill_passed"] is False
    assert after["drilled_at"] > 0
    new = {"drilled_at", "drill_passed", "drill_restore_s"}
    assert {name for name in after if after[name] != before[name]} == new


def test_drill_of_a_damaged_backup_fails_and_is_remembered(stopped: Home) -> None:
    [log] = stopped.backup.glob("log-*")
    content = bytearray(log.read_bytes())
    content[5_000] ^= 1
    log.write_bytes(content)
    assert _drill(stopped, code=8)["error"]["type"] == "Damaged"
    state = _state(stopped)
    assert (state["drill_passed"], state["drill_restore_s"]) == (False, None)


def test_drill_that_could_not_be_done_is_not_remembered(stopped: Home) -> None:
    before = _state(stopped)
    _drill(stopped, "--scratch-dir", "/nowhere", code=4)
    _drill(stopped, f"dir://{stopped.base}/nowhere", code=4)
    assert _state(stopped) == before


def test_state_of_a_newer_release_survives_a_drill(stopped: Home) -> None:
    path = stopped.directory / "backup.state"
    path.write_text(json.dumps(_state(stopped) | {"future": 1}))
    _drill(stopped)
    assert _state(stopped)["future"] == 1


def test_database_that_sqlite_would_change_is_copied(stopped: Home) -> None:
    """In WAL mode, with a WAL that a crash left, and with a hot journal."""
    crashed = stopped.base / "crashed"
    connection = sqlite3.connect(stopped.database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA user_version = 7")
    shutil.copytree(stopped.directory, crashed, ignore=shutil.ignore_patterns("*-rpc"))
    connection.close()
    (crashed / "lightningd.sqlite3-shm").unlink()
    for directory in (stopped.directory, crashed):
        before = _names(directory), (directory / "lightningd.sqlite3").read_bytes()
        found = _asked(stopped, "verify", "--against", str(directory))
        assert found["differences"] == ""
        assert (_names(directory), (directory / "lightningd.sqlite3").read_bytes()) == before
    assert (crashed / "lightningd.sqlite3-wal").stat().st_size > 0
    assert not (stopped.directory / "lightningd.sqlite3-wal").exists()


def test_hot_journal_is_applied_to_a_copy(stopped: Home) -> None:
    crashed = stopped.base / "crashed"
    connection = sqlite3.connect(stopped.database, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("PRAGMA cache_spill = 1")
    connection.execute("BEGIN")
    connection.execute("UPDATE channel_htlcs SET payment_hash = randomblob(4000)")
    shutil.copytree(stopped.directory, crashed, ignore=shutil.ignore_patterns("*-rpc"))
    connection.execute("ROLLBACK")
    connection.close()
    journal = crashed / "lightningd.sqlite3-journal"
    assert journal.stat().st_size > 512
    before = (crashed / "lightningd.sqlite3").read_bytes()
    assert before != stopped.database.read_bytes()
    assert _asked(stopped, "verify", "--against", str(crashed))["differences"] == ""
    assert (crashed / "lightningd.sqlite3").read_bytes() == before
    assert journal.exists()


def test_other_versions_and_other_nodes_are_explained(stopped: Home) -> None:
    with open_writer(stopped.url) as writer:
        writer.add_change(payment(writer.version + 1))
    printed = stopped.cli("verify", "--against", str(stopped.directory), code=9)
    assert "cannot be replayed" in printed  # this node has no such table
    with open_writer(stopped.url) as writer:
        writer.rewind()
    for version, said in ((597, _NOT_COMMITTED), (599, "lacks changes"), (500, "is older than")):
        with database(stopped.database) as connection:
            connection.execute(f"UPDATE vars SET intval = {version} WHERE name = 'data_version'")
        printed = stopped.cli("verify", "--against", str(stopped.directory), code=13)
        assert said in printed
        stopped.cli("drill", "--lightning-dir", str(stopped.directory), code=13)
        # The drill failed, except that a node that was killed says nothing about its backup.
        assert _state(stopped)["drill_passed"] is (None if version == 597 else False)
    other = Home(stopped.base / "other", "file")
    other.init()
    other.run(*_PAYER, "--calls", "300")
    printed = stopped.cli("verify", "--against", str(stopped.directory), other.url, code=13)
    assert "is the database of node 03" in printed


def test_what_cannot_be_compared_is_said(stopped: Home, tmp_path: Path) -> None:
    assert "Name the backup" in stopped.cli("verify", code=2)
    directory = str(stopped.directory)
    assert "leave out" in stopped.cli("verify", "--checksums", "--against", directory, code=2)
    new = Home(tmp_path / "new", "dir")
    new.init()
    for command in (["verify", "--against"], ["drill", "--lightning-dir"]):
        assert "no database" in new.cli(*command, str(new.directory), code=4)
        assert "backup.lock" in new.cli(*command, str(tmp_path), new.url, code=12)
