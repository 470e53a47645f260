"""One power cut after another: each operation begins on what the last cut left."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir import store as dir_store
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import Discontinuity
from cln_backup.operations.restore import restore
from tests.disasters.disk import Recorder, place
from tests.disasters.places import KINDS, is_there, url_in
from tests.disasters.scenarios import next_change
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
from tests.soak import SOAK, parts

if TYPE_CHECKING:
    from cln_backup.backends.contract import Writer
    from tests.disasters.disk import Files
    from tests.histories import Told

ROUNDS = 9
LIVES = 12 if SOAK else 8


class Life:
    """A backup that is cut again and again, and the history that it has to hold."""

    def __init__(self, place: Path, kind: str, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self.choices = random.Random(seed)
        self.history: list[Change] = []
        self._monkeypatch = monkeypatch
        self._place = place
        self._numbers = count()
        self._directory = self._new_directory()
        create_backend(self.url, None)

    def _new_directory(self) -> Path:
        directory = self._place / str(next(self._numbers))
        directory.mkdir(parents=True)
        return directory

    @property
    def url(self) -> str:
        return url_in(self._directory, self.kind)

    def is_cut_once_more(self) -> None:
        recorder = Recorder(self._directory)
        with self._monkeypatch.context() as patch:
            recorder.start(patch)
            histories = self._does_something()
        done = len(recorder.steps)
        after = self.choices.randint(0, done)
        files = self._what_is_left(recorder, after)
        self._directory = self._new_directory()
        place(files, self._directory)
        self._find(histories[-1:] if after == done else histories)

    def _what_is_left(self, recorder: Recorder, after: int) -> Files:
        if self.choices.random() < 0.3:
            return recorder.killed(after)
        cuts = recorder.power_cuts(after, self.choices.randint(0, 1 << 30))
        chosen = recorder.killed(after)
        for number, files in enumerate(cuts, 1):
            if self.choices.randrange(number) == 0:
                chosen = files
        return chosen

    def _does_something(self) -> list[list[Change]]:
        """The history, step by step."""
        before = self.history
        act = self.choices.choice(
            ["append", "append", "append", "rider", "rewind", "replace", "compact", "snapshot"]
        )
        if act == "compact":
            compact(self.url)
            return [before]
        if act in {"rewind", "replace"}:
            return self._drops(act)
        change = self._change(act)
        append(self.url, [change])
        return [before, [*before, change]]

    def _drops(self, act: str) -> list[list[Change]]:
        before = self.history
        with open_writer(self.url) as backend:
            if not before or before[-1].kind is not Kind.TRANSACTION or not _rewound(backend):
                return [before]
            dropped = before[:-1]
            if act == "rewind":
                return [before, dropped]
            change = next_change(dropped)
            if dropped:
                change = payment(change.version, long_text(self.choices.randint(0, 99), 30))
            backend.add_change(change)
            return [before, dropped, [*dropped, change]]

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

    def _find(self, histories: list[list[Change]]) -> None:
        seen = told_by(self.url)
        found = [history for history in histories if _ends(seen, history)]
        assert found
        self.history = found[-1]
        if not self.history:
            return
        target = self._place / f"restored-{next(self._numbers)}"
        with open_reader(self.url) as backend:
            restore(backend, str(target))
        assert_same_database(target, build_database(Path(f"{target}-expected"), self.history))


def _ends(seen: list[Told], history: list[Change]) -> bool:
    """Whether a backup may end as it does; the database that it makes is compared besides."""
    if not seen or not history:
        return not seen and not history
    is_folded = seen[-1].kind is Kind.SNAPSHOT and seen[-1].version == history[-1].version
    return is_folded or seen[-1:] == told(history[-1:])


def _rewound(backend: Writer) -> bool:
    try:
        backend.rewind()
    except Discontinuity:
        return False
    return True


@pytest.mark.parametrize("part", parts(8))
@pytest.mark.parametrize("kind", KINDS)
def test_power_is_cut_again_and_again(
    kind: str, part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2_048)
    for number in range(LIVES):
        life = Life(memory_path / str(number), kind, f"{part} {number}", monkeypatch)
        for _ in range(ROUNDS):
            life.is_cut_once_more()
        assert is_there({path.name: b"" for path in life._directory.iterdir()}, kind)
