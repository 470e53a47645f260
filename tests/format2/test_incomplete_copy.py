"""A copy of the directory that stopped early is not taken for the whole backup."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.dir import log as dir_log
from cln_backup.backends.dir import store as dir_store
from cln_backup.backends.dir import whole as dir_whole
from cln_backup.backends.dir import writer as dir_writer
from cln_backup.cli.commands import cli
from cln_backup.formats import v2
from cln_backup.model.change import Change
from cln_backup.model.errors import Damaged, IncompleteCopy
from cln_backup.storage.local_objects import LocalObjects
from cln_backup.storage.source import BytesSource
from tests.format2.small import KINDS, SNAPSHOT, url_of
from tests.histories import (
    append,
    long_text,
    payment,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)

if TYPE_CHECKING:
    from cln_backup.backends.events import Event
    from cln_backup.storage.objects import Objects

VECTORS = Path(__file__).parent.parent / "vectors"
FIRST_BYTES = 4096


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backup of a node that was started twice, in small segments."""
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", FIRST_BYTES)
    monkeypatch.setattr(dir_whole, "_SETTLE_S", 0.0)
    url = url_of(str(request.param), memory_path)
    create_backend(url, None)
    append(url, started_node())
    append(url, payments(4, 9))
    return url


def _node(url: str) -> Path:
    return Path(url.removeprefix("dir://").partition("?")[0])


def _segments(url: str) -> list[Path]:
    return sorted(_node(url).glob("log-*"))


def _refused(url: str, match: str = "Incomplete copy") -> IncompleteCopy:
    """Checks that neither a reader nor a writer takes it; returns what is said."""
    for writable in (False, True):
        with pytest.raises(IncompleteCopy, match=match) as found:
            (open_writer if writable else open_reader)(url)
    text = str(found.value)
    assert "nothing is lost" not in text
    assert f"restore --to {found.value.good_version}`" in text
    return found.value


def test_newest_segment_that_is_cut_anywhere_is_an_incomplete_copy(url: str) -> None:
    newest = _segments(url)[-1]
    whole = newest.read_bytes()
    assert len(whole) == FIRST_BYTES
    expected = told([*started_node(), *payments(4, 9)])
    versions = set()
    for length in [*range(512, 4096, 37), 4095]:
        newest.write_bytes(whole[:length])
        versions.add(_refused(url).good_version)
        events: list[Event] = []
        with place_at(url).open_reader(accept_incomplete=True, on_event=events.append) as backend:
            found = told(backend.stream_changes())
            assert found == expected[: len(found)]
            assert "newer ones may be missing" in events[0].text
    assert versions == {3, 4, 5, 6, 7, 8}
    newest.write_bytes(whole)
    assert told_by(url) == expected


def test_newest_segment_that_is_empty_is_an_incomplete_copy(url: str) -> None:
    os.truncate(_segments(url)[-1], 0)
    assert _refused(url).good_version == 3


def test_newest_segment_that_is_missing_shows_in_the_one_before(url: str) -> None:
    (_node(url) / "backup.writer").unlink()
    _segments(url)[-1].unlink()
    assert _refused(url, "is cut to its last change").good_version == 3


def test_newest_segment_that_is_missing_shows_in_the_writers_note(url: str) -> None:
    # As where the machine stopped before the segment before was cut off, or all are missing.
    newest, before = _segments(url)[::-1]
    newest.unlink()
    os.truncate(before, FIRST_BYTES)
    _refused(url, f"{newest}, which its writer had started, is missing")
    before.unlink()
    assert _refused(url, "is missing").good_version == 0


@pytest.mark.parametrize("note", [b"", b"[", b"[]", b'{"segment": 9}', b'{"segment": "9"}'])
def test_note_that_is_of_no_use_or_of_another_backup_says_nothing(url: str, note: bytes) -> None:
    (_node(url) / "backup.writer").write_bytes(note)
    assert told_by(url) == told([*started_node(), *payments(4, 9)])
    other = json.dumps({"backup_id": "00" * 16, "segment": 9})
    (_node(url) / "backup.writer").write_text(other)
    append(url, [payment(9)])
    assert json.loads((_node(url) / "backup.writer").read_text())["segment"] == 3


