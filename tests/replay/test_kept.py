"""A kept replica: it has what its node has, whatever happens to either."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.model.change import Change
from cln_backup.model.errors import ReplayFailed, WriterConflict
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.kept_directory import remove_replica
from cln_backup.replay.note import NOTE_NAME, read_note
from tests.backends.conformance import PLACES
from tests.histories import (
    OFF,
    append,
    assert_same_database,
    build_database,
    first,
    image,
    payment,
    payments,
    rider,
    snapshot_of,
    transaction,
)
from tests.random_node import RandomNode

if TYPE_CHECKING:
    from pathlib import Path

_STEPS = 60


def _content(replica: KeptReplica, path: Path) -> Path:
    """What the replica's connection sees, in a file."""
    content = bytearray(replica.connection.serialize("main"))
    content[18:20] = b"\x01\x01"
    path.write_bytes(content)
    return path


def _require_as(replica: KeptReplica, history: list[Change], place: Path) -> None:
    place.mkdir()
    expected = build_database(place / "expected.sqlite3", history)
    assert_same_database(_content(replica, place / "found.sqlite3"), expected)
    assert replica.version == history[-1].version


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_replica_follows_its_node_through_everything(kind: str, seed: int, tmp_path: Path) -> None:
    url, directory = PLACES[kind](tmp_path), tmp_path / "replica"
    create_backend(url, None)
    chance = random.Random(seed)
    node = RandomNode(url, chance, compacts=True)
    replica = KeptReplica.open(str(directory))
    reader = open_reader(url)
    for step in range(_STEPS):
        node.step()
        if chance.random() < 0.2:
            replica.close()
            if chance.random() < 0.3:
                (directory / NOTE_NAME).unlink()
            replica = KeptReplica.open(str(directory))
        if chance.random() < 0.1:
            reader.close()
            reader = open_reader(url)
        if chance.random() < 0.5:
            reader.wait_for_more(0)
            assert replica.catch_up(reader)
            assert replica.check() == 0
            _require_as(replica, node.history, tmp_path / f"step-{step}")
            position = replica.position
            assert position is None or position.changes <= reader.standing.position.changes
            if kind == "dir" and position is not None and position.digest is not None:
                list(reader.stream_changes(after=position))  # it is in the history
    node.close()
    reader.close()
    replica.close()


def _backup(kind: str, place: Path, history: list[Change]) -> str:
    url = PLACES[kind](place)
    create_backend(url, None)
    append(url, history)
    return url


HISTORY = [first(), *payments(2, 30)]


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_head_is_seen_and_not_kept(kind: str, tmp_path: Path) -> None:
    url = _backup(kind, tmp_path, HISTORY)
    with open_reader(url) as reader:
        replica = KeptReplica.open(str(tmp_path / "replica"))
        replica.catch_up(reader)
        assert replica.version == 29
        assert replica.position is not None
        assert replica.position[:2] == (28, 28)
        replica.without_head()
        _require_as(replica, HISTORY[:-1], tmp_path / "committed")
        replica.catch_up(reader)
        replica.close()
        replica = KeptReplica.open(str(tmp_path / "replica"))
        assert replica.version == 28
        assert not replica.is_new
        assert replica.proof[0] == 29
        replica.close()


def test_stops_at_a_version(tmp_path: Path) -> None:
    url = _backup("dir", tmp_path, HISTORY)
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_reader(url) as reader:
        assert not replica.catch_up(reader, until=0.0)
        assert replica.catch_up(reader, to=7)
        _require_as(replica, HISTORY[:7], tmp_path / "seven")
        assert replica.catch_up(reader)
        _require_as(replica, HISTORY, tmp_path / "all")
    replica.close()


def test_rider_and_snapshot_at_the_head_are_kept(tmp_path: Path) -> None:
    history = [*HISTORY, rider(29, OFF)]
    url = _backup("dir", tmp_path, history)
    for extra in (None, snapshot_of(HISTORY, tmp_path / "node.sqlite3")):
        if extra is not None:
            append(url, [extra])
        replica = KeptReplica.open(str(tmp_path / "replica"))
        with open_reader(url) as reader:
            replica.catch_up(reader)
            assert replica.position == reader.standing.position
        replica.close()
        replica = KeptReplica.open(str(tmp_path / "replica"))
        assert replica.foreign_keys is (extra is not None)
        assert replica.connection.pragma("foreign_keys") == (extra is not None)
        assert replica.version == 29
        replica.close()


def test_failing_change_leaves_the_replica_before_it(tmp_path: Path) -> None:
    bad = transaction(20, "INSERT INTO payments (version) VALUES (3)")
    url = _backup("dir", tmp_path, [first(), *payments(2, 20), bad, *payments(21, 25)])
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_reader(url) as reader, pytest.raises(ReplayFailed) as failed:
        replica.catch_up(reader)
    assert failed.value.good_version == 19
    _require_as(replica, HISTORY[:19], tmp_path / "good")
    replica.close()


