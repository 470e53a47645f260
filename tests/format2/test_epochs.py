"""Two writers that do not know of each other, as on two machines that share the directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.dir.writer import SegmentWriter
from cln_backup.backends.events import ignore
from cln_backup.backends.look import LookSchedule
from cln_backup.model.errors import Damaged, StorageError, WriterConflict
from tests.backends.set_back import compact, files
from tests.format2.small import KINDS, url_of
from tests.histories import append, payment, started_node, told, told_by

if TYPE_CHECKING:
    from pathlib import Path

    from cln_backup.backends.contract import Writer
    from cln_backup.backends.events import Event, OnEvent


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = url_of(str(request.param), tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


def _open_elsewhere(url: str, tmp_path: Path, on_event: OnEvent = ignore) -> Writer:
    """Opens for writing as a machine does that does not see the other's lock."""
    (tmp_path / "node" / "backup.writer").unlink(missing_ok=True)
    return place_at(url).open_writer(on_event=on_event)


def test_writer_of_an_older_epoch_is_refused_at_its_next_append(url: str, tmp_path: Path) -> None:
    with open_writer(url) as old:
        old.add_change(payment(4))
        with _open_elsewhere(url, tmp_path) as new:
            new.add_change(payment(5, "by the newer one"))
            with pytest.raises(WriterConflict, match="lost the right to write"):
                old.add_change(payment(5, "by the older one"))
            with pytest.raises(StorageError):
                old.add_change(payment(5, "by the older one"))
            new.add_change(payment(6))
    expected = [*started_node(), payment(4), payment(5, "by the newer one"), payment(6)]
    assert told_by(url) == told(expected)


def test_writer_that_found_another_end_than_stands_there_is_refused(
    url: str, tmp_path: Path
) -> None:
    with open_writer(url) as one, _open_elsewhere(url, tmp_path) as other:
        one.add_change(payment(4, "one"))
        with pytest.raises((WriterConflict, StorageError)):
            other.add_change(payment(4, "other"))
    assert told_by(url) == told([*started_node(), payment(4, "one")])
    append(url, [payment(5)])


def test_each_start_of_a_writer_that_appends_begins_a_segment(url: str, tmp_path: Path) -> None:
    for version in range(4, 8):
        append(url, [payment(version)])
    with open_writer(url):
        pass
    names = sorted(path.name for path in (tmp_path / "node").glob("log-*"))
    assert names == [f"log-{number:010}" for number in range(1, 6)]
    with open_reader(url) as backend:
        backend.check()


def test_older_writer_is_refused_also_where_one_between_died_before_it_began(
    url: str, tmp_path: Path
) -> None:
    with open_writer(url) as old:
        old.add_change(payment(4))
        # A second one claimed its segment and died; a third one continued.
        (tmp_path / "node" / "log-0000000003").write_bytes(bytes(1 << 18))
        with _open_elsewhere(url, tmp_path) as new:
            new.add_change(payment(5, "by the newest one"))
        with pytest.raises(WriterConflict, match="lost the right to write"):
            old.add_change(payment(5, "by the oldest one"))
    assert told_by(url) == told([*started_node(), payment(4), payment(5, "by the newest one")])
    assert (tmp_path / "node" / "log-0000000003").stat().st_size == 0
    append(url, [payment(6)])
    with open_reader(url) as backend:
        backend.check()


def test_record_that_is_stored_between_a_look_and_a_claim_is_not_passed_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = SegmentWriter._claim
    with open_writer(url) as old:
        old.add_change(payment(4))

        def late(writer: SegmentWriter, number: int, least_bytes: int) -> str:
            old.add_change(payment(5, "by the older one"))
            return claim(writer, number, least_bytes)

        with _open_elsewhere(url, tmp_path) as new:
            monkeypatch.setattr(SegmentWriter, "_claim", late)
            with pytest.raises(WriterConflict, match="more was written"):
                new.add_change(payment(5, "by the newer one"))
    assert told_by(url) == told([*started_node(), payment(4), payment(5, "by the older one")])


@pytest.mark.parametrize("gone", ["removed by hand", "expired"])
def test_older_writer_begins_no_segment_in_the_place_of_one_that_is_gone(
    url: str, tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "node"
    with open_writer(url) as old:
        old.add_change(payment(4))
        with _open_elsewhere(url, tmp_path) as new:
            new.add_change(payment(5, "by the newer one"))
            if gone == "expired":
                compact(new)
        if gone == "expired":
            with _open_elsewhere(url, tmp_path) as newest:
                newest.add_change(payment(6, "by the newest one"))
                compact(newest)
        (log / "log-0000000003").unlink(missing_ok=gone == "expired")
        before = files(log)
        monkeypatch.setattr(LookSchedule, "is_due", lambda _: False)
        with pytest.raises(StorageError if gone == "expired" else WriterConflict):
            old.add_change(payment(5, "too late" + os.urandom(1 << 18).hex()))
        assert files(log) == before
    if gone == "expired":
        assert told_by(url)[-1:] == told([payment(6, "by the newest one")])


def test_record_that_was_on_its_way_when_the_next_writer_looked_is_not_passed_over(
    url: str, tmp_path: Path
) -> None:
    segment = tmp_path / "node" / "log-0000000002"
    with open_writer(url) as old:
        old.add_change(payment(4))
        end = len(segment.read_bytes().rstrip(b"\x00"))
        old.add_change(payment(5, "x" * 3_000 + os.urandom(3_000).hex()))
        whole = segment.read_bytes()
        sector = (end // 512 + 2) * 512
        segment.write_bytes(whole[:sector] + bytes(512) + whole[sector + 512 :])
        events: list[Event] = []
        with _open_elsewhere(url, tmp_path, events.append) as new:
            assert new.version == 4
            assert "cut off by a crash" in events[0].text
            segment.write_bytes(whole)  # all of it is there now, and may have been answered
            with pytest.raises(WriterConflict):
                new.add_change(payment(5, "by the newer one"))


@pytest.mark.parametrize("passed_over", [1, 2])
def test_segment_that_passes_over_answered_changes_is_damage(
    url: str, tmp_path: Path, passed_over: int
) -> None:
    """One whole record may be there that was never answered, as its writer looked after it."""
    log = tmp_path / "node"
    append(url, [payment(4)])
    with open_writer(url) as old:
        old.add_change(payment(5))
        before = {path: path.read_bytes() for path in log.iterdir()}
        for version in range(6, 6 + passed_over):
            old.add_change(payment(version))
    after = (log / "log-0000000003").read_bytes()
    for path, content in before.items():
        path.write_bytes(content)
    append(url, [payment(6, "by one that did not see them")])
    (log / "log-0000000003").write_bytes(after)
    with open_reader(url) as backend:
        if passed_over == 1:
            assert told(backend.stream_changes())[-2:] == told(
                [payment(5), payment(6, "by one that did not see them")]
            )
            backend.check()
            return
        with pytest.raises(Damaged, match="2 changes that were stored"):
            told(backend.stream_changes())
        with pytest.raises(Damaged, match="2 changes that were stored"):
            backend.check()
