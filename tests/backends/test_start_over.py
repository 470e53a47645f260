"""A history that starts over from a snapshot: atomic, and the earlier one is kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer, place_at, url_of
from cln_backup.backends.dir.upkeep import remove_expired
from cln_backup.backends.writer import WriterLock
from cln_backup.model.change import Change
from cln_backup.model.errors import BackupError, BadUrl, Discontinuity, WriterConflict
from cln_backup.storage.local_objects import LocalObjects
from cln_backup.wire import packets as wire
from tests.backends.conformance import PLACES
from tests.histories import (
    add_all,
    append,
    image,
    payment,
    payments,
    prepared,
    started_node,
    take_over,
    told,
    told_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Change(3, image("before the migration"), None)
HISTORY = [*started_node(), *payments(4, 9), Change(12, image("from the node"), None), payment(13)]


@pytest.fixture(params=["dir", "dir-encrypted", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A backup with some history."""
    url = PLACES[request.param](tmp_path)
    create_backend(url, None)
    append(url, HISTORY)
    return url


def _kept_url(url: str, kept: str) -> str:
    return url_of(kept) + url[len(url.partition("?")[0]) :]


def test_the_backup_goes_on_from_the_snapshot(url: str) -> None:
    with open_writer(url) as writer:
        epoch = writer.standing.epoch
        kept = writer.start_over(BASE)
        assert (writer.version, writer.standing.version_count) == (3, 1)
        add_all(writer, payments(4, 6))
        assert told_by(url) == told([BASE, *payments(4, 6)])
    append(url, payments(6, 9))
    assert told_by(url) == told([BASE, *payments(4, 9)])
    assert told_by(_kept_url(url, kept)) == told(HISTORY)
    with open_writer(url) as writer:
        writer.add_change(payment(9))
        if writer.standing.epoch:
            assert writer.standing.epoch > epoch
        with open_reader(url) as reader:
            reader.check()
            base = Change(8, image("folded"), None)
            take_over(writer, prepared(reader, base, foreign_keys=True))
    assert told_by(url) == told([base, payment(9)])
    assert told_by(_kept_url(url, kept)) == told(HISTORY)


def test_nothing_of_it_can_be_dropped_twice(url: str) -> None:
    with open_writer(url) as writer:
        writer.start_over(BASE)
        writer.add_change(payment(4))
        writer.rewind()
        assert writer.version == 3
        with pytest.raises(Discontinuity):
            writer.rewind()


def test_it_can_be_done_again(url: str) -> None:
    with open_writer(url) as writer:
        first = writer.start_over(BASE)
        add_all(writer, payments(4, 6))
        second = writer.start_over(Change(4, image("another"), None))
    assert told_by(_kept_url(url, first)) == told(HISTORY)
    assert told_by(_kept_url(url, second)) == told([BASE, *payments(4, 6)])
    assert [change.version for change in told_by(url)] == [4]


def test_what_is_kept_is_private_and_takes_no_space(url: str) -> None:
    usage = place_at(url).usage()
    assert usage is not None
    with open_writer(url) as writer:
        kept = Path(writer.start_over(BASE))
    for path in [kept, *(kept.iterdir() if kept.is_dir() else ())]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected
    after = place_at(url).usage()
    assert after is not None
    assert after.space_bytes < usage.space_bytes + (3 << 20), "segments of zeros, not the history"


def test_a_reader_keeps_its_view_until_it_looks_again(url: str) -> None:
    with open_reader(url) as reader:
        position = reader.standing.position
        with open_writer(url) as writer:
            writer.start_over(BASE)
            assert told(reader.stream_changes()) == told(HISTORY)
            assert reader.wait_for_more(10)
            assert told(reader.stream_changes()) == told([BASE])
            with pytest.raises(Discontinuity):
                list(reader.stream_changes(after=position))


@pytest.mark.parametrize("step", range(12))
def test_interrupted_at_any_step(url: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each name that is given: afterwards the backup is the old or the new one."""
    steps: Iterator[int] = iter(range(100))

    def stopping(function: object) -> object:
        def run(*args: object, **options: object) -> object:
            if next(steps) == step:
                raise KeyboardInterrupt
            return function(*args, **options)  # type: ignore[operator]

        return run

    with open_writer(url) as writer:
        for name in ("link", "rename", "replace", "mkdir"):
            monkeypatch.setattr(os, name, stopping(getattr(os, name)))
        stopped = False
        try:
            writer.start_over(BASE)
        except KeyboardInterrupt:
            stopped = True
        monkeypatch.undo()
    found = told_by(url)
    assert found == told([BASE]) or (stopped and found == told(HISTORY))
    version = found[-1].version
    append(url, [payment(version + 1)])
    with open_writer(url) as writer:
        writer.start_over(BASE)
        writer.add_change(payment(4))
    assert told_by(url) == told([BASE, payment(4)])


def test_an_older_writer_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines share the directory, and their locks do not reach each other."""
    url = PLACES["dir"](tmp_path)
    create_backend(url, None)
    append(url, HISTORY[:-1])
    with open_writer(url) as older:
        older.add_change(HISTORY[-1])
        monkeypatch.setattr(WriterLock, "__init__", _without_lock)
        monkeypatch.setattr(WriterLock, "sign", lambda _self: None)
        monkeypatch.setattr(WriterLock, "note", lambda _self, _note: None)
        monkeypatch.setattr(WriterLock, "release", lambda _self: None)
        with open_writer(url) as writer:
            writer.start_over(BASE)
        with pytest.raises(WriterConflict):
            older.add_change(payment(14))
        monkeypatch.undo()
    assert told_by(url) == told([BASE])


def _without_lock(_self: WriterLock, *_args: object, **_options: object) -> None:
    pass


def test_maintenance_leaves_the_earlier_history(tmp_path: Path) -> None:
    url = PLACES["dir"](tmp_path)
    create_backend(url, None)
    append(url, HISTORY)
    with open_writer(url) as writer:
        kept = writer.start_over(BASE)
        remove_expired(LocalObjects(str(tmp_path / "node")), 0, 0)
        add_all(writer, payments(4, 6))
    assert sorted(path.name for path in (tmp_path / "node").glob("base-*")) == [
        "base-0000000002-0000000002"
    ]
    assert told_by(url_of(kept)) == told(HISTORY)


def test_a_server_says_that_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an older release."""
    monkeypatch.setattr(wire, "FEATURES", wire.FEATURES & ~wire.CAN_START_OVER)
    url = PLACES["socket"](tmp_path)
    create_backend(url, None)
    append(url, HISTORY)
    with open_writer(url) as writer:
        with pytest.raises(BadUrl, match="under another name"):
            writer.start_over(BASE)
        writer.add_change(payment(14))
    assert told_by(url) == told([*HISTORY, payment(14)])


def test_a_snapshot_that_fails_leaves_the_backup_as_it_was(url: str) -> None:
    class Failing:
        size_bytes = 10_000

        def chunks(self) -> Iterator[bytes]:
            yield b"x" * 4_000

    with open_writer(url) as writer, pytest.raises(BackupError):
        writer.start_over(Change(3, Failing(), None))
    assert told_by(url) == told(HISTORY)
    append(url, [payment(14)])
