"""Every operation of the file backend, cut at every step, with whatever the disk kept of it."""

from __future__ import annotations

import hashlib
import random
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.backends.dir import store as dir_store
from cln_backup.model.errors import Discontinuity, NotFound
from cln_backup.operations.restore import restore
from tests.disasters.disk import Recorder, place
from tests.disasters.places import DIRECTORIES, KINDS, is_there, kept_aside, url_in, written
from tests.disasters.scenarios import Scenario, Scenarios, State, all_scenarios, next_change
from tests.histories import (
    Told,
    assert_same_database,
    build_database,
    long_text,
    payment,
    rider,
    started_node,
    told,
    told_by,
)
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cln_backup.model.change import Change
    from tests.disasters.disk import Files

SCENARIOS = [
    (kind, name)
    for kind in KINDS
    for name in all_scenarios(kind)
    # Encryption makes a record longer and changes no step: the long ones are tried without.
    if SOAK or kind != "dir-encrypted" or not name.endswith(("of many sectors", "changes come"))
]


_STATES = 10
"""How many of the states that a loss of power may leave after a step are tried, with the one in
which nothing was kept: chosen by chance, the same in every run. `make soak` tries all."""


class Milestone(NamedTuple):
    """The changes answered after so many steps, and the contents of the backup's files then."""

    steps: int
    state: State | None
    written: Files

    def is_append_to(self, state: State) -> bool:
        assert self.state is not None
        return self.state.history[:-1] == state.history


class Judge:
    """Opens what a cut left, and says whether anything is lost, mixed up or made up."""

    def __init__(self, place: Path, kind: str) -> None:
        self.judged = 0
        self._kind = kind
        self.begun: list[Files] = []
        self._place = place
        self._numbers = count()
        self._seen: set[tuple[bytes, int]] = set()
        self._databases: dict[str, Path] = {}
        self._replayed: set[str] = set()

    def _url(self, directory: Path) -> str:
        return url_in(directory, self._kind)

    def judge(self, files: Files, answered: Milestone, coming: Milestone | None) -> None:
        """Judges files, which must hold what was answered last, or what was in flight."""
        key = hashlib.sha256()
        for name in sorted(files):
            key.update(f"{name} {len(files[name])} ".encode() + files[name])
        if (key.digest(), answered.steps) in self._seen:
            return
        self._seen.add((key.digest(), answered.steps))
        self.judged += 1
        found = self._opened(files, answered, coming)
        if found is None:
            return
        self._goes_on(files, found.history)
        to = found.drops_to
        is_begun = found is answered.state and written(files, self._kind) != answered.written
        if is_begun and coming is not None and coming.is_append_to(found):
            self.begun.append(files)
        elif to is not None:
            self._drops(files, found.history, to)
        elif not found.may_drop:
            self.refuses_to_drop(files)

    def _directory(self, files: Files) -> Path:
        directory = self._place / str(next(self._numbers))
        directory.mkdir()
        place(files, directory)
        return directory

    def _opened(self, files: Files, answered: Milestone, coming: Milestone | None) -> State | None:
        directory = self._directory(files)
        if not is_there(files, self._kind):
            assert answered.state is None, "the backup is gone"
            for writable in (False, True):
                with pytest.raises(NotFound):
                    (open_writer if writable else open_reader)(self._url(directory))
            create_backend(self._url(directory), None)
            assert told_by(self._url(directory)) == []
            return None
        seen = told_by(self._url(directory))
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
        states = [answered.state, None if coming is None else coming.state]
        state = next((one for one in states if one and told(one.history) == seen), None)
        assert state is not None, f"neither before nor after: {_short(seen)}"
        with open_writer(self._url(directory)) as writer:
            assert told_by(self._url(directory)) == seen
            assert writer.standing.version_count == len(seen)
        assert told_by(self._url(directory)) == seen
        return state

    def _goes_on(self, files: Files, history: list[Change]) -> None:
        directory = self._directory(files)
        change = next_change(history)
        with open_writer(self._url(directory)) as writer:
            writer.add_change(change)
        now = [*history, change]
        assert told_by(self._url(directory)) == told(now)
        key = _short(told(now))
        if key not in self._replayed:
            self._replayed.add(key)
            with open_reader(self._url(directory)) as reader:
                restored = restore(reader, f"{directory}-restored.sqlite3")
            assert_same_database(restored.path, self._database(now))

    def _database(self, history: Sequence[Change]) -> Path:
        key = _short(told(history))
        if key not in self._databases:
            path = self._place / f"oracle-{len(self._databases)}.sqlite3"
            self._databases[key] = build_database(path, history)
        return self._databases[key]

    def _drops(self, files: Files, history: list[Change], to: list[Change]) -> None:
        """The node may start before the head, which then has to go."""
        directory = self._directory(files)
        change = next_change(to)
        with open_writer(self._url(directory)) as writer:
            writer.rewind()
            assert told_by(self._url(directory)) == told(to)
            writer.add_change(change)
        assert told_by(self._url(directory)) == told([*to, change])
        kept = kept_aside(directory, self._kind)
        new = [kept[name] for name in kept if name not in files]
        assert new == [told(history[-1:])], "the dropped change was not kept"

    def refuses_to_drop(self, files: Files) -> None:
        """The node committed the head, or dropped its successor: it can never start before it."""
        url = self._url(self._directory(files))
        with open_writer(url) as writer, pytest.raises(Discontinuity):
            writer.rewind()


