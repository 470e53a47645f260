"""Against the community plugin's own code, where `CLN_BACKUP_INCUMBENT` names a checkout of it.

It runs in processes of its own. Users move over, and back: each program must take the other's file,
continue it, and leave it readable for the other one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cln_backup.backends import create_backend, open_reader, open_writer
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change, Kind
from cln_backup.model.errors import Damaged, ReplayFailed
from cln_backup.operations.copy import copy
from cln_backup.operations.initialize import initialize
from cln_backup.operations.restore import restore
from tests import captured
from tests.disasters.test_incumbent_crashes import CRASHES
from tests.histories import (
    add_all,
    append,
    assert_same_database,
    build_database,
    first,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.seed_file import SeedFile, SeedNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NAMED = os.environ.get("CLN_BACKUP_INCUMBENT")
pytestmark = pytest.mark.skipif(
    not _NAMED, reason="CLN_BACKUP_INCUMBENT names no checkout of the community's plugin"
)

# A process with its code: executes the lines of its input, and prints its version then.
_DRIVER = """
import contextlib, json, logging, sys
sys.path.insert(0, sys.argv[1])
from backend import Change
from filebackend import FileBackend
logging.disable(logging.CRITICAL)
url, create = sys.argv[2], sys.argv[3] == "create"
backend = FileBackend(url, create)
assert create or backend.initialize()
results = []
for line in sys.stdin:
    name, *rest = json.loads(line)
    if name == "add":
        version, snapshot, transaction = rest
        if snapshot is not None:
            snapshot = open(snapshot, "rb").read()
        results.append(backend.add_change(Change(version, snapshot, transaction)))
    elif name == "first":
        version = rest[0]
        if backend.version == version - 1:
            results.append("match")
        elif backend.prev_version == version - 1 and backend.rewind():
            results.append("rewound")
        else:
            results.append("kill")
    elif name == "tell":
        results.append([
            [c.version, None if c.snapshot is None else len(c.snapshot), c.transaction]
            for c in backend.stream_changes()
        ])
    else:
        results.append(getattr(backend, name)(*rest))
print(json.dumps({
    "results": results, "version": backend.version, "prev_version": backend.prev_version,
    "offsets": backend.offsets, "count": backend.version_count,
}))
"""


class Refused(Exception):
    """Its process ended with an error."""


class Incumbent:
    """The community's plugin at one file."""

    def __init__(self, url: str) -> None:
        assert _NAMED is not None
        code = Path(_NAMED)
        self._code = code / "backup" if (code / "backup").is_dir() else code
        self._url = url

    def does(self, *calls: Sequence[object], create: bool = False) -> dict[str, Any]:
        """Does these calls in one new process."""
        ended = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-c", _DRIVER, str(self._code), self._url),
                "create" if create else "open",
            ],
            input="".join(json.dumps(call) + "\n" for call in calls),
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise Refused(ended.stderr)
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    def adds(self, changes: Iterable[Change], *, create: bool = False) -> dict[str, Any]:
        calls = [["add", change.version, None, list(change.transaction or ())]
                 for change in changes]  # fmt: skip
        return self.does(*calls, create=create)

    def restores(self, target: Path) -> Path:
        self.does(["restore", str(target)])
        return target


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/node.bkp"


@pytest.fixture
def incumbent(url: str) -> Incumbent:
    return Incumbent(url)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.bkp"


def _ours(url: str, target: Path) -> Path:
    with open_reader(url) as backend:
        restore(backend, str(target))
    return target


HISTORY = [*started_node(), *payments(4, 12)]


def test_the_rules_that_the_tests_write_by_are_its_rules(
    url: str, path: Path, incumbent: Incumbent, tmp_path: Path
) -> None:
    """`tests/seed_file.py` against the real thing, byte for byte, with a crash."""
    incumbent.adds(HISTORY, create=True)
    seed = SeedFile.create(tmp_path / "seed")
    for change in HISTORY:
        seed.append(change)
    assert seed.path.read_bytes() == path.read_bytes()
    stale, true = payment(12, "never committed"), payment(12)
    incumbent.adds([stale])
    seed.append(stale)
    said = incumbent.does(["first", 12], ["add", 12, None, true.transaction])
    assert said["results"][0] == "rewound"
    seed = SeedFile(seed.path)
    assert seed.first_call(12)
    seed.append(true)
    assert seed.path.read_bytes() == path.read_bytes()
    assert said["offsets"] == [seed.next_offset, seed.prev_offset]
    assert url


