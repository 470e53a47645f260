from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.ticket import size_of
from cln_backup.compaction.compact import compact
from cln_backup.compaction.compactor import Compactor
from cln_backup.formats import v2
from cln_backup.model.errors import BackupError, NotFound, StorageError, WriterConflict
from tests.disasters.places import KINDS, url_in
from tests.histories import (
    OFF,
    ON,
    add_all,
    append,
    assert_restores,
    first,
    long_text,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.waiting import WAIT_S, wait_until_ended

if TYPE_CHECKING:
    from cln_backup.backends.events import Event
    from cln_backup.backends.ticket import Statistics


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, tmp_path: Path) -> str:
    place = tmp_path / "backups"
    place.mkdir()
    url = url_in(place, kind)
    create_backend(url, None)
    return url


def _directory(url: str) -> Path:
    path = Path(url.partition("://")[2].partition("?")[0])
    return path.parent if url.startswith("file:") else path


def _stored(url: str) -> dict[str, bytes]:
    """The files of the backup, but for the lock and what only prepares for what is coming."""
    return {
        path.name: path.read_bytes()
        for path in _directory(url).iterdir()
        if path.is_file() and not path.name.startswith("spare") and path.suffix != ".writer"
    }


def _newest(url: str) -> Path:
    """The file that was written to last."""
    name = "node.bkp" if url.startswith("file:") else max(n for n in _stored(url) if n[:3] == "log")
    return _directory(url) / name


def _tear(url: str) -> None:
    """Puts the start of a record after the last one of a directory, as a crash leaves it."""
    whole = _newest(url).read_bytes()
    content = whole.rstrip(b"\x00")
    room = -(len(content) + v2.HEAD_BYTES) % v2.SECTOR_BYTES
    torn = content + v2.pack_head(room + 9_000) + b"x" * room
    _newest(url).write_bytes(torn.ljust(len(whole), b"\x00"))


def _left_behind(url: str) -> set[str]:
    """The names of the files besides the backup."""
    backup = re.compile(r"node\.bkp|(base|log|key)-.*|spare.*|.*\.writer")
    return {path.name for path in _directory(url).iterdir() if not backup.fullmatch(path.name)}


HISTORY = [*started_node(), *payments(4, 60)]


def test_history_becomes_one_snapshot_and_the_last_change(url: str, tmp_path: Path) -> None:
    append(url, HISTORY)
    with open_reader(url) as backend:
        before = size_of(backend)
    statistics = compact(url)
    with open_reader(url) as backend:
        assert statistics == {"before": before, "after": size_of(backend)}
    assert before["version_count"] == len(HISTORY)
    assert statistics["after"]["version_count"] == 2
    found = told_by(url)
    assert [(change.version, change.kind.value) for change in found] == [
        (58, "snapshot"),
        (59, "transaction"),
    ]
    assert found[1:] == told(HISTORY[-1:])
    assert_restores(url, HISTORY, tmp_path)
    assert not _left_behind(url)


def test_last_change_can_still_be_dropped(url: str, tmp_path: Path) -> None:
    append(url, HISTORY)
    compact(url)
    with open_writer(url) as backend:
        assert backend.standing.prev_version == 58
        backend.rewind()
        backend.add_change(payment(59, "in its place"))
    assert_restores(url, [*HISTORY[:-1], payment(59, "in its place")], tmp_path)


@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_fold(url: str, length: int) -> None:
    append(url, HISTORY[:length])
    before = _stored(url)
    statistics = compact(url)
    assert statistics["before"] == statistics["after"]
    assert _stored(url) == before


def test_compaction_of_what_was_compacted(url: str, tmp_path: Path) -> None:
    append(url, HISTORY)
    compact(url)
    once = _stored(url)
    compact(url)
    assert len(_stored(url)) == len(once)
    assert_restores(url, HISTORY, tmp_path)


