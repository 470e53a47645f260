"""The disk fills up: what was answered stays, and nothing that was not answered is promised."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.file import FileBackend
from cln_backup.change import Change
from cln_backup.compact import compact
from cln_backup.errors import BackupError, StorageError
from cln_backup.initialize import initialize
from cln_backup.restore import restore
from cln_backup.verify import verify
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    image,
    long_text,
    payment,
    payments,
    started_node,
    told,
    told_by,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE_KIB = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={SIZE_KIB}k,mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def small_files(tmp_path: Path) -> Iterator[Path]:
    """A directory in which no file can grow over a limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_KIB << 10, before[1]))
    try:
        yield tmp_path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["small_disk", "small_files"])
def full(request: pytest.FixtureRequest) -> Path:
    place: Path = request.getfixturevalue(request.param)
    return place


def _fill(place: Path) -> Path:
    """Takes what room is left."""
    path = place / "other"
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def _large(version: int) -> Change:
    return payment(version, long_text(version, 13_000))


def _snapshot(version: int) -> Change:
    return Change(version, image("x" * (SIZE_KIB << 10)), None)


@pytest.mark.parametrize("what", [_large, _snapshot], ids=["transaction", "snapshot"])
def test_append_fails_and_the_writer_writes_no_more(
    full: Path, what: Callable[[int], Change]
) -> None:
    url = f"file://{full}/node.bkp"
    FileBackend.create(url, None)
    answered = list(started_node())
    append(url, answered)
    with FileBackend.open(url, writable=True) as backend:
        with pytest.raises(StorageError, match=r"append entry|write|sync"):
            _append_until_it_fails(backend, what, answered)
        length = os.path.getsize(full / "node.bkp")
        for refused in (payment(answered[-1].version + 1), started_node()[1]):
            with pytest.raises(StorageError):
                backend.add_change(refused)
        with pytest.raises(StorageError):
            backend.rewind()
        assert os.path.getsize(full / "node.bkp") == length
    assert told_by(url) == told(answered)


def _append_until_it_fails(
    backend: FileBackend, what: Callable[[int], Change], answered: list[Change]
) -> None:
    while True:
        change = what(answered[-1].version + 1)
        backend.add_change(change)
        answered.append(change)


@pytest.mark.parametrize("what", [_large, _snapshot], ids=["transaction", "snapshot"])
def test_next_writer_goes_on_when_there_is_room_again(
    small_disk: Path, what: Callable[[int], Change]
) -> None:
    """Until then it may refuse: what was cut is kept, and the disk has no room for it."""
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    answered = list(started_node())
    append(url, answered)
    with FileBackend.open(url, writable=True) as backend, pytest.raises(StorageError):
        _append_until_it_fails(backend, what, answered)
    with contextlib.suppress(StorageError):
        FileBackend.open(url, writable=True).close()
    assert told_by(url) == told(answered)
    assert not list(small_disk.glob("*unfinished*"))
    larger = f"remount,size={4 * SIZE_KIB}k"
    subprocess.run(["mount", "-o", larger, str(small_disk)], check=True)
    append(url, [payment(answered[-1].version + 1)])
    assert told_by(url) == told([*answered, payment(answered[-1].version + 1)])


def test_message_says_to_make_room(small_disk: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, started_node())
    _fill(small_disk)
    with pytest.raises(StorageError, match="Make room"):
        append(url, [_large(version) for version in range(4, 9)])


def test_node_goes_on_when_there_is_room_again(small_disk: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, started_node())
    other = _fill(small_disk)
    with pytest.raises(StorageError):
        append(url, [_large(4)])
    other.unlink()
    append(url, [_large(4), payment(5)])
    assert told_by(url) == told([*started_node(), _large(4), payment(5)])


def test_backup_can_be_read_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    history = [*started_node(), *payments(4, 20)]
    append(url, history)
    _fill(small_disk)
    with FileBackend.open(url, writable=False) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
        assert verify(backend, replayed=False).version == 19
    assert_same_database(restored.path, build_database(tmp_path / "expected", history))


def test_opening_for_writing_works_on_a_full_disk(small_disk: Path) -> None:
    """A node that was stopped by a full disk must at least be told so at its next change."""
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, started_node())
    _fill(small_disk)
    with FileBackend.open(url, writable=True) as backend:
        assert backend.version == 3


