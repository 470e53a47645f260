"""A real process that is really killed, at each step of what it does."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import open_reader, open_writer
from cln_backup.model.errors import NotFound
from cln_backup.operations.restore import restore
from cln_backup.replay.kept import KeptReplica
from tests import programs
from tests.disasters.places import is_there, url_in
from tests.disasters.scenarios import all_scenarios, next_change
from tests.disasters.victim import FROM_REPLICA
from tests.histories import append, assert_same_database, build_database, payment, told, told_by
from tests.soak import SOAK

if TYPE_CHECKING:
    from cln_backup.model.change import Change

ROOT = Path(__file__).parents[2]
KILLED_IN = (
    "a transaction",
    "a snapshot",
    "what replaces a dropped head",
    "drops a transaction",
    "creates a backup with a snapshot",
    "compacts while changes come",
    "repairs after one crash",
)
KILLED = [
    *(("file", name) for name in KILLED_IN),
    *(("dir", name) for name in KILLED_IN if not name.startswith("repairs")),
    ("dir-encrypted", "creates a backup with a snapshot"),
    ("dir-encrypted", "what replaces a dropped head"),
]


def _killed(directory: Path, kind: str, name: str, number: int) -> str:
    """The label of the step at which the process was killed; `done` when it had fewer steps."""
    directory.mkdir()
    arguments = ("tests.disasters.victim", directory, kind, name, number)
    with programs.start(*arguments, stdout=subprocess.PIPE, text=True) as victim:
        label = str(victim.communicate()[0]).strip()
    assert victim.returncode == (0 if label == "done" else -signal.SIGKILL)
    return label


def _histories(kind: str, name: str, directory: Path) -> list[list[Change]]:
    """The contents of the backup before, between and after, from an undisturbed run."""
    scenario = all_scenarios(kind)[name]
    directory.mkdir()
    scenario.prepare(directory)
    found = [] if scenario.before is None else [scenario.before.history]
    scenario.act(directory, lambda state: found.append(state.history))
    return found


@pytest.mark.parametrize(("kind", "name"), KILLED)
def test_killed_at_each_step(kind: str, name: str, memory_path: Path) -> None:
    """At every second one, of one kind the odd ones, of another the even; `make soak`: at each."""
    histories = _histories(kind, name, memory_path / "undisturbed")
    labels = []
    for number in range(1, 200) if SOAK else range(1 + (kind == "dir"), 200, 2):
        directory = memory_path / str(number)
        label = _killed(directory, kind, name, number)
        labels.append(label)
        url = url_in(directory, kind)
        if label != "done" and not is_there(_files(directory), kind):
            assert not histories[:-1]
            with pytest.raises(NotFound):
                open_reader(url)
            continue
        seen = told_by(url)
        now = next((history for history in histories if told(history) == seen), None)
        assert now is not None, f"killed at {label!r}"
        change = next_change(now)
        append(url, [change])
        assert told_by(url) == told([*now, change])
        with open_reader(url) as reader:
            restored = restore(reader, f"{directory}-restored.sqlite3")
        expected = build_database(Path(f"{directory}-expected.sqlite3"), [*now, change])
        assert_same_database(restored.path, expected)
        if label == "done":
            assert told(now) == told(histories[-1])
            break
    assert labels[-1] == "done"
    assert len(set(labels)) > (3 if SOAK else 1)


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_restore_killed_at_each_step_leaves_no_half_a_database(memory_path: Path) -> None:
    labels = []
    for number in range(1, 200):
        directory = memory_path / str(number)
        labels.append(_killed(directory, "file", "restores", number))
        restored = directory / "restored.sqlite3"
        if restored.exists():
            history = all_scenarios()["drops a transaction"].before
            assert history is not None
            expected = build_database(directory / "expected.sqlite3", history.history)
            assert_same_database(restored, expected)
        else:
            with open_reader(url_in(directory, "file")) as reader:
                restore(reader, str(restored))
        if labels[-1] == "done":
            break
    assert labels[-1] == "done"
    assert "publish restored database" in labels


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_compaction_from_a_replica_killed_at_each_step(kind: str, memory_path: Path) -> None:
    """The backup holds the same changes, folded or not; the replica finds its place again."""
    history = _histories(kind, "a transaction", memory_path / "undisturbed")[0]
    both = [history, [*history, payment(history[-1].version + 1, "meanwhile")]]
    labels = []
    for number in range(1, 200):
        directory = memory_path / str(number)
        labels.append(_killed(directory, kind, FROM_REPLICA, number))
        url = url_in(directory, kind)
        with open_writer(url):  # removes what is unfinished
            pass
        replica = KeptReplica.open(f"{directory}.replica")
        with open_reader(url) as reader:
            now = both[reader.standing.version - history[-1].version]
            replica.catch_up(reader)
            assert replica.check() == 0
            assert replica.version == now[-1].version
            restored = restore(reader, f"{directory}-restored.sqlite3")
        replica.close()
        expected = build_database(Path(f"{directory}-expected.sqlite3"), now)
        assert_same_database(restored.path, expected)
        assert not [path for path in directory.iterdir() if "compact" in path.name]
        if labels[-1] == "done":
            assert now is both[-1]
            break
    assert labels[-1] == "done"
    assert "publish compacted backup" in labels
    assert "write position" in labels
