"""The output of `status` besides the state of a backup."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.node.settings import Alarm, Settings, State, create_settings, write_state
from cln_backup.replay.kept import KeptReplica
from tests import programs
from tests.histories import add_all, append, payments, started_node

if TYPE_CHECKING:
    from pathlib import Path

_NODE = "02" + "ab" * 32


def _status(*arguments: str, code: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields, and the rows of the table."""
    shown = []
    for option in (["--json"], []):
        done = programs.run("status", *option, *arguments)
        assert done.returncode == code, done.stderr
        shown.append(done.stdout)
    lines = [line.partition("  ") for line in shown[1].splitlines()]
    return json.loads(shown[0]), {name: value.strip() for name, _, value in lines}


def _write(url: str) -> None:
    with open_writer(url) as writer:
        writer.claim(_NODE)
        add_all(writer, [*started_node(), *payments(4, 60)])


def _taken_bytes(*paths: Path) -> int:
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


def test_file(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    create_backend(url, None)
    assert _status(url)[1]["node"] == "unknown"
    _write(url)
    (tmp_path / "node.bkp.dropped-7").write_bytes(bytes(100_000))
    (tmp_path / "node.bkp-of-another").write_bytes(bytes(100_000))
    fields, rows = _status(url)
    assert fields["node_id"] == rows["node"] == _NODE
    assert (fields["encrypted"], fields["cipher"], fields["keys"]) == (False, None, [])
    assert (fields["generations"], fields["oldest_generation_at"]) == (None, None)
    assert fields["space_bytes"] == _taken_bytes(*tmp_path.glob("node.bkp*")) - _taken_bytes(
        tmp_path / "node.bkp-of-another"
    )
    assert rows["encryption"] == "none"
    assert {"key slots", "generations"}.isdisjoint(rows)


@pytest.fixture
def encrypted(tmp_path: Path) -> str:
    """A backup with two keys and three generations; its URL names no key."""
    for name in ("key", "other"):
        (tmp_path / name).write_bytes(os.urandom(32))
    bare = f"dir://{tmp_path}/backup"
    url = f"{bare}?key-file={tmp_path}/key&keep=2"
    create_backend(url, None)
    _write(url)
    add = ("key", "add", "--new-key-file", tmp_path / "paper", "--name", "paper")
    assert programs.run(*add, url).returncode == 0
    for first in (60, 90):
        append(url, payments(first, first + 30))
        compact(url)
    return bare


def test_encrypted_directory(encrypted: str, tmp_path: Path) -> None:
    left = tmp_path / "backup" / ".compact-elsewhere-1-x"
    left.mkdir()
    (left / "replica.sqlite3").write_bytes(bytes(1_000_000))
    fields, rows = _status(f"{encrypted}?key-file={tmp_path}/key&keep=2")
    assert fields["node_id"] == rows["node"] == _NODE
    assert (fields["encrypted"], fields["cipher"]) == (True, "AES-256-GCM")
    assert [key["label"] for key in fields["keys"]] == ["key-file", "paper"]
    assert fields["generations"] == 3
    assert fields["oldest_generation_at"] < fields["last_change_at"]
    everything = [tmp_path / "backup", *(tmp_path / "backup").rglob("*")]
    assert fields["space_bytes"] == _taken_bytes(*everything) > 1_000_000 > fields["backupsize"]
    assert rows["encryption"] == "AES-256-GCM"
    assert rows["key slots"] == "key-file, paper (key-file)"
    assert rows["generations"].startswith("3, the oldest made 2")


def test_locked_directory_shows_what_can_be_known(encrypted: str) -> None:
    fields, rows = _status(encrypted, code=17)
    assert fields["error"]["type"] == "Locked"
    assert [key["label"] for key in fields["keys"]] == ["key-file", "paper"]
    assert (fields["cipher"], fields["generations"]) == ("AES-256-GCM", 3)
    assert "version" not in fields
    assert rows["backup"] == encrypted
    assert rows["key slots"] == "key-file, paper (key-file)"
    assert "data version" not in rows


def test_locked_directory_without_any_key_says_so(encrypted: str, tmp_path: Path) -> None:
    for path in (tmp_path / "backup").glob("key-*"):
        path.unlink()
    assert _status(encrypted, code=17)[1]["key slots"] == "none: the backup cannot be unlocked"


def test_what_the_nodes_directory_says(tmp_path: Path) -> None:
    url, directory, replica = f"dir://{tmp_path}/node", tmp_path / "regtest", tmp_path / "replica"
    create_backend(url, None)
    _write(url)
    directory.mkdir()
    create_settings(str(directory), Settings(url))
    fields, rows = _status("--lightning-dir", str(directory))
    assert (fields["proven_version"], fields["alarm"]) == (None, None)
    assert {"proven", "ALARM", "replica", "last drill"}.isdisjoint(rows)
    kept = KeptReplica.open(str(replica))
    with open_reader(url) as reader:
        kept.catch_up(reader)
    alarm = Alarm("replay", "The change for data version 7 cannot be replayed.", 1.5)
    state = State(replica_dir=str(replica), alarm=alarm, drilled_at=2.5, drill_passed=True)
    write_state(str(directory), state)
    for arguments in (("--lightning-dir", str(directory)), ("--lightning-dir", directory, url)):
        fields, rows = _status(*map(str, arguments))  # while a follower has the replica open
        assert fields["backend_url"] == url
        assert fields["proven_version"] == 59
        assert fields["alarm"] == alarm._asdict()
        assert fields["replica_dir"] == rows["replica"] == str(replica)
        assert (fields["drilled_at"], fields["drill_passed"]) == (2.5, True)
        assert rows["proven"].startswith("up to data version 59, ")
        assert rows["ALARM"].endswith(alarm.text)
        assert rows["last drill"].startswith("passed ")
    kept.close()
    assert "Name the backup" in programs.run("status").stderr
