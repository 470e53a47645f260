from __future__ import annotations

from pathlib import Path

import pytest

from cln_backup.backends import create_backend, open_reader
from cln_backup.model.change import Change
from cln_backup.model.errors import Damaged, ReplayFailed
from cln_backup.operations.history import log, status
from cln_backup.operations.verify import Verified, verify
from cln_backup.replay.replica import Healed
from tests.histories import (
    OFF,
    ON,
    append,
    first,
    image,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    transaction,
)

HISTORY = [*started_node(), *payments(4, 9)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = tmp_path / "backups"
    place.mkdir()
    url = f"file://{place}/node.bkp"
    create_backend(url, None)
    return url


def _verify(url: str, *, replayed: bool = True) -> Verified:
    with open_reader(url) as backend:
        return verify(backend, replayed=replayed)


def test_good_backup(url: str) -> None:
    append(url, HISTORY)
    assert _verify(url) == Verified(8, len(HISTORY), replayed=True, foreign_key_faults=0)
    assert _verify(url, replayed=False)[:3] == (8, len(HISTORY), False)


def test_empty_backup_is_good(url: str) -> None:
    for replayed in (False, True):
        found = _verify(url, replayed=replayed)
        assert (found.version, found.version_count) == (0, 0)


def test_nothing_is_left_beside_the_backup(url: str) -> None:
    append(url, HISTORY)
    _verify(url)
    place = Path(url.removeprefix("file://")).parent
    assert {path.name for path in place.iterdir()} == {"node.bkp", "node.bkp.writer"}


def test_backup_with_a_snapshot(url: str, tmp_path: Path) -> None:
    append(url, [snapshot_of(HISTORY, tmp_path / "base.sqlite3"), *payments(9, 12)])
    assert _verify(url)[:2] == (11, 4)
    assert _verify(url, replayed=False)[:2] == (11, 4)


def test_rows_that_refer_to_none_are_counted(url: str) -> None:
    append(url, [first(), rider(1, OFF), transaction(2, "INSERT INTO channels VALUES (1, 77)")])
    assert _verify(url).foreign_key_faults == 1


def test_replay_finds_what_reading_does_not(url: str) -> None:
    append(url, [*HISTORY, transaction(9, "INSERT INTO nowhere VALUES (1)"), payment(10)])
    assert _verify(url, replayed=False).version == 10
    with pytest.raises(ReplayFailed) as failed:
        _verify(url)
    assert failed.value.good_version == 8


def test_changes_that_a_snapshot_has_healed_are_told(url: str, tmp_path: Path) -> None:
    bad = transaction(9, "INSERT INTO nowhere VALUES (1)")
    healing = snapshot_of([*HISTORY, *payments(9, 12)], tmp_path / "healing.sqlite3")
    append(url, [*HISTORY, bad, payment(10), healing, *payments(12, 15)])
    assert _verify(url).healed == (Healed(8, 11, 2),)
    assert _verify(url, replayed=False).healed == ()


def test_snapshot_that_is_no_database_is_found(url: str) -> None:
    append(url, [*HISTORY, Change(20, image("nothing more " * 200), None)])
    with pytest.raises(ReplayFailed):
        _verify(url)


def test_damaged_structure_is_found_without_a_replay(url: str) -> None:
    append(url, HISTORY)
    path = Path(url.removeprefix("file://"))
    content = bytearray(path.read_bytes())
    content[512 + 8] = 7
    path.write_bytes(content)
    with pytest.raises(Damaged) as damaged:
        _verify(url, replayed=False)
    assert (damaged.value.offset_bytes, damaged.value.good_version) == (512, 0)


@pytest.mark.parametrize("replayed", [False, True])
def test_progress_is_told_of_each_change(url: str, replayed: bool) -> None:
    append(url, HISTORY)
    seen: list[Change] = []
    with open_reader(url) as backend:
        verify(backend, replayed=replayed, progress=seen.append)
    assert [change.version for change in seen] == [change.version for change in HISTORY]


def test_status(url: str, tmp_path: Path) -> None:
    with open_reader(url) as backend:
        empty = status(backend)
    assert empty[:3] == (url, 0, 0)
    assert (empty.head, empty.last_change_at) == (None, None)
    assert empty.backupsize == 512
    heads = []
    base = snapshot_of(HISTORY, tmp_path / "base.sqlite3")
    for change in (base, payment(9), rider(9, OFF)):
        append(url, [change])
        with open_reader(url) as backend:
            found = status(backend)
        heads.append(found.head)
        assert found.backupsize == Path(url.removeprefix("file://")).stat().st_size
        assert found.last_change_at is not None
    assert heads == ["snapshot", "transaction", "rider"]


def test_log(url: str, tmp_path: Path) -> None:
    base = snapshot_of(started_node(), tmp_path / "base.sqlite3")
    assert base.snapshot is not None
    both = transaction(
        4,
        "INSERT INTO peers (id) VALUES (1)",
        "UPDATE payments SET description = 'ä' WHERE version = 1",
        "INSERT INTO peers (id) VALUES (2)",
    )
    append(url, [base, both, rider(4, OFF, ON)])
    with open_reader(url) as backend:
        lines = list(log(backend))
        assert list(log(backend, 4)) == lines[1:]
        assert list(log(backend, 5)) == []
    assert both.transaction is not None
    assert lines == [
        (3, "snapshot", base.snapshot.size_bytes, 0, (), None),
        (
            4,
            "transaction",
            sum(len(text.encode()) for text in both.transaction),
            4,
            ("peers", "payments", "vars"),
            None,
        ),
        (4, "rider", len(OFF) + len(ON), 2, (), None),
    ]