def test_segment_of_zeros_in_the_place_of_one_with_changes_is_an_incomplete_copy(url: str) -> None:
    # As a program leaves it that makes the file in its whole length before it fills it.
    _segments(url)[-1].write_bytes(bytes(FIRST_BYTES))
    assert _refused(url, "is cut to its last change").good_version == 3


def test_snapshot_whose_place_in_the_log_is_missing_is_an_incomplete_copy(url: str) -> None:
    newest = _segments(url)[-1]
    append(url, [payment(9)])
    with open_writer(url) as backend:
        for change in (payment(10), Change(12, SNAPSHOT, None), payment(13)):
            backend.add_change(change)
    newest = _segments(url)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:600].ljust(FIRST_BYTES, b"\x00"))
    with pytest.raises((IncompleteCopy, Damaged)):
        open_reader(url)
    newest.write_bytes(whole[:512].ljust(FIRST_BYTES, b"\x00"))
    assert _refused(url, "snapshot-0000000004-.* in the log is missing").good_version == 9


def test_base_whose_place_in_the_log_is_missing_is_an_incomplete_copy(url: str) -> None:
    with open_writer(url) as writer:
        for change in payments(9, 12):
            writer.add_change(change)
        with open_reader(url) as reader:
            staged = prepared(reader, Change(10, SNAPSHOT, None), foreign_keys=True)
        take_over(writer, staged)
    newest = _segments(url)[-1]
    newest.write_bytes(newest.read_bytes()[:512].ljust(FIRST_BYTES, b"\x00"))
    _refused(url, "the log ends before the place where it continues after")


def test_record_of_any_length_lies_within_what_was_zeros(url: str) -> None:
    with open_writer(url) as backend:
        for version, length in ((9, 100), (10, 50_000), (11, 100), (12, 3_000), (13, 9_000)):
            backend.add_change(payment(version, long_text(version, length)))
            newest = _segments(url)[-1]
            assert newest.stat().st_size % FIRST_BYTES == 0
            assert len(newest.read_bytes().rstrip(b"\x00")) < newest.stat().st_size
    before = _segments(url)[-1].stat().st_size
    os.truncate(_segments(url)[-1], before - 1)
    assert _refused(url).good_version == 13


