"""The follower as a real process, beside a writer."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.opening import Opening
from cln_backup.follower import followed
from cln_backup.follower.followed import FollowedBackup
from cln_backup.follower.messages import Alarm, Backup, Progress, Removed
from cln_backup.model.change import Change
from cln_backup.model.errors import StorageError
from cln_backup.process.channel import Message
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.replica import DatabaseFile
from cln_backup.server.proof import Proof
from tests import captured
from tests.backends.conformance import PLACES
from tests.follower.following import Follower
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    first,
    payments,
    transaction,
)
from tests.random_node import RandomNode
from tests.small_disk import fill, small_disk
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Iterable

HISTORY = [first(), *payments(2, 40)]
_PIECES_KIB = 7 << 10


def _backup(kind: str, place: Path, history: Iterable[Change]) -> str:
    url = PLACES[kind](place)
    create_backend(url, None)
    append(url, history)
    return url


def _peak_kib(follower: Follower) -> int:
    status = Path(f"/proc/{follower.child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _require_replica_as(directory: Path, url: str, expected: Path) -> None:
    """Compares the replica at the head, which was not made again, with a database."""
    replica = KeptReplica.open(str(directory))
    assert not replica.is_new
    with open_reader(url) as reader:
        replica.catch_up(reader)
    found = bytearray(replica.connection.serialize("main"))
    found[18:20] = b"\x01\x01"
    replica.close()
    path = expected.with_name("found.sqlite3")
    path.write_bytes(found)
    assert_same_database(path, expected)


@pytest.mark.parametrize("kind", sorted(PLACES))
def test_proves_each_change_and_ends_with_its_parent(kind: str, tmp_path: Path) -> None:
    url, directory = _backup(kind, tmp_path, HISTORY), tmp_path / "replica"
    with Follower(url, directory) as follower:
        follower.hear_version(39)
        with open_writer(url) as writer:
            for change in payments(40, 60):
                writer.add_change(change)
            writer.rewind()
            for change in payments(59, 80):
                writer.add_change(change)
        follower.hear_version(79)
        follower.close()
    expected = build_database(tmp_path / "node.sqlite3", [first(), *payments(2, 80)])
    _require_replica_as(directory, url, expected)


def test_says_nothing_of_a_quiet_node(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    with Follower(url, tmp_path / "replica") as follower:
        follower.hear_version(39)
        count = len(follower.heard)
        time.sleep(3)
        append(url, payments(40, 41))
        follower.hear_version(40)
        assert len(follower.heard) <= count + 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in ("file", "dir")
        for name in captured.SMALL
        if SOAK or (kind == "dir") is (name == "payer")
    ],
)
def test_recording(name: str, kind: str, tmp_path: Path) -> None:
    """Killed at random moments while the recorded node writes, it ends with the node's database."""
    recording = captured.COMMITTED / "small" / f"{name}.jsonl.xz"
    url, directory = _backup(kind, tmp_path, ()), tmp_path / "replica"
    chance = random.Random(name)
    changes = list(captured.changes(recording))
    with open_writer(url) as writer:
        while changes:
            with Follower(url, directory) as follower:
                count = chance.randrange(200, 500)
                for change in changes[:count]:
                    writer.add_change(change)
                    if chance.random() < 0.05:
                        time.sleep(0.02)
                del changes[:count]
                if changes:
                    time.sleep(chance.random())
                    follower.kill()
                else:
                    follower.hear_version(writer.version)
    database = recording.with_name(f"{name}.sqlite3.xz")
    expected = captured.unpacked(database, tmp_path / "recorded.sqlite3")
    _require_replica_as(directory, url, expected)


@pytest.mark.parametrize(("kind", "seed"), [("file", 0), ("dir", 1)])
def test_killed_while_its_node_drops_restarts_and_compacts(
    kind: str, seed: int, tmp_path: Path
) -> None:
    url, directory = _backup(kind, tmp_path, ()), tmp_path / "replica"
    chance = random.Random(seed)
    node = RandomNode(url, chance, compacts=True)
    for _ in range(4):
        with Follower(url, directory) as follower:
            for _ in range(12):
                node.step()
                time.sleep(0.05 * chance.random())
            if chance.random() < 0.3:
                follower.hear_version(node.history[-1].version)
            follower.kill()
    node.close()
    with Follower(url, directory) as follower:
        follower.hear_version(node.history[-1].version)
        follower.close()
    expected = build_database(tmp_path / "node.sqlite3", node.history)
    _require_replica_as(directory, url, expected)


