"""A writer looks at what is there before it writes: nothing newer is ever overwritten."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, look, open_writer
from cln_backup.backends.file.end import FileEnd
from cln_backup.backends.look import APPENDS, PAUSE_S, LookSchedule
from cln_backup.formats.v1 import Header
from cln_backup.model.errors import BackupError, StorageError, WriterConflict
from tests import programs
from tests.backends.conformance import PLACES
from tests.backends.set_back import CASES, compact, files, fill_to_a_border, newest_file
from tests.histories import append, payment, started_node, told, told_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cln_backup.backends.contract import Writer

KINDS = ("file", "dir", "dir-encrypted")


def _set_back(kind: str) -> dict[tuple[str, ...], dict[str, str | bool]]:
    with (
        tempfile.TemporaryDirectory() as directory,
        programs.start(
            *("tests.backends.set_back", kind, directory), stdout=subprocess.PIPE, text=True
        ) as done,
    ):
        said, _ = done.communicate()
    assert done.returncode == 0
    outcomes = map(json.loads, said.splitlines())
    return {tuple(outcome["case"]): outcome for outcome in outcomes}


@pytest.mark.parametrize("kind", KINDS)
def test_machine_that_was_set_back_overwrites_nothing(kind: str) -> None:
    outcomes = _set_back(kind)
    assert set(outcomes) == set(CASES)
    for case, outcome in outcomes.items():
        assert outcome["said"] != "stored", case
        assert outcome["again"] != "stored", case
        assert outcome["untouched"], case
        assert outcome["whole"], case
    # The message says what was found, what is safe and what to do.
    said = str(outcomes["one change", "go on", "anywhere"]["said"])
    assert said.startswith("WriterConflict: Another process wrote to this backup: ")
    for phrase in ("Nothing was overwritten", "set back", "Do not start", "backup-cli restore"):
        assert phrase in said


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "place").mkdir()
    url = PLACES[str(request.param)](tmp_path / "place")
    create_backend(url, None)
    append(url, started_node())
    return url


@pytest.fixture
def each_its_own_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on sshfs: a lock is seen on the machine that has it, and nowhere else."""
    monkeypatch.setattr("cln_backup.backends.writer.fcntl.flock", lambda *_: None)


@pytest.mark.usefixtures("each_its_own_lock")
def test_two_writers_in_turn_make_no_mixture(url: str, tmp_path: Path) -> None:
    with open_writer(url) as one:
        one.add_change(payment(4, "by one"))
        with open_writer(url) as other:
            other.add_change(payment(5, "by the other"))
            before = files(tmp_path)
            for _ in range(2):
                with pytest.raises((WriterConflict, StorageError)):
                    one.add_change(payment(5, "by one"))
            assert files(tmp_path) == before
            other.add_change(payment(6, "by the other"))
    expected = [payment(4, "by one"), payment(5, "by the other"), payment(6, "by the other")]
    assert told_by(url) == told([*started_node(), *expected])


@pytest.mark.usefixtures("each_its_own_lock")
def test_writer_that_has_written_nothing_yet_is_refused_before_it_claims_anything(
    url: str, tmp_path: Path
) -> None:
    with open_writer(url) as one:
        one.add_change(payment(4, "by one"))
        with open_writer(url) as other:
            other.claim("02" * 33)
            one.add_change(payment(5, "by one"))
            before = files(tmp_path)
            with pytest.raises(WriterConflict, match="Another process wrote"):
                other.add_change(payment(5, "by the other"))
            assert files(tmp_path) == before
        one.add_change(payment(6, "by one"))
    assert told_by(url)[-1:] == told([payment(6, "by one")])


def _rest() -> None:
    time.sleep(1.5 * PAUSE_S)


def _refused(backend: Writer, directory: Path) -> str:
    """The refusal of an append, which changed nothing."""
    before = files(directory)
    with pytest.raises(BackupError) as found:
        backend.add_change(payment(backend.version + 1, "too late"))
    assert files(directory) == before
    return str(found.value)