@pytest.mark.parametrize("cut", range(1, 9))
def test_compaction_in_the_middle_of_a_migration(url: str, cut: int, tmp_path: Path) -> None:
    """Foreign keys that are off stay off; those that are on stay on."""
    history = [
        first(),
        transaction(2, "INSERT INTO peers (id) VALUES (1)", "INSERT INTO channels VALUES (1, 1)"),
        rider(2, OFF),
        transaction(3, "CREATE TABLE p (id INTEGER PRIMARY KEY, node_id BLOB UNIQUE)"),
        transaction(4, "DROP TABLE peers", "ALTER TABLE p RENAME TO peers"),
        transaction(5, "INSERT INTO channels VALUES (2, 77)"),
        rider(5, ON),
        transaction(6, "INSERT INTO peers (id) VALUES (5)"),
        payment(7),
    ]
    append(url, history[:cut])
    compact(url)
    append(url, history[cut:])
    assert_restores(url, history, tmp_path)
    compact(url)
    assert_restores(url, history, tmp_path)


def test_history_before_a_fresh_snapshot_is_dropped(url: str, tmp_path: Path) -> None:
    """The head is a snapshot: nothing before it is needed."""
    missed = [*HISTORY, *payments(60, 70)]
    base = snapshot_of(missed, tmp_path / "base.sqlite3")
    append(url, [*HISTORY, base])
    compact(url)
    assert told_by(url) == told([base])
    append(url, [payment(70)])
    assert_restores(url, [*missed, payment(70)], tmp_path)


def test_gap_that_a_snapshot_closed(url: str, tmp_path: Path) -> None:
    missed = [*HISTORY, *payments(60, 70)]
    base = snapshot_of(missed, tmp_path / "base.sqlite3")
    append(url, [*HISTORY, base, *payments(70, 75)])
    compact(url)
    assert_restores(url, [*missed, *payments(70, 75)], tmp_path)