@pytest.mark.parametrize(
    "bad",
    [
        transaction(20, "INSERT INTO payments (version) VALUES (3)"),
        transaction(20, "UPDATE vars SET intval = 5 WHERE name = 'data_version'"),
        transaction(20, "DELETE FROM vars WHERE name = 'data_version'"),
    ],
    ids=["fails", "does not lead to its version", "has no version"],
)
def test_change_that_does_not_replay_is_an_alarm(bad: Change, tmp_path: Path) -> None:
    url, directory = _backup("dir", tmp_path, HISTORY[:15]), tmp_path / "replica"
    with Follower(url, directory) as follower:
        follower.hear_version(15)
        append(url, [*payments(16, 20), bad, *payments(21, 25)])
        alarm = follower.hear_alarm()
        assert alarm.kind == "replay"
        assert "data version 20" in alarm.text
        follower.close()
    noted = json.loads((directory / "position.json").read_text())
    assert (noted["version"], noted["proven_version"]) == (19, 15)
    with Follower(url, directory) as follower:  # found again, from the start of the history
        assert follower.hear_alarm() == alarm


def test_damage_is_an_alarm(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    (log,) = (tmp_path / "node").glob("log-*")
    with log.open("r+b") as file:
        file.seek(3000)
        byte = file.read(1)
        file.seek(3000)
        file.write(bytes([byte[0] ^ 1]))
    with Follower(url, tmp_path / "replica") as follower:
        assert follower.hear_alarm().kind == "damaged"


def test_damage_that_comes_back_is_an_alarm_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent has ended the first alarm when the backup was read to its end."""
    monkeypatch.setattr(followed, "_DOUBTS_S", {"replay": (), "damaged": ()})
    monkeypatch.setattr(followed, "_LONGEST_TROUBLE_S", 0.0)
    monkeypatch.setattr(followed, "_LOOK_S", 0.0)
    monkeypatch.setattr(followed, "_SHARE", 0)
    url, directory = _backup("dir", tmp_path, HISTORY), tmp_path / "replica"
    (log,) = (tmp_path / "node").glob("log-*")
    whole = log.read_bytes()
    damaged = whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]
    proof, said = Proof(), list[Message]()
    backup = FollowedBackup(Backup("node", Opening(url), str(directory)), said.append)

    def is_alarmed_after_looks() -> bool:
        said.clear()
        for _ in range(3):
            time.sleep(backup.due_s())
            backup.look()
        for message in said:
            if isinstance(message, Alarm):
                proof.raise_alarm(message)
            elif isinstance(message, Progress):
                proof.take(message)
        return proof.alarm is not None

    for _ in range(2):
        log.write_bytes(damaged)
        assert is_alarmed_after_looks()
        assert sum(isinstance(message, Alarm) for message in said) == 1
        log.write_bytes(whole)
        assert not is_alarmed_after_looks()
        shutil.rmtree(directory)  # so that everything is read again
    backup.close()


def test_unreachable_backup_is_no_alarm(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    place, away = tmp_path / "node", tmp_path / "away"
    place.rename(away)
    with Follower(url, tmp_path / "replica") as follower:
        follower.hear(lambda said: isinstance(said, Progress) and said.trouble is not None)
        away.rename(place)
        follower.hear_version(39)
        said = follower.heard[-1]
        assert isinstance(said, Progress)
        assert said.trouble is None


def test_full_disk_is_no_alarm(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    with small_disk(tmp_path / "disk", 16 << 10) as disk:
        for version in (39, 49):
            other = fill(disk)
            with Follower(url, disk / "replica") as follower:
                follower.hear(lambda said: isinstance(said, Progress) and said.trouble is not None)
                other.unlink()
                follower.hear_version(version)
                follower.close()
            large = transaction(40, f"INSERT INTO payments VALUES (40, '{'x' * 3_000_000}')")
            if version == 39:
                append(url, [large, *payments(41, 50)])


def test_deleted_replica_is_made_again(tmp_path: Path) -> None:
    url, directory = _backup("dir", tmp_path, HISTORY), tmp_path / "replica"
    with Follower(url, directory) as follower:
        follower.hear_version(39)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        append(url, payments(40, 42))
        follower.hear_version(41)
        follower.close()
    expected = build_database(tmp_path / "node.sqlite3", [first(), *payments(2, 42)])
    _require_replica_as(directory, url, expected)


def test_damaged_replica_is_made_again_without_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "_FIRST_CHECK_S", 0.0)
    url, directory = _backup("dir", tmp_path, HISTORY), tmp_path / "replica"
    replica = KeptReplica.open(str(directory))
    with open_reader(url) as reader:
        replica.catch_up(reader)
    replica.connection.execute("PRAGMA writable_schema = ON")
    replica.connection.execute("ROLLBACK")
    replica.connection.execute(
        "UPDATE sqlite_master SET rootpage = 2 WHERE type = 'table' AND name = 'payments'"
    )
    replica.close()
    said: list[Message] = []
    backup = FollowedBackup(Backup("node", Opening(url), str(directory)), said.append)
    for _ in range(3):
        backup.look()
        time.sleep(backup.due_s())
    backup.close()
    last = said[-1]
    assert isinstance(last, Progress)
    assert last.checked_at is not None
    assert last.proven_version == 39
    assert not any(isinstance(message, Alarm) for message in said)
    expected = build_database(tmp_path / "node.sqlite3", HISTORY)
    _require_replica_as(directory, url, expected)


def test_removes_former_replicas(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    with Follower(url, tmp_path / "old") as follower:
        follower.hear_version(39)
        follower.close()
    with Follower(url, tmp_path / "new", tmp_path / "old") as follower:
        assert follower.hear(lambda _: True) == Removed(str(tmp_path / "old"))
        assert not (tmp_path / "old").exists()
        follower.hear_version(39)
        follower.close()
    with Follower(url, tmp_path, tmp_path / "new", follows=False) as follower:
        assert follower.hear(lambda _: True) == Removed(str(tmp_path / "new"))
        with pytest.raises(StorageError):  # it has ended
            follower.hear(lambda _: False)


@pytest.mark.parametrize("kind", ["dir", "dir-encrypted"])
def test_memory_does_not_depend_on_the_size_of_the_snapshot(kind: str, tmp_path: Path) -> None:
    peaks_kib = []
    for name, size_bytes in (("small", 4_096), ("large", 24 << 20)):
        home = tmp_path / name
        home.mkdir()
        database = build_database(home / "node.sqlite3", [first()])
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE large (content BLOB)")
            for _ in range(max(1, size_bytes >> 17)):
                content = os.urandom(min(size_bytes, 1 << 17))
                connection.execute("INSERT INTO large VALUES (?)", (content,))
            connection.commit()
        url = _backup(kind, home, [Change(1, DatabaseFile(str(database)), None)])
        with Follower(url, home / "replica") as follower:
            follower.hear_version(1)
            peaks_kib.append(_peak_kib(follower))
    small, large = peaks_kib
    assert large < 44 << 10
    assert large - small < _PIECES_KIB


def test_former_replica_that_cannot_be_removed_is_no_obstacle(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    (tmp_path / "old" / "replica.sqlite3" / "in").mkdir(parents=True)
    with Follower(url, tmp_path / "new", tmp_path / "old") as follower:
        follower.hear_version(39)
        follower.close()


def test_memory_and_priority(tmp_path: Path) -> None:
    recording = captured.COMMITTED / "small" / "router.jsonl.xz"
    url = _backup("dir", tmp_path, captured.changes(recording))
    with open_reader(url) as reader:
        version = reader.version
    with Follower(url, tmp_path / "replica") as follower:
        follower.hear_version(version)
        peak_kib = _peak_kib(follower)
    assert peak_kib < 40 << 10