@pytest.mark.parametrize("at_border", [False, True])
def test_older_copy_in_the_same_inode_is_found(url: str, tmp_path: Path, at_border: bool) -> None:
    with open_writer(url) as backend:
        backend.add_change(payment(4))
        if at_border:
            fill_to_a_border(backend, tmp_path / "place")
        file = newest_file(tmp_path)
        older = file.read_bytes()
        backend.add_change(payment(backend.version + 1, "newer"))
        with file.open("r+b") as there:
            there.write(older)
            there.truncate()
        _rest()
        assert "Nothing was overwritten" in _refused(backend, tmp_path)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    url = PLACES["file"](tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as there:
        there.seek(offset)
        there.write(data)


def test_compacted_file_behind_a_path_that_keeps_its_inode_is_found_at_once(
    file_url: str, tmp_path: Path
) -> None:
    """On sshfs the number of an inode belongs to the path."""
    with open_writer(file_url) as backend:
        backend.add_change(payment(4))
        path = tmp_path / "node.bkp"
        content = path.read_bytes()
        path.write_bytes(content[:512] + content[-200:])
        assert "it has less than" in _refused(backend, tmp_path)


def test_file_of_the_same_size_with_another_header_is_found(file_url: str, tmp_path: Path) -> None:
    with open_writer(file_url) as backend:
        backend.add_change(payment(4))
        _overwrite(tmp_path / "node.bkp", 35, b"\x2a")
        _rest()
        assert "its header differs" in _refused(backend, tmp_path)


def test_file_of_the_same_size_with_another_last_change_is_found(
    file_url: str, tmp_path: Path
) -> None:
    with open_writer(file_url) as backend:
        backend.add_change(payment(4, "x" * 9_000))
        size = (tmp_path / "node.bkp").stat().st_size
        _overwrite(tmp_path / "node.bkp", size - 4_000, b"y")
        _rest()
        assert "its last change differs" in _refused(backend, tmp_path)


def test_what_a_drop_or_a_compaction_leaves_is_known_to_their_writer(url: str) -> None:
    steps: list[Callable[[Writer], None]] = [
        lambda backend: backend.rewind(),
        lambda backend: backend.add_change(payment(4, "again")),
        compact,
        lambda backend: backend.add_change(payment(5)),
        lambda backend: backend.rewind(),
        lambda backend: backend.add_change(payment(5, "again")),
    ]
    with open_writer(url) as backend:
        backend.add_change(payment(4))
        for step in steps:
            _rest()
            step(backend)
    assert told_by(url)[-1:] == told([payment(5, "again")])


def test_compaction_alone_by_another_process_is_no_newer_history(tmp_path: Path) -> None:
    """The log of a `dir:` backup stays in place; only a second compaction must not follow."""
    url = PLACES["dir"](tmp_path)
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as backend:
        backend.add_change(payment(4))
        (tmp_path / "node" / "backup.writer").unlink()
        with open_writer(url) as other:
            compact(other)
        _rest()
        backend.add_change(payment(5))
        with pytest.raises(StorageError):
            compact(backend)
        backend.add_change(payment(6))
    assert told_by(url)[-3:] == told([payment(4), payment(5), payment(6)])


def test_file_system_that_cannot_read_past_the_cache_is_looked_at_through_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = look._read

    def refuse(path: str, ranges: list[tuple[int, int]], flag: int) -> list[bytes]:
        if flag:
            raise OSError(22, "Invalid argument")
        return read(path, ranges, flag)

    monkeypatch.setattr(look, "_read", refuse)
    with open_writer(url) as backend:
        backend.add_change(payment(4))
        _rest()
        backend.add_change(payment(5))
        file = newest_file(tmp_path)
        end = len(file.read_bytes().rstrip(b"\x00"))
        _overwrite(file, end - 1, b"\x00")
        _rest()
        assert "Nothing was overwritten" in _refused(backend, tmp_path)


def test_large_change_is_not_held_in_memory_until_the_next(file_url: str) -> None:
    path = file_url.removeprefix("file://")
    with open(path, "rb") as file:
        end = FileEnd(path, file.fileno(), Header(0, 512, 0, 0, 0), None)
    end.appended(bytes(100_000) + b"the end")
    assert len(end.payload) == look.BLOCK_BYTES
    assert end.payload.endswith(b"the end")


def test_look_is_due_after_a_pause_after_many_appends_and_when_the_clock_was_set() -> None:
    now = 1_000.0
    schedule = LookSchedule(lambda: now)

    def append_after(pause_s: float) -> bool:
        nonlocal now
        now += pause_s
        due = schedule.is_due()
        now += 10 * PAUSE_S  # however long the append itself takes
        schedule.appended()
        return due

    assert append_after(0.0)
    assert [append_after(PAUSE_S / 2) for _ in range(APPENDS)] == [*[False] * (APPENDS - 1), True]
    assert append_after(2 * PAUSE_S)
    assert not append_after(0.0)
    assert append_after(-3_600.0)