def test_segment_that_a_large_change_made_longer_is_not_filled_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the change before it is compressed: each start would read all of a huge segment."""
    monkeypatch.setattr(dir_store, "SPARE_BYTES", 2 * FIRST_BYTES)
    monkeypatch.setattr(dir_writer.SegmentWriter, "start_upkeep", lambda _writer: None)
    with open_writer(url) as backend:
        backend.add_change(payment(9, os.urandom(15_000).hex()))
        large = _segments(url)[-1]
        made = large.stat().st_size
        backend.add_change(payment(10))
        assert _segments(url)[-1] != large
    assert 15_000 < large.stat().st_size < made * 0.7
    assert told_by(url)[-1] == told([payment(10)])[0]


def test_spare_that_is_shorter_than_any_is_not_used(url: str) -> None:
    (_node(url) / "spare").write_bytes(bytes(100))
    append(url, [payment(9)])
    assert _segments(url)[-1].stat().st_size == FIRST_BYTES
    assert told_by(url)[-1] == told([payment(9)])[0]


@pytest.mark.parametrize("length", [512, 1_180, 2_000, 2_047, 3_000, (1 << 20) - 1])
def test_old_segment_of_a_length_that_none_was_made_with_is_an_incomplete_copy(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)  # as the old one was made with
    shutil.copytree(VECTORS / "format2-plain" / "node", tmp_path / "node")
    os.truncate(tmp_path / "node" / "log-0000000002", length)
    _refused(f"dir://{tmp_path}/node")


@pytest.mark.parametrize("length", [1 << 18, 1 << 20])
def test_old_segment_of_a_length_that_it_was_made_with_is_whole(
    length: int, tmp_path: Path
) -> None:
    shutil.copytree(VECTORS / "format2-plain" / "node", tmp_path / "node")
    os.truncate(tmp_path / "node" / "log-0000000002", length)
    events: list[Event] = []
    with place_at(f"dir://{tmp_path}/node").open_reader(on_event=events.append) as backend:
        assert (backend.version, events) == (8, [])
        assert backend.last_change.by_file
    append(f"dir://{tmp_path}/node", [payment(9)])
    with open_reader(f"dir://{tmp_path}/node") as backend:
        assert backend.version == 9
        assert not backend.last_change.by_file


@pytest.mark.parametrize(
    ("first_record_bytes", "size", "least"),
    [
        (300, 1 << 18, 1 << 18),
        (300, 356_352, 1 << 20),
        (350_000, 352_256, 352_256),
        (350_000, 356_352, 1 << 20),
        (350_000, 262_145, 1 << 20),
        (2_000_000, 2_002_944, 2_002_944),
    ],
)
def test_old_segment_that_its_first_record_made_longer_is_whole(
    first_record_bytes: int, size: int, least: int
) -> None:
    content = (bytes(512) + v2.pack_head(first_record_bytes)).ljust(size, b"\x00")
    assert dir_log._least_bytes_where_not_said(BytesSource(content), size) == least


def test_incomplete_copy_is_restored_only_where_its_version_is_named(
    url: str, memory_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = _segments(url)[-1]
    os.truncate(newest, len(newest.read_bytes().rstrip(b"\x00")) - 3)
    database = memory_path / "restored.sqlite3"
    for arguments in (["restore"], ["status"], ["verify"], ["restore", "--to", "7"]):
        target = [str(database)] if arguments[0] == "restore" else []
        code = cli.main([*arguments, url, *target], standalone_mode=False)
        said = capsys.readouterr()
        if "--to" in arguments:
            assert not code
            assert "newer ones may be missing" in said.err
            assert database.exists()
        else:
            assert code == IncompleteCopy.exit_code
            assert "Incomplete copy" in said.err
            assert not database.exists()


def test_reader_that_listed_before_the_next_segment_was_begun_looks_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = dir_store.list_files
    listings = [listed(LocalObjects(str(_node(url))))]
    append(url, [payment(9)])

    def stale_at_first(objects: Objects) -> dir_store.Listing:
        return listings.pop() if listings else listed(objects)

    monkeypatch.setattr(dir_whole, "list_files", stale_at_first)
    monkeypatch.setattr(dir_whole, "_noted_segment", lambda _store: 0)
    assert told_by(url)[-1] == told([payment(9)])[0]
    assert listings == []


def test_reader_is_not_put_off_by_a_writer_that_begins_segment_after_segment(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_come = payments(9, 18)
    at_work = False

    def list_and_go_on(objects: Objects) -> dir_store.Listing:
        nonlocal at_work
        found = dir_store.list_files(objects)
        if to_come and not at_work:  # the newest segment is cut before the reader comes to it
            at_work = True
            append(url, [to_come.pop(0)])
            at_work = False
        return found

    monkeypatch.setattr(dir_whole, "list_files", list_and_go_on)
    with open_reader(url) as backend:
        assert told(backend.stream_changes()) == told([*started_node(), *payments(4, 18)])


def test_torn_end_is_not_said_to_be_safe(url: str) -> None:
    newest = _segments(url)[-1]
    with open_writer(url) as backend:
        backend.add_change(payment(9, long_text(9, 2_500)))
    newest = _segments(url)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:1024] + bytes(512) + whole[1536:])
    events: list[Event] = []
    with place_at(url).open_reader(on_event=events.append) as backend:
        (notice,) = (event.text for event in events)
        assert backend.version == 8
    assert "cut off by a crash" in notice
    assert "A copy that was made while the node wrote can look the same" in notice
    assert "nothing is lost" not in notice
