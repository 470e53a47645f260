"""One power cut after another: each operation begins on what the last cut left."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends import open_backend
from cln_backup.backends.file import FileBackend
from cln_backup.change import Change, Kind
from cln_backup.compact import compact
from cln_backup.errors import Discontinuity
from cln_backup.restore import restore
from tests.disasters.disk import Recorder, place
from tests.disasters.scenarios import NAME, next_change, url_in
from tests.histories import (
    OFF,
    ON,
    append,
    assert_same_database,
    build_database,
    long_text,
    payment,
    rider,
    snapshot_of,
    told,
    told_by,
)

if TYPE_CHECKING:
    from cln_backup.backends.base import Backend
    from tests.disasters.disk import Files

ROUNDS = 9
LIVES = 12


class Outcome(NamedTuple):
    """What an operation was to do to the history."""

    before: list[Change]
    after: list[Change]


class Life:
    """A backup that is cut again and again, and the history that it has to hold."""

    def __init__(self, place: Path, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.choices = random.Random(seed)
        self.history: list[Change] = []
        self._monkeypatch = monkeypatch
        self._place = place
        self._numbers = count()
        self._directory = self._new_directory()
        FileBackend.create(url_in(self._directory), None)

    def _new_directory(self) -> Path:
        directory = self._place / str(next(self._numbers))
        directory.mkdir(parents=True)
        return directory

    @property
    def url(self) -> str:
        return url_in(self._directory)

    def is_cut_once_more(self) -> None:
        recorder = Recorder(self._directory)
        with self._monkeypatch.context() as patch:
            recorder.start(patch)
            outcome = self._does_something()
        done = len(recorder.steps)
        after = self.choices.randint(0, done)
        files = self._what_is_left(recorder, after)
        self._directory = self._new_directory()
        place(files, self._directory)
        self._find(outcome, answered=after == done)

    def _what_is_left(self, recorder: Recorder, after: int) -> Files:
        if self.choices.random() < 0.3:
            return recorder.killed(after)
        cuts = recorder.power_cuts(after, self.choices.randint(0, 1 << 30))
        chosen = recorder.killed(after)
        for number, files in enumerate(cuts, 1):
            if self.choices.randrange(number) == 0:
                chosen = files
        return chosen

    def _does_something(self) -> Outcome:
        before = self.history
        act = self.choices.choice(
            ["append", "append", "append", "rider", "rewind", "replace", "compact", "snapshot"]
        )
        if act == "compact":
            compact(self.url)
            return Outcome(before, before)
        if act in {"rewind", "replace"}:
            return self._drops(act)
        change = self._change(act)
        append(self.url, [change])
        return Outcome(before, [*before, change])

    def _drops(self, act: str) -> Outcome:
        with open_backend(self.url, writable=True) as backend:
            head = self.history[-1].kind if self.history else None
            if head is not Kind.TRANSACTION or not _rewound(backend):
                return Outcome(self.history, self.history)
            dropped = self.history[:-1]
            if act == "rewind":
                return Outcome(self.history, dropped)
            # Both happen before a cut, so either of the three histories may be found.
            self.history = dropped
            change = next_change(dropped)
            if dropped:
                change = payment(change.version, long_text(self.choices.randint(0, 99), 30))
            backend.add_change(change)
            return Outcome(dropped, [*dropped, change])

    def _change(self, act: str) -> Change:
        change = next_change(self.history)
        if not self.history:
            return change
        if act == "rider":
            return rider(change.version - 1, self.choices.choice([ON, OFF]))
        if act == "snapshot":
            return snapshot_of(self.history, self._place / f"base-{next(self._numbers)}")
        length = self.choices.choice([0, 30, 400, 512, 1_100, 6_000])
        return payment(change.version, long_text(self.choices.randint(0, 99), length))

    def _find(self, outcome: Outcome, *, answered: bool) -> None:
        seen = told_by(self.url)
        before, after = outcome
        if answered:
            assert seen[-1:] == told(after[-1:])
            self.history = after
        elif seen[-1:] == told(after[-1:]):
            self.history = after
        else:
            assert seen[-1:] == told(before[-1:])
            self.history = before
        if not self.history:
            return
        target = self._place / f"restored-{next(self._numbers)}"
        with open_backend(self.url) as backend:
            restore(backend, str(target))
        assert_same_database(target, build_database(Path(f"{target}-expected"), self.history))


def _rewound(backend: Backend) -> bool:
    try:
        backend.rewind()
    except Discontinuity:
        return False
    return True


@pytest.mark.parametrize("part", range(8))
def test_power_is_cut_again_and_again(
    part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(LIVES):
        life = Life(memory_path / str(number), f"{part} {number}", monkeypatch)
        for _ in range(ROUNDS):
            life.is_cut_once_more()
        assert (life._directory / NAME).exists()