def test_only_one_process_has_it_open(tmp_path: Path) -> None:
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with pytest.raises(WriterConflict):
        KeptReplica.open(str(tmp_path / "replica"))
    with pytest.raises(WriterConflict):
        remove_replica(str(tmp_path / "replica"))
    replica.close()
    KeptReplica.open(str(tmp_path / "replica")).close()
    remove_replica(str(tmp_path / "replica"))
    remove_replica(str(tmp_path / "replica"))
    assert not (tmp_path / "replica").exists()


def test_snapshot_is_the_committed_database(tmp_path: Path) -> None:
    history = [first(), rider(1, OFF), *payments(2, 30)]
    url = _backup("dir", tmp_path, history)
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_reader(url) as reader:
        replica.catch_up(reader)
        with replica.snapshot() as folded:
            append(url, payments(30, 60))
            reader.wait_for_more(0)
            replica.catch_up(reader)
            assert folded.base is not None
            assert folded.base.snapshot is not None
            content = b"".join(folded.base.snapshot.chunks())
        assert folded.base.version == 28
        assert folded.base.stored_ms
        assert not folded.foreign_keys
        assert len(content) == folded.base.snapshot.size_bytes
        assert content[60:64] == content[68:72] == bytes(4)
        (tmp_path / "folded.sqlite3").write_bytes(content)
        expected = build_database(tmp_path / "expected.sqlite3", history[:-1])
        assert_same_database(tmp_path / "folded.sqlite3", expected)
        _require_as(replica, [*history, *payments(30, 60)], tmp_path / "now")
    replica.close()


def test_deleted_or_damaged_replica_is_made_again(tmp_path: Path) -> None:
    url, directory = _backup("dir", tmp_path, HISTORY), tmp_path / "replica"
    replica = KeptReplica.open(str(directory))
    with open_reader(url) as reader:
        replica.catch_up(reader)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        replica.catch_up(reader)
        _require_as(replica, HISTORY, tmp_path / "deleted")
        replica.close()
        noted = read_note(str(directory))
        assert noted is not None
        assert noted.position == replica.position
        for damage in (b"", b"no database" * 1000):
            (directory / "replica.sqlite3").write_bytes(damage)
            (directory / "replica.sqlite3-wal").unlink()
            replica = KeptReplica.open(str(directory))
            assert replica.is_new
            replica.catch_up(reader)
            replica.close()


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_another_history_with_the_same_numbers_starts_it_anew(kind: str, tmp_path: Path) -> None:
    """A backup that was replaced by another of the same node."""
    directory = tmp_path / "replica"
    others = [first(), *(payment(version, "other") for version in range(2, 40))]
    for number, history in enumerate((HISTORY, others)):
        place = tmp_path / str(number)
        place.mkdir()
        url = _backup(kind, place, history)
        replica = KeptReplica.open(str(directory))
        with open_reader(url) as reader:
            replica.catch_up(reader)
        _require_as(replica, history, place / "compared")
        assert replica.is_new
        replica.close()


def test_files_are_private_and_the_wal_stays_small(tmp_path: Path) -> None:
    url, directory = PLACES["dir"](tmp_path), tmp_path / "replica"
    create_backend(url, None)
    append(url, [first()])
    replica = KeptReplica.open(str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    with open_writer(url) as writer, open_reader(url) as reader:
        for version in range(2, 60):
            text = f"REPLACE INTO vars (name, val) VALUES ('large', '{'x' * 400_000}')"
            writer.add_change(transaction(version, text))
            reader.wait_for_more(0)
            replica.catch_up(reader)
            for path in directory.iterdir():
                assert path.stat().st_mode & 0o777 == 0o600
                assert path.stat().st_size < 12 << 20
    replica.close()


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_snapshots_that_are_no_database_are_passed(kind: str, tmp_path: Path) -> None:
    """A bad base, a good snapshot, a bad one, and the one that heals."""
    good = snapshot_of(HISTORY, tmp_path / "node.sqlite3")
    bad = Change(29, image("no database"), None)
    url = _backup(kind, tmp_path, [bad, good, bad])
    replica = KeptReplica.open(str(tmp_path / "replica"))
    with open_reader(url) as reader, pytest.raises(ReplayFailed):
        replica.catch_up(reader)
    append(url, [good, *payments(30, 33)])
    with open_reader(url) as reader:
        assert replica.catch_up(reader)
        _require_as(replica, [*HISTORY, *payments(30, 33)], tmp_path / "passed")
        position = replica.position
    replica.close()
    replica = KeptReplica.open(str(tmp_path / "replica"))
    assert (replica.position, replica.is_new) == (position, False)
    replica.close()