def test_missing_backup(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        compact(f"file://{tmp_path}/none")
    assert list(tmp_path.glob("none")) == []


def test_backup_that_a_node_writes_to_is_left_to_its_plugin(url: str) -> None:
    append(url, HISTORY)
    before = _stored(url)
    with open_writer(url), pytest.raises(WriterConflict):
        compact(url)
    assert _stored(url) == before


def test_what_was_mended_is_told(url: str) -> None:
    append(url, HISTORY)
    if url.startswith("file:"):
        _newest(url).write_bytes(_newest(url).read_bytes() + b"torn")
    else:
        _tear(url)
    events: list[Event] = []
    compact(url, on_event=events.append)
    assert events


def test_time_of_the_last_change_is_kept(url: str) -> None:
    *before, head = HISTORY
    append(url, [*before, replace(head, stored_ms=1_600_000_000_000)])
    if url.startswith("file:"):  # which has no other time
        os.utime(_newest(url), (1_600_000_000, 1_600_000_000))
    compact(url)
    with open_reader(url) as backend:
        assert backend.last_change.at == 1_600_000_000


# The child process, beside a writer that continues.


def _wait(compactor: Compactor) -> Statistics:
    while True:
        readable, _, _ = select.select([compactor.fileno()], [], [], WAIT_S)
        assert readable, "the second process says nothing"
        statistics = compactor.step()
        if statistics is not None:
            return statistics


def _end(compactor: Compactor) -> None:
    compactor.close()
    compactor.wait()


@pytest.mark.parametrize("length", [10, 3_000])
def test_writer_goes_on_while_a_second_process_compacts(
    url: str, length: int, tmp_path: Path
) -> None:
    history = list(HISTORY)
    append(url, history)
    with open_writer(url) as writer:
        compactor = Compactor(writer)
        done = None
        version = 60
        while done is None:
            change = payment(version, long_text(version, length))
            writer.add_change(change)
            history.append(change)
            version += 1
            if select.select([compactor.fileno()], [], [], 0.002)[0]:
                done = compactor.step()
        _end(compactor)
        assert done["before"]["version_count"] == len(HISTORY)
        assert done["after"]["version_count"] == writer.standing.version_count
        assert writer.standing.version_count < len(history)
        after = payment(version, "after the swap")
        writer.add_change(after)
        history.append(after)
        assert writer.version == version
    assert version > 61
    assert_restores(url, history, tmp_path)
    assert not _left_behind(url)


def test_reader_of_the_old_file_is_not_disturbed_by_the_swap(url: str) -> None:
    append(url, HISTORY)
    with open_reader(url) as reader:
        stream = reader.stream_changes()
        next(stream)
        compact(url)
        assert told(stream) == told(HISTORY)[1:]


def test_second_process_that_is_killed_leaves_the_backup_as_it_was(url: str) -> None:
    append(url, HISTORY)
    before = told_by(url)
    with open_writer(url) as writer:
        compactor = Compactor(writer)
        os.kill(compactor.pid, signal.SIGKILL)
        with pytest.raises(StorageError):
            _wait(compactor)
        _end(compactor)
        writer.add_change(payment(60))
        statistics = _wait(again := Compactor(writer))
        _end(again)
        assert statistics["after"]["version_count"] == 2
    assert told_by(url)[-1:] == told([payment(60)])
    assert before


def test_scratch_of_a_killed_compaction_does_not_stay_for_ever(url: str, tmp_path: Path) -> None:
    """It is as large as the database, and the kernel may kill again and again."""
    append(url, HISTORY)
    with open_writer(url) as writer:
        for _ in range(3):
            compactor = Compactor(writer)
            assert compactor._child is not None
            while not _left_behind(url) and compactor._child.is_running():
                time.sleep(0.001)
            os.kill(compactor.pid, signal.SIGKILL)
            _end(compactor)
        compactor = Compactor(writer)
        _wait(compactor)
        _end(compactor)
    assert not _left_behind(url)
    assert_restores(url, HISTORY, tmp_path)


def test_compaction_that_is_called_off_when_it_is_ready_leaves_nothing(url: str) -> None:
    append(url, HISTORY)
    with open_writer(url) as writer:
        compactor = Compactor(writer)
        assert select.select([compactor.fileno()], [], [], WAIT_S)[0]
        assert len(_left_behind(url)) == 1, "the replacement is beside the backup"
        _end(compactor)
        assert not _left_behind(url)
        writer.add_change(payment(60))
    assert told_by(url) == told([*HISTORY, payment(60)])


def test_compaction_that_is_called_off_at_once_leaves_nothing(url: str) -> None:
    append(url, HISTORY)
    with open_writer(url) as writer:
        _end(Compactor(writer))
        assert not _left_behind(url)
    assert told_by(url) == told(HISTORY)


def test_broken_history_is_told_by_the_second_process(url: str) -> None:
    append(url, [*HISTORY, transaction(60, "INSERT INTO nowhere VALUES (1)"), payment(61)])
    before = _stored(url)
    with open_writer(url) as writer:
        compactor = Compactor(writer)
        with pytest.raises(BackupError, match="version 60"):
            _wait(compactor)
        _end(compactor)
    assert _stored(url) == before
    assert not _left_behind(url)


_WRITER = """
import sys, time
from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compactor import Compactor
writer = open_writer(sys.argv[1])
compactor = Compactor(writer)
print(compactor.pid, flush=True)
time.sleep(600)
"""


def test_second_process_ends_with_a_writer_that_is_killed(url: str) -> None:
    """Its replacement would not be used; the next writer removes it."""
    append(url, HISTORY)
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout is not None
        second = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
    wait_until_ended(second)
    append(url, [payment(60)])
    assert told_by(url) == told([*HISTORY, payment(60)])
    assert not _left_behind(url)


def test_two_compactions_at_once_do_not_mix(url: str, tmp_path: Path) -> None:
    append(url, HISTORY)
    with open_writer(url) as writer:
        one, other = Compactor(writer), Compactor(writer)
        outcomes = []
        for compactor in (one, other):
            try:
                _wait(compactor)
                outcomes.append(True)
            except StorageError:
                outcomes.append(False)
            _end(compactor)
        assert any(outcomes)
        writer.add_change(payment(60))
    assert_restores(url, [*HISTORY, payment(60)], tmp_path)


def test_writer_that_appends_much_is_caught_up_with(url: str, tmp_path: Path) -> None:
    """The swap itself is short: more than a little is copied by the second process."""
    history = list(HISTORY)
    append(url, history)
    with open_writer(url) as writer:
        compactor = Compactor(writer)
        assert select.select([compactor.fileno()], [], [], WAIT_S)[0]
        more = [payment(n, long_text(n, 9_000)) for n in range(60, 90)]
        add_all(writer, more)
        history.extend(more)
        if url.startswith("file:"):
            assert compactor.step() is None, "it was asked to copy more"
        _wait(compactor)
        _end(compactor)
    assert_restores(url, history, tmp_path)
