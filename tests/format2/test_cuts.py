"""Whatever is cut at whatever call: the last answered change is there, or the next."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir import log as dir_log
from cln_backup.backends.dir import store as dir_store
from cln_backup.model.change import Change
from tests.disasters.disk import Recorder, place
from tests.format2.small import KINDS, SNAPSHOT, url_of
from tests.histories import (
    add_all,
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
    from collections.abc import Callable
    from pathlib import Path

    from cln_backup.backends.contract import Writer
    from tests.disasters.disk import Files
    from tests.histories import Told


class Done(NamedTuple):
    """How far the record reached when a call returned, and what the backup then told."""

    steps: int
    told: list[Told]


def _small_ones(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        for change in payments(4, 7):
            backend.add_change(change)
            note(backend)


def _large_one(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        backend.add_change(payment(4, long_text(4, 5_000)))
        note(backend)
        backend.add_change(payment(5, long_text(5, 1_000)))
        note(backend)


def _dropped_head(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        backend.rewind()
        note(backend)
        backend.add_change(started_node()[-1])
        note(backend)


def _snapshot(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        backend.add_change(Change(9, SNAPSHOT, None))
        note(backend)


def _compaction(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        with open_reader(url) as reader:
            staged = prepared(reader, Change(2, SNAPSHOT, None), foreign_keys=True)
            note(backend)
            backend.add_change(payment(4))
            note(backend)
            take_over(backend, staged)
        note(backend)
        backend.add_change(payment(5))
        note(backend)


def _full_segment(url: str, note: Callable[[Writer], None]) -> None:
    with open_writer(url) as backend:
        for version in range(4, 8):
            backend.add_change(payment(version, long_text(version, 900)))
            note(backend)


SCENARIOS = (_small_ones, _large_one, _dropped_head, _snapshot, _compaction, _full_segment)


class Recorded(NamedTuple):
    """A scenario that ran, and what it did to the disk."""

    recorder: Recorder
    done: list[Done]


@pytest.fixture(params=SCENARIOS, ids=lambda scenario: scenario.__name__.strip("_"))
def scenario(request: pytest.FixtureRequest) -> Callable[[str, Callable[[Writer], None]], None]:
    found: Callable[[str, Callable[[Writer], None]], None] = request.param
    return found


@pytest.fixture
def recorded(
    kind: str,
    scenario: Callable[[str, Callable[[Writer], None]], None],
    memory_path: Path,
) -> Recorded:
    url = url_of(kind, memory_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)
        create_backend(url, None)
        append(url, started_node())
        recorder = Recorder(memory_path / "node")
        done = [Done(0, told(started_node()))]
        recorder.start(patch)

        def note(backend: Writer) -> None:
            steps = len(recorder.steps)
            done.append(Done(steps, told_by(backend.place.url)))

        scenario(url, note)
    return Recorded(recorder, done)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Checker:
    """Checks what cuts left; what is the same as before is not checked again."""

    def __init__(self, recorded: Recorded, url: str, directory: Path) -> None:
        self._recorded = recorded
        self._url = url
        self._directory = directory
        self._seen: set[tuple[int, tuple[tuple[str, bytes], ...]]] = set()

    def check(self, files: Files, after: int) -> None:
        answered = sum(done.steps <= after for done in self._recorded.done)
        state = (answered, tuple(sorted(files.items())))
        if state not in self._seen:
            self._seen.add(state)
            _check(files, after, self._recorded, self._url, self._directory)


def _check(files: Files, after: int, recorded: Recorded, url: str, directory: Path) -> None:
    """The files must be read as the last answered state or the next, and continued."""
    node = directory / "node"
    if node.exists():
        shutil.rmtree(node)
    node.mkdir(mode=0o700)
    place(files, node)
    answered = [done.told for done in recorded.done if done.steps <= after][-1]
    coming = [done.told for done in recorded.done if done.steps > after][:1]
    with open_reader(url) as backend:
        found = told(backend.stream_changes())
        backend.check()
    assert found in [answered, *coming], f"after step {after}"
    with open_writer(url) as backend:
        add_all(backend, [payment(backend.version + 1, "after the cut")])
    with open_reader(url) as backend:
        assert told(backend.stream_changes())[:-1] == found
        backend.check()


def test_kill_at_every_call(
    kind: str, recorded: Recorded, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)
    monkeypatch.setattr(dir_log, "_SETTLE_TRIES", 0)
    url = url_of(kind, memory_path)
    checker = Checker(recorded, url, memory_path)
    for after in range(len(recorded.recorder.steps) + 1):
        checker.check(recorded.recorder.killed(after), after)


def test_loss_of_power_at_every_call(
    kind: str, recorded: Recorded, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2048)
    monkeypatch.setattr(dir_log, "_SETTLE_TRIES", 0)
    url = url_of(kind, memory_path)
    checker = Checker(recorded, url, memory_path)
    for after in range(len(recorded.recorder.steps) + 1):
        for files in recorded.recorder.power_cuts(after):
            checker.check(files, after)