def test_compaction_out_of_room_leaves_the_backup_as_it_was(small_disk: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 200)])
    content = (small_disk / "node.bkp").read_bytes()
    other = _fill(small_disk)
    with pytest.raises(StorageError):
        compact(url)
    assert (small_disk / "node.bkp").read_bytes() == content
    assert {path.name for path in small_disk.iterdir()} <= {"node.bkp", "node.bkp.writer", "other"}
    other.unlink()


@pytest.mark.parametrize("room_kib", range(0, 72, 8))
def test_compaction_that_runs_out_of_room_anywhere(small_disk: Path, room_kib: int) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    history = [*started_node(), *payments(4, 150)]
    append(url, history)
    other = _fill(small_disk)
    os.truncate(other, max(0, other.stat().st_size - (room_kib << 10)))
    try:
        compact(url)
    except StorageError:
        assert told_by(url) == told(history)
    other.unlink()
    with FileBackend.open(url, writable=False) as backend:
        restored = restore(backend, str(small_disk.parent / "restored.sqlite3"))
    expected = build_database(small_disk.parent / "expected.sqlite3", history)
    assert_same_database(restored.path, expected)
    names = {path.name for path in small_disk.iterdir()}
    assert names == {"node.bkp", "node.bkp.writer"}


def test_writer_goes_on_after_its_compaction_ran_out_of_room(small_disk: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 100)])
    with FileBackend.open(url, writable=True) as writer:
        with FileBackend.open(url, writable=False) as reader:
            other = _fill(small_disk)
            base = Change(98, image("x" * 40_000), None)
            with pytest.raises(StorageError):
                reader.stage(base, foreign_keys=True)
            other.unlink()
        writer.add_change(payment(100))
    assert told_by(url) == told([*started_node(), *payments(4, 100), payment(100)])


def test_init_on_a_full_disk_makes_nothing(small_disk: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    build_database(node / "lightningd.sqlite3", [*started_node(), *payments(4, 30)])
    other = _fill(small_disk)
    with pytest.raises(StorageError):
        initialize(f"file://{small_disk}/node.bkp", str(node))
    assert list(small_disk.iterdir()) == [other]
    assert [path.name for path in node.iterdir()] == ["lightningd.sqlite3"]


def test_restore_to_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 30)])
    other = _fill(small_disk)
    with FileBackend.open(url, writable=False) as backend, pytest.raises(StorageError):
        restore(backend, str(small_disk / "restored.sqlite3"))
    assert list(small_disk.iterdir()) == [other]


def test_verify_on_a_full_disk_says_so_and_leaves_nothing(small_disk: Path) -> None:
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 30)])
    other = _fill(small_disk)
    with FileBackend.open(url, writable=False) as backend, pytest.raises(StorageError):
        verify(backend, replayed=True)
    names = {path.name for path in small_disk.iterdir()}
    assert names == {"node.bkp", "node.bkp.writer", other.name}


@pytest.fixture
def read_only_disk(small_disk: Path) -> Path:
    """A disk with a backup on it that was mounted for reading, to look into it."""
    url = f"file://{small_disk}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 30)])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


def test_restore_from_a_disk_that_is_mounted_for_reading(
    read_only_disk: Path, tmp_path: Path
) -> None:
    with FileBackend.open(f"file://{read_only_disk}/node.bkp", writable=False) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    expected = build_database(tmp_path / "expected", [*started_node(), *payments(4, 30)])
    assert_same_database(restored.path, expected)


def test_other_commands_on_a_disk_mounted_for_reading_say_what_is_wrong(
    read_only_disk: Path,
) -> None:
    url = f"file://{read_only_disk}/node.bkp"
    with pytest.raises(StorageError, match="Read-only"):
        FileBackend.open(url, writable=True)
    with FileBackend.open(url, writable=False) as backend:
        assert verify(backend, replayed=False).version == 29
        with pytest.raises(BackupError):
            verify(backend, replayed=True)


def test_command_line_on_a_full_disk_ends_with_the_code_for_it(
    small_disk: Path, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/node.bkp"
    FileBackend.create(url, None)
    append(url, [*started_node(), *payments(4, 30)])
    _fill(small_disk)
    ended = subprocess.run(
        [sys.executable, "-m", "cln_backup.cli", "restore", url, str(small_disk / "r.sqlite3")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == StorageError.exit_code
    assert ended.stderr.startswith("Error: ")