def _short(seen: Sequence[Told]) -> str:
    return ", ".join(
        f"{version} {kind.value} {hashlib.sha256(b'|'.join(content)).hexdigest()[:8]}"
        for version, kind, content in seen
    )


def _tried(states: Iterable[Files], after: int) -> list[Files]:
    every = list({tuple(sorted(files.items())): files for files in states}.values())
    if SOAK or len(every) <= _STATES:
        return every
    return [every[0], *random.Random(after).sample(every[1:], _STATES - 1)]


def _cut_everywhere(
    scenario: Scenario,
    kind: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    since: int = 0,
) -> Judge:
    """Judges what each cut leaves that comes after the answer of that number."""
    monkeypatch.setattr(dir_store, "FIRST_SEGMENT_BYTES", 2_048)
    work = place / "work"
    work.mkdir()
    scenario.prepare(work)
    recorder = Recorder(work)
    milestones: list[Milestone] = []

    def answered(state: State | None) -> None:
        files = {path.name: path.read_bytes() for path in work.iterdir()}
        milestones.append(Milestone(len(recorder.steps), state, written(files, kind)))

    answered(scenario.before)
    with monkeypatch.context() as patch:
        recorder.start(patch)
        scenario.act(work, answered)
    judge = Judge(place, kind)
    assert len(recorder.steps) == milestones[-1].steps, "something was written after the answer"
    for after in range(milestones[since].steps, len(recorder.steps) + 1):
        last = sum(1 for milestone in milestones if milestone.steps <= after) - 1
        coming = milestones[last + 1] if last + 1 < len(milestones) else None
        judge.judge(recorder.killed(after), milestones[last], coming)
        for files in _tried(recorder.power_cuts(after), after):
            judge.judge(files, milestones[last], coming)
    assert judge.judged >= least
    return judge


@pytest.mark.parametrize(("kind", "name"), SCENARIOS)
def test_cut_at_every_step(
    kind: str, name: str, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head whose successor was begun is not dropped either.

    The node asked for the next change, so it had committed this one. A database from before it is
    an old one, and must not be taken for one that has to catch up.
    """
    judge = _cut_everywhere(all_scenarios(kind)[name], kind, memory_path, monkeypatch, least=2)
    assert judge.begun or not name.startswith("a ")
    for files in judge.begun:
        judge.refuses_to_drop(files)


@pytest.mark.parametrize("part", range(4 if SOAK else 1))
@pytest.mark.parametrize("what", ["transaction", "rider", "replacement"])
def test_power_cut_wherever_a_sector_ends_in_the_entry(
    what: str, part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry and the header are synced together; the entry is in two sectors."""
    change = {
        "transaction": payment(4),
        "rider": rider(3),
        "replacement": payment(4),
    }[what]
    entry_bytes = 9 + sum(len(text) + 1 for text in change.transaction or ())
    for before in range(part, entry_bytes + 2, 4 if SOAK else 12):
        history = [*started_node()[:-1], _filled_up_to(512 - before)]
        rewound = payment(4, "never committed") if what == "replacement" else None
        name = f"{before} bytes before a sector"
        scenario = Scenarios("file").appends(name, history, change, rewound=rewound)
        directory = memory_path / str(before)
        directory.mkdir()
        _cut_everywhere(scenario, "file", directory, monkeypatch, least=4 if before > 1 else 2)


def _filled_up_to(place: int) -> Change:
    """The last change of a started node, so long that the file ends there in a sector."""
    length = 512 + sum(
        9 + sum(len(text.encode()) + 1 for text in change.transaction or ()) - 1
        for change in [*started_node()[:-1], payment(3)]
    )
    return payment(3, "x" * ((place - length) % 512))


@pytest.mark.parametrize("part", range(4 if SOAK else 1))
@pytest.mark.parametrize("kind", DIRECTORIES)
def test_power_cut_wherever_a_sector_ends_in_the_record(
    kind: str, part: int, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second record of a writer is in two sectors, and nothing else is in flight.

    The first one is cut in `test_cut_at_every_step`.
    """
    for length in range(part * 3, 220, 12 if SOAK else 36):
        changes = [payment(4, long_text(length, 2 * length)), payment(5, "x")]
        scenario = Scenarios(kind).appends_some(f"after {length}", started_node(), changes)
        directory = memory_path / str(length)
        directory.mkdir()
        _cut_everywhere(scenario, kind, directory, monkeypatch, least=3, since=1)
