"""The disk fills up: what was answered stays, and nothing that was not answered is promised."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir import store as dir_store
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, StorageError
from cln_backup.operations.initialize import initialize
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from tests.disasters.places import KINDS, url_in
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    image,
    long_text,
    payment,
    payments,
    prepared,
    started_node,
    told,
    told_by,
)
from tests.small_disk import fill
from tests.small_disk import small_disk as mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cln_backup.backends.contract import Writer

SIZE_KIB = 160


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 16 << 10)
    return str(request.param)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with little room."""
    with mounted(tmp_path / "disk", SIZE_KIB) as place:
        yield place


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


def _url(kind: str, place: Path) -> str:
    """A backup in a directory of its own in that place."""
    directory = place / "backup"
    directory.mkdir(mode=0o700, exist_ok=True)
    return url_in(directory, kind)


def _started(kind: str, place: Path, history: Sequence[Change]) -> str:
    """The URL of a backup in that place, which holds a history."""
    url = _url(kind, place)
    create_backend(url, None)
    append(url, history)
    return url


def _stored(place: Path) -> dict[str, bytes]:
    """The files of the backup; those left out that only prepare what is coming."""
    return {
        path.name: path.read_bytes()
        for path in (place / "backup").iterdir()
        if not path.name.startswith("spare")
    }


def _without_locks(stored: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in stored.items() if not name.endswith(".writer")}


def _large(version: int) -> Change:
    return payment(version, long_text(version, 13_000))


def _snapshot(version: int) -> Change:
    return Change(version, image(long_text(version, 3 * SIZE_KIB << 10)), None)


@pytest.mark.parametrize("what", [_large, _snapshot], ids=["transaction", "snapshot"])
def test_append_fails_and_the_writer_writes_no_more(
    kind: str, full: Path, what: Callable[[int], Change]
) -> None:
    if kind != "file" and what is _large and full.name != "disk":
        pytest.skip("does not apply: a directory's log continues in another file")
    answered = list(started_node())
    url = _started(kind, full, answered)
    with open_writer(url) as backend:
        with pytest.raises(StorageError, match=r"append entry|preallocate|write|sync"):
            _append_until_it_fails(backend, what, answered)
        stored = _stored(full)
        for refused in (payment(answered[-1].version + 1), started_node()[1]):
            with pytest.raises(StorageError):
                backend.add_change(refused)
        with pytest.raises(StorageError):
            backend.rewind()
        assert _stored(full) == stored
    assert told_by(url) == told(answered)


def _append_until_it_fails(
    backend: Writer, what: Callable[[int], Change], answered: list[Change]
) -> None:
    for _ in range(100):
        change = what(answered[-1].version + 1)
        backend.add_change(change)
        answered.append(change)


@pytest.mark.parametrize("what", [_large, _snapshot], ids=["transaction", "snapshot"])
def test_next_writer_goes_on_when_there_is_room_again(
    kind: str, small_disk: Path, what: Callable[[int], Change]
) -> None:
    """Until then it may refuse: what was cut is kept, and the disk has no room for it."""
    answered = list(started_node())
    url = _started(kind, small_disk, answered)
    with open_writer(url) as backend, pytest.raises(StorageError):
        _append_until_it_fails(backend, what, answered)
    with contextlib.suppress(StorageError):
        open_writer(url).close()
    assert told_by(url) == told(answered)
    assert not list(small_disk.rglob("*unfinished*"))
    assert not list(small_disk.rglob("building.*"))
    larger = f"remount,size={4 * SIZE_KIB}k"
    subprocess.run(["mount", "-o", larger, str(small_disk)], check=True)
    append(url, [payment(answered[-1].version + 1)])
    assert told_by(url) == told([*answered, payment(answered[-1].version + 1)])


def test_message_says_to_make_room(kind: str, small_disk: Path) -> None:
    url = _started(kind, small_disk, started_node())
    fill(small_disk)
    with pytest.raises(StorageError, match="Free space"):
        append(url, [_large(version) for version in range(4, 9)])


def test_node_goes_on_when_there_is_room_again(kind: str, small_disk: Path) -> None:
    url = _started(kind, small_disk, started_node())
    other = fill(small_disk)
    with pytest.raises(StorageError):
        append(url, [_large(4)])
    other.unlink()
    append(url, [_large(4), payment(5)])
    assert told_by(url) == told([*started_node(), _large(4), payment(5)])


def test_backup_can_be_read_on_a_full_disk(kind: str, small_disk: Path, tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 20)]
    url = _started(kind, small_disk, history)
    fill(small_disk)
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
        assert verify(backend, replayed=False).version == 19
    assert_same_database(restored.path, build_database(tmp_path / "expected", history))