def test_it_restores_what_we_wrote(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    create_backend(url, None)
    append(url, HISTORY)
    expected = build_database(tmp_path / "expected", HISTORY)
    assert_same_database(incumbent.restores(tmp_path / "restored"), expected)


@pytest.mark.parametrize("encrypted", [False, True])
def test_it_restores_a_directory_that_was_copied_to_a_file_and_goes_on(
    encrypted: bool, url: str, incumbent: Incumbent, tmp_path: Path
) -> None:
    """With what a node's directory has seen: a dropped head, a compaction, a rider."""
    (tmp_path / "key").write_bytes(bytes(range(32)))
    directory = f"dir://{tmp_path}/backup" + (f"?key-file={tmp_path}/key" if encrypted else "")
    create_backend(directory, None)
    append(directory, HISTORY[:5])
    with open_writer(directory) as backend:
        backend.rewind()
    append(directory, HISTORY[4:10])
    compact(directory)
    append(directory, HISTORY[10:])
    copy(directory, url)
    expected = build_database(tmp_path / "expected", HISTORY)
    assert_same_database(incumbent.restores(tmp_path / "restored"), expected)
    last = HISTORY[-1].version
    more = payments(last + 1, last + 4)
    incumbent.adds(more)
    expected = build_database(tmp_path / "more", [*HISTORY, *more])
    assert_same_database(incumbent.restores(tmp_path / "again"), expected)
    copy(url, f"dir://{tmp_path}/back")
    assert_same_database(_ours(f"dir://{tmp_path}/back", tmp_path / "ours"), expected)


def test_we_restore_what_it_wrote(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    incumbent.adds(HISTORY, create=True)
    assert told_by(url) == told(HISTORY)
    expected = build_database(tmp_path / "expected", HISTORY)
    assert_same_database(_ours(url, tmp_path / "restored"), expected)


def test_both_write_the_same_bytes(
    url: str, path: Path, incumbent: Incumbent, tmp_path: Path
) -> None:
    incumbent.adds(HISTORY, create=True)
    other = f"file://{tmp_path}/ours.bkp"
    create_backend(other, None)
    append(other, HISTORY)
    assert (tmp_path / "ours.bkp").read_bytes() == path.read_bytes()
    assert url


def test_file_goes_back_and_forth(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    create_backend(url, None)
    history: list[Change] = list(started_node())
    append(url, history)
    for version in range(4, 16, 4):
        incumbent.adds(payments(version, version + 2))
        append(url, payments(version + 2, version + 4))
        history += payments(version, version + 4)
    assert told_by(url) == told(history)
    expected = build_database(tmp_path / "expected", history)
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)
    assert_same_database(_ours(url, tmp_path / "ours"), expected)


def test_it_starts_on_our_file_in_every_state_of_the_node(url: str, incumbent: Incumbent) -> None:
    create_backend(url, None)
    append(url, HISTORY)
    assert incumbent.does(["first", 12])["results"] == ["match"]
    assert incumbent.does(["first", 11])["results"] == ["rewound"]
    assert incumbent.does(["first", 10])["results"] == ["kill"]
    assert incumbent.does(["first", 13])["results"] == ["kill"]


def test_it_goes_on_after_our_rewind(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    """Our header after a rewind has no pair to go back to, as its own in memory."""
    create_backend(url, None)
    append(url, [*HISTORY, payment(12, "never committed")])
    with open_writer(url) as backend:
        backend.rewind()
    assert incumbent.does(["rewind"])["results"] == [False]
    assert incumbent.does(["first", 12])["results"] == ["match"]
    incumbent.adds(payments(12, 15))
    history = [*HISTORY, *payments(12, 15)]
    expected = build_database(tmp_path / "expected", history)
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)
    assert_same_database(_ours(url, tmp_path / "ours"), expected)


def test_we_repair_what_its_crash_left(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    incumbent.adds([*HISTORY, payment(12, "never committed")], create=True)
    true = payment(12)
    said = incumbent.does(["first", 12], ["add", 12, None, true.transaction])
    assert said["results"] == ["rewound", True]
    incumbent.adds(payments(13, 16))
    history = [*HISTORY, true, *payments(13, 16)]
    with pytest.raises(Refused):
        incumbent.restores(tmp_path / "its")
    expected = build_database(tmp_path / "expected", history)
    assert_same_database(_ours(url, tmp_path / "ours"), expected)
    open_writer(url).close()
    assert_same_database(incumbent.restores(tmp_path / "mended"), expected)


@pytest.mark.parametrize("name", CRASHES)
def test_it_takes_back_what_we_repaired(
    name: str, url: str, path: Path, incumbent: Incumbent, tmp_path: Path
) -> None:
    node = SeedNode(path, started_node())
    CRASHES[name](node)
    history = node.committed
    append(url, [payment(history[-1].version + 1, "ours")])
    incumbent.adds([payment(history[-1].version + 2, "its")])
    history += [
        payment(history[-1].version + 1, "ours"),
        payment(history[-1].version + 2, "its"),
    ]
    assert told_by(url) == told(history)
    expected = build_database(tmp_path / "expected", history)
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)


def test_it_restores_what_we_compacted(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    create_backend(url, None)
    append(url, HISTORY)
    compact(url)
    expected = build_database(tmp_path / "expected", HISTORY)
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)
    assert incumbent.does(["first", 12])["results"] == ["match"]
    assert incumbent.does(["first", 11])["results"] == ["rewound"]
    incumbent.adds(payments(12, 14))
    append(url, payments(14, 16))
    expected = build_database(tmp_path / "more", [*HISTORY, *payments(12, 16)])
    assert_same_database(incumbent.restores(tmp_path / "again"), expected)


def test_we_restore_what_it_compacted(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    incumbent.adds(HISTORY, create=True)
    (statistics,) = incumbent.does(["compact"])["results"]
    assert statistics["after"]["version_count"] == 2
    with open_writer(url) as backend:
        assert (backend.version, backend.standing.prev_version, backend.standing.version_count) == (
            11,
            10,
            2,
        )
        add_all(backend, payments(12, 14))
    expected = build_database(tmp_path / "expected", [*HISTORY, *payments(12, 14)])
    assert_same_database(_ours(url, tmp_path / "ours"), expected)


def test_statistics_are_in_its_words(url: str, incumbent: Incumbent) -> None:
    incumbent.adds(HISTORY, create=True)
    (its,) = incumbent.does(["compact"])["results"]
    assert {name: set(its[name]) for name in its} == {
        name: set(size) for name, size in compact(url).items() if isinstance(size, dict)
    }


def test_both_compact_in_turns(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    incumbent.adds(HISTORY, create=True)
    compact(url)
    append(url, payments(12, 16))
    incumbent.does(["compact"])
    incumbent.adds(payments(16, 20))
    compact(url)
    expected = build_database(tmp_path / "expected", [*HISTORY, *payments(12, 20)])
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)
    assert_same_database(_ours(url, tmp_path / "ours"), expected)


def test_backup_that_it_began_with_a_snapshot(
    url: str, incumbent: Incumbent, tmp_path: Path
) -> None:
    base = tmp_path / "base.sqlite3"
    build_database(base, HISTORY)
    incumbent.does(["add", 11, str(base), None], create=True)
    with open_reader(url) as backend:
        assert backend.standing.head is not None
        assert backend.standing.head.kind is Kind.SNAPSHOT
    append(url, payments(12, 14))
    expected = build_database(tmp_path / "expected", [*HISTORY, *payments(12, 14)])
    assert_same_database(_ours(url, tmp_path / "ours"), expected)
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)


def test_backup_that_we_began_with_a_snapshot(
    url: str, path: Path, incumbent: Incumbent, tmp_path: Path
) -> None:
    directory = tmp_path / "regtest"
    directory.mkdir()
    database = build_database(directory / "lightningd.sqlite3", HISTORY)
    initialize(url, str(directory))
    assert_same_database(incumbent.restores(tmp_path / "its"), database)
    incumbent.adds(payments(12, 14))
    other = Incumbent(f"file://{tmp_path}/other.bkp")
    other.does(["add", 11, str(database), None], create=True)
    other.adds(payments(12, 14))
    assert (tmp_path / "other.bkp").read_bytes()[:36] == path.read_bytes()[:36]


def test_compaction_right_after_its_init_fails_and_does_no_harm(
    url: str, incumbent: Incumbent, tmp_path: Path
) -> None:
    """It stops at the first change of the head's version, here the only one."""
    base = tmp_path / "base.sqlite3"
    build_database(base, HISTORY)
    incumbent.does(["add", 11, str(base), None], create=True)
    with pytest.raises(Refused):
        incumbent.does(["compact"])
    assert_same_database(_ours(url, tmp_path / "ours"), base)
    append(url, [payment(12)])
    compact(url)
    expected = build_database(tmp_path / "expected", [*HISTORY, payment(12)])
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)


def test_fresh_snapshot_of_ours_is_where_its_restore_stops(
    url: str, incumbent: Incumbent, tmp_path: Path
) -> None:
    """A snapshot closes a gap; it takes the history up to there like any other change."""
    create_backend(url, None)
    append(url, HISTORY)
    missed = [*HISTORY, *payments(12, 20)]
    append(url, [snapshot_of(missed, tmp_path / "base.sqlite3"), payment(20)])
    expected = build_database(tmp_path / "expected", [*missed, payment(20)])
    assert_same_database(incumbent.restores(tmp_path / "its"), expected)


def test_its_stream_tells_what_ours_does(url: str, incumbent: Incumbent) -> None:
    create_backend(url, None)
    append(url, HISTORY)
    (its,) = incumbent.does(["tell"])["results"]
    assert its == [[change.version, None, change.transaction] for change in HISTORY]


def test_rider_at_the_head_is_what_it_misses(url: str, incumbent: Incumbent) -> None:
    """It stops at the first change that has the head's version; its users know no better."""
    create_backend(url, None)
    append(url, [*HISTORY, rider(11)])
    (its,) = incumbent.does(["tell"])["results"]
    assert [version for version, _, _ in its] == [change.version for change in HISTORY]


@pytest.mark.parametrize("name", captured.SMALL)
def test_recorded_node_through_both(name: str, memory_path: Path) -> None:
    url = f"file://{memory_path}/node.bkp"
    incumbent = Incumbent(url)
    history = list(captured.changes(captured.COMMITTED / "small" / f"{name}.jsonl.xz"))
    third = len(history) // 3
    incumbent.adds(history[:third], create=True)
    append(url, history[third : 2 * third])
    incumbent.adds(history[2 * third :])
    real = captured.unpacked(
        captured.COMMITTED / "small" / f"{name}.sqlite3.xz", memory_path / "node.sqlite3"
    )
    assert_same_database(_ours(url, memory_path / "ours"), real)
    assert_same_database(incumbent.restores(memory_path / "its"), real)
    compact(url)
    assert_same_database(incumbent.restores(memory_path / "compacted"), real)


def test_recorded_node_that_was_killed_three_times(memory_path: Path) -> None:
    """The reason for this project: its own backup of that node cannot be trusted."""
    url = f"file://{memory_path}/node.bkp"
    incumbent = Incumbent(url)
    calls: list[list[object]] = []
    created = False
    for line in [*captured.lines(captured.CRASH.with_suffix(".jsonl.xz")), "start"]:
        if isinstance(line, Change):
            if not calls:
                calls.append(["first", line.version])
            calls.append(["add", line.version, None, line.transaction])
        elif line == "start" and calls:
            said = incumbent.does(*calls, create=not created)
            assert "kill" not in said["results"]
            created, calls = True, []
    real = captured.unpacked(
        captured.CRASH.with_suffix(".sqlite3.xz"), memory_path / "node.sqlite3"
    )
    assert_same_database(_ours(url, memory_path / "ours"), real)
    open_writer(url).close()
    assert_same_database(incumbent.restores(memory_path / "its"), real)


def test_its_own_old_file_with_the_expansion_faults(tmp_path: Path) -> None:
    """The file of its own tests; it is not part of this repository."""
    assert _NAMED is not None
    old = next(Path(_NAMED).rglob("pre-4090-backup.dbak"))
    copy = tmp_path / "old.bkp"
    copy.write_bytes(old.read_bytes())
    url = f"file://{copy}"
    assert b"WHERE" in old.read_bytes()
    restored = _ours(url, tmp_path / "ours")
    its = Incumbent(url).restores(tmp_path / "its")
    assert_same_database(restored, its)
    compact(url)
    assert_same_database(_ours(url, tmp_path / "compacted"), its)
    assert_same_database(Incumbent(url).restores(tmp_path / "again"), its)


def test_faulty_statements_are_mended_alike(url: str, incumbent: Incumbent, tmp_path: Path) -> None:
    history = [
        first(),
        transaction(
            2,
            "INSERT INTO peers (id) VALUES (1), (2)",
            "INSERT INTO channels VALUES (1, 2)",
            "INSERT INTO outputs VALUES (1, 2, 0, 0)",
        ),
        transaction(
            3,
            "UPDATE outputs SET status=1, reserved_til=174WHERE prev_out_tx=1",
            "UPDATE channels SET peer_id=1WHERE channels.id=1",
        ),
    ]
    create_backend(url, None)
    append(url, history)
    assert_same_database(incumbent.restores(tmp_path / "its"), _ours(url, tmp_path / "ours"))


def test_its_compaction_after_its_crash_is_refused_or_right(
    url: str, incumbent: Incumbent, tmp_path: Path
) -> None:
    """It folds the stale change in as well; if that was not noticed, it cannot be known later."""
    harmless = transaction(12, "UPDATE vars SET intval = 5 WHERE name = 'sum'")
    incumbent.adds([*HISTORY, harmless], create=True)
    incumbent.does(["first", 12], ["add", 12, None, harmless.transaction])
    incumbent.adds(payments(13, 15))
    incumbent.does(["compact"])
    expected = build_database(tmp_path / "expected", [*HISTORY, harmless, *payments(13, 15)])
    try:
        restored = _ours(url, tmp_path / "ours")
    except (Damaged, ReplayFailed):
        return
    assert_same_database(restored, expected)
