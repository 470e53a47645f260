"""Every operation of the file backend, cut at every step, with whatever the disk kept of it."""

from __future__ import annotations

import hashlib
from itertools import count
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends.file import FileBackend
from cln_backup.errors import Discontinuity, NotFound
from cln_backup.restore import restore
from tests.disasters.disk import Recorder, place
from tests.disasters.scenarios import (
    NAME,
    Scenario,
    State,
    all_scenarios,
    appends,
    next_change,
    url_in,
)
from tests.histories import (
    Told,
    assert_same_database,
    build_database,
    payment,
    rider,
    started_node,
    told,
    told_by,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cln_backup.change import Change
    from tests.disasters.disk import Files

SCENARIOS = all_scenarios()


class Judge:
    """Opens what a cut left, and says whether anything is lost, mixed up or made up."""

    def __init__(self, place: Path) -> None:
        self.judged = 0
        self._place = place
        self._numbers = count()
        self._seen: set[tuple[bytes, int]] = set()
        self._databases: dict[str, Path] = {}
        self._replayed: set[bytes] = set()

    def judge(self, files: Files, allowed: Sequence[State | None], answered: int) -> None:
        """Judges files, which must hold one of the states; `None` is no backup."""
        key = hashlib.sha256()
        for name in sorted(files):
            key.update(f"{name} {len(files[name])} ".encode() + files[name])
        if (key.digest(), answered) in self._seen:
            return
        self._seen.add((key.digest(), answered))
        self.judged += 1
        state = self._opened(files, allowed)
        if state is not None:
            self._goes_on(files, state.history)
            self._drops(files, state)

    def _directory(self, files: Files) -> Path:
        directory = self._place / str(next(self._numbers))
        directory.mkdir()
        place(files, directory)
        return directory

    def _opened(self, files: Files, allowed: Sequence[State | None]) -> State | None:
        directory = self._directory(files)
        if NAME not in files:
            assert None in allowed, "the backup is gone"
            for writable in (False, True):
                with pytest.raises(NotFound):
                    FileBackend.open(url_in(directory), writable=writable)
            FileBackend.create(url_in(directory), None)
            assert told_by(url_in(directory)) == []
            return None
        seen = told_by(url_in(directory))
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
        states = [state for state in allowed if state is not None]
        state = next((one for one in states if told(one.history) == seen), None)
        assert state is not None, f"neither before nor after: {_short(seen)}"
        with FileBackend.open(url_in(directory), writable=True) as writer:
            assert told(writer.stream_changes()) == seen
            assert writer.version_count == len(seen)
        assert told_by(url_in(directory)) == seen
        return state

    def _goes_on(self, files: Files, history: list[Change]) -> None:
        directory = self._directory(files)
        change = next_change(history)
        with FileBackend.open(url_in(directory), writable=True) as writer:
            writer.add_change(change)
        now = [*history, change]
        assert told_by(url_in(directory)) == told(now)
        content = (directory / NAME).read_bytes()
        if content not in self._replayed:
            self._replayed.add(content)
            with FileBackend.open(url_in(directory), writable=False) as reader:
                restored = restore(reader, str(directory / "restored.sqlite3"))
            assert_same_database(restored.path, self._database(now))

    def _database(self, history: Sequence[Change]) -> Path:
        key = _short(told(history))
        if key not in self._databases:
            path = self._place / f"oracle-{len(self._databases)}.sqlite3"
            self._databases[key] = build_database(path, history)
        return self._databases[key]

    def _drops(self, files: Files, state: State) -> None:
        """The node may start before the head, which then has to go; or must not, when it went."""
        if state.may_drop and state.drops_to is None:
            return
        directory = self._directory(files)
        with FileBackend.open(url_in(directory), writable=True) as writer:
            if state.drops_to is None:
                with pytest.raises(Discontinuity):
                    writer.rewind()
                return
            writer.rewind()
            assert told(writer.stream_changes()) == told(state.drops_to)
            change = next_change(state.drops_to)
            writer.add_change(change)
        assert told_by(url_in(directory)) == told([*state.drops_to, change])
        kept = [
            path
            for path in directory.iterdir()
            if ".dropped-" in path.name and path.name not in files
        ]
        assert len(kept) == 1, "the dropped change was not kept"
        assert told_by(f"file://{kept[0]}") == told(state.history[-1:])


def _short(seen: Sequence[Told]) -> str:
    return ", ".join(
        f"{version} {kind.value} {hashlib.sha256(b'|'.join(content)).hexdigest()[:8]}"
        for version, kind, content in seen
    )


def _cut_everywhere(
    scenario: Scenario, place: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    work = place / "work"
    work.mkdir()
    scenario.prepare(work)
    recorder = Recorder(work)
    milestones: list[tuple[int, State | None]] = [(0, scenario.before)]
    with monkeypatch.context() as patch:
        recorder.start(patch)
        scenario.act(work, lambda state: milestones.append((len(recorder.steps), state)))
    judge = Judge(place)
    total = len(recorder.steps)
    assert total == milestones[-1][0], "something was written after the answer"
    for after in range(total + 1):
        answered = sum(1 for steps, _ in milestones if steps <= after) - 1
        allowed = [state for _, state in milestones[answered : answered + 2]]
        judge.judge(recorder.killed(after), allowed, answered)
        for files in recorder.power_cuts(after):
            judge.judge(files, allowed, answered)
    assert judge.judged >= least


@pytest.mark.parametrize("name", SCENARIOS)
def test_cut_at_every_step(name: str, memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cut_everywhere(SCENARIOS[name], memory_path, monkeypatch, least=2)


def _at_every_place_in_a_sector(length: int) -> range:
    """Lengths of text before an entry, so that its sectors end in each byte of it once."""
    return range(length + 12)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("what", ["transaction", "rider", "replacement"])
def test_power_cut_wherever_a_sector_ends_in_the_entry(
    what: str, part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry and the header are synced at once; the entry lies in two sectors."""
    change = {
        "transaction": payment(4),
        "rider": rider(3),
        "replacement": payment(4),
    }[what]
    entry_bytes = 9 + sum(len(text) + 1 for text in change.transaction or ())
    for before in range(part, entry_bytes + 2, 4):
        history = [*started_node()[:-1], _filled_up_to(512 - before)]
        rewound = payment(4, "never committed") if what == "replacement" else None
        scenario = appends(f"{before} bytes before a sector", history, change, rewound=rewound)
        directory = memory_path / str(before)
        directory.mkdir()
        _cut_everywhere(scenario, directory, monkeypatch, least=4 if before > 1 else 2)


def _filled_up_to(place: int) -> Change:
    """The last change of a started node, so long that the file ends there in a sector."""
    length = 512 + sum(
        9 + sum(len(text.encode()) + 1 for text in change.transaction or ()) - 1
        for change in [*started_node()[:-1], payment(3)]
    )
    return payment(3, "x" * ((place - length) % 512))