def test_opening_for_writing_works_on_a_full_disk(kind: str, small_disk: Path) -> None:
    """A node that was stopped by a full disk must at least be told so at its next change."""
    url = _started(kind, small_disk, started_node())
    fill(small_disk)
    with open_writer(url) as backend:
        assert backend.version == 3


def test_compaction_out_of_room_leaves_the_backup_as_it_was(kind: str, small_disk: Path) -> None:
    url = _started(kind, small_disk, [*started_node(), *payments(4, 200)])
    stored = _stored(small_disk)
    fill(small_disk)
    with pytest.raises(StorageError):
        compact(url)
    assert _without_locks(_stored(small_disk)) == _without_locks(stored)


@pytest.mark.parametrize("room_kib", range(0, 72, 8))
def test_compaction_that_runs_out_of_room_anywhere(
    kind: str, small_disk: Path, room_kib: int
) -> None:
    history = [*started_node(), *payments(4, 150)]
    url = _started(kind, small_disk, history)
    other = fill(small_disk)
    os.truncate(other, max(0, other.stat().st_size - (room_kib << 10)))
    try:
        compact(url)
    except StorageError:
        assert told_by(url) == told(history)
    other.unlink()
    with open_reader(url) as backend:
        restored = restore(backend, str(small_disk.parent / "restored.sqlite3"))
    expected = build_database(small_disk.parent / "expected.sqlite3", history)
    assert_same_database(restored.path, expected)
    assert not list(small_disk.rglob("*compact*"))


def test_writer_goes_on_after_its_compaction_ran_out_of_room(kind: str, small_disk: Path) -> None:
    url = _started(kind, small_disk, [*started_node(), *payments(4, 100)])
    with open_writer(url) as writer:
        with open_reader(url) as reader:
            other = fill(small_disk)
            base = Change(98, image("x" * 40_000), None)
            with pytest.raises(StorageError):
                prepared(reader, base, foreign_keys=True)
            other.unlink()
        writer.add_change(payment(100))
    assert told_by(url) == told([*started_node(), *payments(4, 100), payment(100)])


def test_init_on_a_full_disk_makes_nothing(kind: str, small_disk: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    build_database(node / "lightningd.sqlite3", [*started_node(), *payments(4, 30)])
    url = _url(kind, small_disk)
    fill(small_disk)
    with pytest.raises(StorageError):
        initialize(url, str(node))
    assert list((small_disk / "backup").iterdir()) == []
    assert [path.name for path in node.iterdir()] == ["lightningd.sqlite3"]


def test_restore_to_a_full_disk_leaves_nothing(kind: str, small_disk: Path, tmp_path: Path) -> None:
    url = _started(kind, tmp_path, [*started_node(), *payments(4, 30)])
    other = fill(small_disk)
    with open_reader(url) as backend, pytest.raises(StorageError):
        restore(backend, str(small_disk / "restored.sqlite3"))
    assert list(small_disk.iterdir()) == [other]


def test_verify_on_a_full_disk_says_so_and_leaves_nothing(kind: str, small_disk: Path) -> None:
    url = _started(kind, small_disk, [*started_node(), *payments(4, 30)])
    stored = _stored(small_disk)
    fill(small_disk)
    with open_reader(url) as backend:
        if kind == "dir-encrypted":  # it is checked elsewhere: nothing may lie beside it in clear
            assert verify(backend, replayed=True).version == 29
        else:
            with pytest.raises(StorageError):
                verify(backend, replayed=True)
    assert _stored(small_disk) == stored


@pytest.fixture
def read_only_disk(kind: str, small_disk: Path) -> Path:
    """A disk with a backup on it that was mounted for reading, to look into it."""
    _started(kind, small_disk, [*started_node(), *payments(4, 30)])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


def test_restore_from_a_disk_that_is_mounted_for_reading(
    kind: str, read_only_disk: Path, tmp_path: Path
) -> None:
    with open_reader(_url(kind, read_only_disk)) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    expected = build_database(tmp_path / "expected", [*started_node(), *payments(4, 30)])
    assert_same_database(restored.path, expected)


def test_other_commands_on_a_disk_mounted_for_reading_say_what_is_wrong(
    kind: str,
    read_only_disk: Path,
) -> None:
    url = _url(kind, read_only_disk)
    with pytest.raises(StorageError, match="Read-only"):
        open_writer(url)
    with open_reader(url) as backend:
        assert verify(backend, replayed=False).version == 29
        if kind != "dir-encrypted":
            with pytest.raises(BackupError):
                verify(backend, replayed=True)


def test_command_line_on_a_full_disk_ends_with_the_code_for_it(
    kind: str, small_disk: Path, tmp_path: Path
) -> None:
    url = _started(kind, tmp_path, [*started_node(), *payments(4, 30)])
    fill(small_disk)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "cln_backup.cli.commands",
            "restore",
            url,
            str(small_disk / "r.sqlite3"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == StorageError.exit_code
    assert ended.stderr.startswith("Error: ")
