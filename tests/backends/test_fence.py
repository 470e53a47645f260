"""Fencing: from then on, an older writer stores nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at
from cln_backup.backends.dir.writer import SegmentWriter
from cln_backup.model.errors import StorageError, WriterConflict
from tests.format2.small import KINDS, url_of
from tests.histories import append, payment, started_node, told, told_by
from tests.socket.serving import server_here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = url_of(str(request.param), tmp_path)
    create_backend(url, None)
    append(url, started_node())
    return url


def _without_its_lock(tmp_path: Path) -> None:
    """As on another machine, where the writer's lock does not show."""
    (tmp_path / "node" / "backup.writer").unlink()


def test_older_writer_of_a_directory_is_refused_at_its_next_change(
    url: str, tmp_path: Path
) -> None:
    with open_writer(url) as old:
        old.add_change(payment(4))
        _without_its_lock(tmp_path)
        with place_at(url).fence() as fenced:
            assert fenced.version == 4
            with pytest.raises(WriterConflict, match="lost the right to write"):
                old.add_change(payment(5, "too late"))
            fenced.add_change(payment(5, "by the new one"))
    assert told_by(url) == told([*started_node(), payment(4), payment(5, "by the new one")])


def test_directory_that_was_only_fenced_goes_on(url: str) -> None:
    """The claimed segment has no record; that is no damage, and no missing end."""
    for _ in range(3):
        with place_at(url).fence() as fenced:
            assert fenced.version == 3
    with open_reader(url) as reader:
        reader.check()
        before = reader.standing.position
    append(url, [payment(4)])
    assert told_by(url) == told([*started_node(), payment(4)])
    with open_reader(url) as reader:
        assert [change.version for change in reader.stream_changes(after=before)] == [4]
        reader.check()


def test_writer_that_was_only_opened_stores_nothing_after_a_fence(url: str, tmp_path: Path) -> None:
    with open_writer(url) as old:
        _without_its_lock(tmp_path)
        with place_at(url).fence(), pytest.raises((WriterConflict, StorageError)):
            old.add_change(payment(4, "too late"))
    assert told_by(url) == told(started_node())


def test_writer_that_stores_more_before_the_claim_is_fenced_after_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stored, and may have answered, is in the history that the new writer opens."""
    claim = SegmentWriter._claim
    busy = iter([payment(5)])
    with open_writer(url) as old:
        old.add_change(payment(4))
        _without_its_lock(tmp_path)

        def late(writer: SegmentWriter, number: int, least_bytes: int) -> str:
            for change in busy:
                old.add_change(change)
            return claim(writer, number, least_bytes)

        monkeypatch.setattr(SegmentWriter, "_claim", late)
        with place_at(url).fence() as fenced:
            assert fenced.version == 5
            with pytest.raises(WriterConflict, match="lost the right to write"):
                old.add_change(payment(6, "too late"))
            fenced.add_change(payment(6))
    assert told_by(url) == told([*started_node(), payment(4), payment(5), payment(6)])


@pytest.mark.parametrize("scheme", ["file", "dir"])
def test_living_writer_whose_lock_shows_is_not_fenced(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://{tmp_path}/node"
    create_backend(url, None)
    append(url, started_node())
    with open_writer(url) as old:
        with pytest.raises(WriterConflict, match="is being written by"):
            place_at(url).fence()
        old.add_change(payment(4))
    assert told_by(url) == told([*started_node(), payment(4)])


def test_writer_at_a_server_loses_its_right_for_good(tmp_path: Path) -> None:
    here = f"dir://{tmp_path}/node"
    create_backend(here, None)
    append(here, started_node())
    with server_here() as server:
        there = server.add(here)
        with open_writer(there) as old:
            old.add_change(payment(4))
            with place_at(there).fence() as fenced:
                assert fenced.version == 4
                with pytest.raises(WriterConflict, match="taken over"):
                    old.add_change(payment(5, "too late"))
            with pytest.raises((WriterConflict, StorageError)):
                old.add_change(payment(5, "too late"))
    assert told_by(here) == told([*started_node(), payment(4)])
