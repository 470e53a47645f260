"""Files that the community's plugin left after a crash: read right, repaired, and continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cln_backup.backends import open_reader, open_writer, place_at
from cln_backup.compaction.compact import compact
from cln_backup.model.change import Change
from cln_backup.model.errors import Damaged, ReplayFailed
from cln_backup.operations.restore import restore
from cln_backup.operations.verify import verify
from tests import captured
from tests.disasters.places import NAME, url_in
from tests.disasters.scenarios import base_of, next_change
from tests.histories import (
    OFF,
    ON,
    append,
    assert_same_database,
    build_database,
    bump,
    first,
    image,
    long_text,
    payment,
    payments,
    rider,
    started_node,
    told,
    told_by,
    transaction,
)
from tests.seed_file import SeedFile, SeedNode, compacted, packed
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cln_backup.backends.events import Event


def _one_crash(node: SeedNode) -> None:
    node.commits(*payments(4, 6))
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.commits(*payments(6, 9))


def _crash_at_the_end(node: SeedNode) -> None:
    node.commits(*payments(4, 6))
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.commits(payment(6))


def _five_crashes(node: SeedNode) -> None:
    for version in range(4, 19):
        if version % 3 == 0:
            node.crashes_after_the_answer(payment(version, long_text(version, version * 9)))
        node.commits(payment(version, f"committed {version}"))


def _two_in_a_row(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_after_the_answer(payment(5, "once"))
    node.crashes_after_the_answer(payment(5, "twice, and longer"))
    node.commits(*payments(5, 8))


def _four_in_a_row_at_the_end(node: SeedNode) -> None:
    node.commits(payment(4))
    for text in ("once", "twice", "three times", "again"):
        node.crashes_after_the_answer(payment(5, text))
    node.commits(payment(5))


def _crash_at_each_version(node: SeedNode) -> None:
    for version in range(4, 12):
        node.crashes_after_the_answer(payment(version, "never committed"))
        node.commits(payment(version))


def _longer_than_its_replacement(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_after_the_answer(payment(5, long_text(5, 5_000)))
    node.commits(*payments(5, 9))


def _shorter_than_its_replacement(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_after_the_answer(payment(5))
    node.commits(payment(5, long_text(5, 5_000)), *payments(6, 9))


def _just_as_long_as_its_replacement(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_after_the_answer(payment(5, "five A"))
    node.commits(payment(5, "five B"), payment(6))


def _the_same_as_its_replacement(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_after_the_answer(payment(5))
    node.commits(payment(5), payment(6))


def _before_the_header(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_before_the_header(payment(5, "no header was written"))
    node.commits(*payments(5, 8))


def _before_the_header_twice(node: SeedNode) -> None:
    node.commits(payment(4))
    node.crashes_before_the_header(payment(5, "no header was written"))
    node.crashes_before_the_header(payment(5, "again"))
    node.commits(*payments(5, 8))


def _drift_then_before_the_header(node: SeedNode) -> None:
    """The header's offset is past the end of the file when the next crash comes."""
    _one_crash(node)
    node.crashes_before_the_header(payment(9, "no header was written"))
    node.commits(*payments(9, 12))
    node.crashes_after_the_answer(payment(12, "never committed"))
    node.commits(payment(12))


def _rider_right_at_the_restart(node: SeedNode) -> None:
    """That plugin takes a rider for a transaction, and goes back by one in its header."""
    node.commits(*payments(4, 6))
    node.restarts()
    node.commits(rider(5, OFF), payment(6), rider(6, ON), payment(7))


def _crash_then_a_rider(node: SeedNode) -> None:
    node.commits(*payments(4, 6))
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.commits(payment(6), rider(6, OFF), payment(7), rider(7, ON), payment(8))


def _crash_right_after_a_rider(node: SeedNode) -> None:
    node.commits(payment(4), rider(4, OFF))
    node.crashes_after_the_answer(payment(5, "never committed"))
    node.commits(payment(5), rider(5, ON), *payments(6, 8))


def _dies_twice_while_it_starts(node: SeedNode) -> None:
    node.commits(*payments(4, 6))
    node.restarts()
    node.commits(payment(6))
    node.restarts()
    node.crashes_after_the_answer(payment(7, "never committed"))
    node.crashes_before_the_header(payment(7, "neither"))
    node.commits(*payments(7, 9))
    node.restarts()
    node.commits(payment(9))


CRASHES: dict[str, Callable[[SeedNode], None]] = {
    crash.__name__.strip("_").replace("_", " "): crash
    for crash in (
        _one_crash,
        _crash_at_the_end,
        _five_crashes,
        _two_in_a_row,
        _four_in_a_row_at_the_end,
        _crash_at_each_version,
        _longer_than_its_replacement,
        _shorter_than_its_replacement,
        _just_as_long_as_its_replacement,
        _the_same_as_its_replacement,
        _before_the_header,
        _before_the_header_twice,
        _drift_then_before_the_header,
        _crash_then_a_rider,
        _crash_right_after_a_rider,
        _dies_twice_while_it_starts,
    )
}


class Case:
    """A file that was left, the history that was committed, and its database."""

    def __init__(self, directory: Path, crash: Callable[[SeedNode], None]) -> None:
        self.directory = directory
        self.path = directory / NAME
        self.url = url_in(directory)
        self.node = SeedNode(self.path, started_node())
        crash(self.node)
        self.content = self.path.read_bytes()

    def is_read_right(self) -> None:
        assert told_by(self.url) == told(self.node.committed)
        assert self.path.read_bytes() == self.content
        with open_reader(self.url) as backend:
            assert backend.version == self.node.committed[-1].version
            assert backend.standing.version_count == len(self.node.committed)
            verify(backend, replayed=True)
        self._restores(self.node.committed)

    def is_repaired(self) -> None:
        stale = self.node.never_committed > 0
        events: list[Event] = []
        with place_at(self.url).open_writer(on_event=events.append):
            assert told_by(self.url) == told(self.node.committed)
            assert bool(events) == stale
        kept = self.directory / f"{NAME}.before-repair"
        assert kept.exists() == stale
        if stale:
            assert kept.read_bytes() == self.content
        # The rest is what that plugin would have written without any crash.
        clean = SeedFile.create(self.directory / "clean")
        for change in self.node.committed:
            clean.append(change)
        assert self.path.read_bytes()[512:] == clean.path.read_bytes()[512:]
        events.clear()
        with place_at(self.url).open_writer(on_event=events.append):
            assert events == []

    def goes_on(self) -> None:
        history = list(self.node.committed)
        for _ in range(3):
            history.append(next_change(history))
            append(self.url, history[-1:])
        assert told_by(self.url) == told(history)
        self._restores(history)
        compact(self.url)
        self._restores(history)

    def _restores(self, history: Sequence[Change]) -> None:
        target = self.directory / "restored.sqlite3"
        with open_reader(self.url) as backend:
            restored = restore(backend, str(target))
        expected = build_database(self.directory / "expected.sqlite3", history)
        assert_same_database(restored.path, expected)
        target.unlink()
        expected.unlink()


@pytest.mark.parametrize("name", CRASHES)
def test_left_by_the_incumbent_after(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, CRASHES[name])
    case.is_read_right()
    case.is_repaired()
    case.goes_on()


def test_incumbent_that_met_a_rider_right_at_its_restart(tmp_path: Path) -> None:
    """Its header has drifted, but every entry was committed: there is nothing to repair."""
    case = Case(tmp_path, _rider_right_at_the_restart)
    case.is_read_right()
    case.is_repaired()
    assert not (tmp_path / f"{NAME}.before-repair").exists()
    case.goes_on()


@pytest.mark.parametrize("name", CRASHES)
def test_crash_of_our_writer_right_after_the_move(name: str, tmp_path: Path) -> None:
    """The first head of a file that was taken over is as much in doubt as any other."""
    case = Case(tmp_path, CRASHES[name])
    history = case.node.committed
    with open_writer(case.url) as backend:
        backend.rewind()
        again = transaction(history[-1].version, "DELETE FROM peers")
        backend.add_change(again)
    assert told_by(case.url) == told([*history[:-1], again])


def test_crash_right_before_the_move_of_a_file_whose_header_has_drifted(tmp_path: Path) -> None:
    """No entry in it is stale; but its header's offsets lie before where the entries are."""
    case = Case(tmp_path, _rider_right_at_the_restart)
    case.node.commits(payment(8, long_text(8, 900)), payment(9, long_text(9, 900)))
    history = case.node.committed
    with open_writer(case.url) as backend:
        backend.rewind()
        backend.add_change(payment(9, "in its place"))
    assert told_by(case.url) == told([*history[:-1], payment(9, "in its place")])


@pytest.mark.parametrize("name", CRASHES)
def test_repair_of_a_repaired_file_keeps_both(name: str, tmp_path: Path) -> None:
    """The user went back to the community's plugin, which crashed once more."""
    case = Case(tmp_path, CRASHES[name])
    open_writer(case.url).close()
    version = case.node.committed[-1].version + 1
    file = SeedFile(case.path)
    file.append(payment(version, "never committed"))
    file = SeedFile(case.path)
    assert file.first_call(version)
    file.append(payment(version))
    second = case.path.read_bytes()
    open_writer(case.url).close()
    assert told_by(case.url) == told([*case.node.committed, payment(version)])
    kept = sorted(path for path in tmp_path.iterdir() if ".before-repair" in path.name)
    wanted = [case.content, second] if case.node.never_committed else [second]
    assert sorted(path.read_bytes() for path in kept) == sorted(wanted)


@pytest.mark.parametrize("more", [0, 1, 3])
@pytest.mark.parametrize("length", [40, 900])
def test_entry_torn_in_the_middle_at_any_byte(length: int, more: int, memory_path: Path) -> None:
    """Killed in its write; the next change was appended after the rest of the last one."""
    torn = payment(6, long_text(6, length))
    covers_the_next = len(packed(torn)) - len(packed(payments(6, 7)[0]))
    step = 1 if length < 100 else 13 if SOAK else 39
    for cut in range(9, len(packed(torn)), step):
        if cut == covers_the_next:
            continue  # its length ends just where the next one does: see below
        directory = memory_path / str(cut)
        directory.mkdir()
        node = SeedNode(directory / NAME, [*started_node(), *payments(4, 6)])
        node.crashes_in_the_write(torn, cut)
        node.commits(*payments(6, 7 + more))
        url = url_in(directory)
        content = (directory / NAME).read_bytes()
        assert told_by(url) == told(node.committed), f"torn after {cut} bytes"
        append(url, [payment(7 + more)])
        assert told_by(url) == told([*node.committed, payment(7 + more)])
        assert (directory / f"{NAME}.before-repair").read_bytes() == content


@pytest.mark.parametrize("more", [0, 1, 3])
def test_torn_entry_whose_length_ends_just_where_the_next_one_does(
    more: int, tmp_path: Path
) -> None:
    """The two look like one entry; a replay at least never takes it for a good one."""
    torn = payment(6, long_text(6, 40))
    node = SeedNode(tmp_path / NAME, [*started_node(), *payments(4, 6)])
    node.crashes_in_the_write(torn, len(packed(torn)) - len(packed(payments(6, 7)[0])))
    node.commits(*payments(6, 7 + more))
    try:
        with open_reader(url_in(tmp_path)) as backend:
            restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    except (Damaged, ReplayFailed):
        return
    expected = build_database(tmp_path / "expected.sqlite3", node.committed)
    assert_same_database(restored.path, expected)


@pytest.mark.parametrize("cut", range(1, 9))
def test_entry_torn_before_its_payload_is_at_least_never_misread(cut: int, tmp_path: Path) -> None:
    """That plugin writes these 9 bytes at once; only a full disk can tear them apart."""
    node = SeedNode(tmp_path / NAME, [*started_node(), *payments(4, 6)])
    node.crashes_in_the_write(payment(6, "never committed"), cut)
    node.commits(*payments(6, 9))
    content = (tmp_path / NAME).read_bytes()
    try:
        assert told_by(url_in(tmp_path)) == told(node.committed)
    except Damaged:
        assert (tmp_path / NAME).read_bytes() == content


def test_entry_torn_at_every_length_against_every_length_behind_it(tmp_path: Path) -> None:
    """The length of the torn one may end in any byte of the following data, or just after it."""
    path, url = tmp_path / NAME, url_in(tmp_path)
    for length in range(0, 420, 3):
        torn = payment(4, long_text(4, length))
        path.unlink(missing_ok=True)
        node = SeedNode(path, started_node())
        node.crashes_in_the_write(torn, 40)
        node.commits(*payments(4, 7))
        try:
            assert told_by(url) == told(node.committed)
        except Damaged:
            pytest.fail(f"refused, although it can be read: torn one of {len(packed(torn))} bytes")


def test_stale_head_and_torn_replacement_at_the_end(tmp_path: Path) -> None:
    """Two crashes of that plugin, and the user moves over before it runs again.

    The torn entry has the head's version: so the head was never committed, and has to go.
    """
    path, url = tmp_path / NAME, url_in(tmp_path)
    node = SeedNode(path, [*started_node(), *payments(4, 6)])
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.crashes_in_the_write(payment(6, "neither"), 60)
    with open_writer(url) as backend:
        if backend.version == 6:
            backend.rewind()
        backend.add_change(payment(6))
    assert told_by(url) == told([*node.committed, payment(6)])


def test_torn_end(tmp_path: Path) -> None:
    node = SeedNode(tmp_path / NAME, [*started_node(), *payments(4, 6)])
    torn = payment(6, "cut")
    for cut in range(1, len(packed(torn))):
        path = tmp_path / str(cut)
        path.write_bytes((tmp_path / NAME).read_bytes() + packed(torn)[:cut])
        url = f"file://{path}"
        assert told_by(url) == told(node.committed)
        append(url, [payment(6)])
        assert told_by(url) == told([*node.committed, payment(6)])


def test_whole_entry_without_a_header_at_the_end(tmp_path: Path) -> None:
    """It was never answered, but that cannot be known; it is in doubt like any head."""
    node = SeedNode(tmp_path / NAME, [*started_node(), *payments(4, 6)])
    node.crashes_before_the_header(payment(6))
    url = url_in(tmp_path)
    assert told_by(url) == told([*node.committed, payment(6)])
    with open_writer(url) as backend:
        backend.rewind()
        backend.add_change(payment(6, "committed"))
    assert told_by(url) == told([*node.committed, payment(6, "committed")])


def test_compaction_of_the_incumbent(tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 9)]
    compacted(tmp_path / NAME, base_of(history[:-1]), history[-1])
    url = url_in(tmp_path)
    assert told_by(url) == told([base_of(history[:-1]), history[-1]])
    append(url, [payment(9)])
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    expected = build_database(tmp_path / "expected.sqlite3", [*history, payment(9)])
    assert_same_database(restored.path, expected)


def test_compaction_of_the_incumbent_then_a_crash(tmp_path: Path) -> None:
    history = [*started_node(), *payments(4, 9)]
    path, url = tmp_path / NAME, url_in(tmp_path)
    base = base_of(history[:-1])
    compacted(path, base, history[-1])
    SeedFile(path).append(payment(9, "never committed"))
    file = SeedFile(path)
    assert file.first_call(9)
    file.append(payment(9))
    assert told_by(url) == told([base, history[-1], payment(9)])
    with open_writer(url) as backend:
        assert backend.standing.prev_version == 8
        backend.rewind()
        backend.add_change(payment(9, "in the end"))
    assert told_by(url) == told([base, history[-1], payment(9, "in the end")])


def test_compaction_of_the_incumbent_after_a_crash_that_did_no_harm(tmp_path: Path) -> None:
    """It replays stale and true alike; where both may be replayed, its snapshot is right."""
    harmless = transaction(4, "UPDATE vars SET intval = 5 WHERE name = 'sum'")
    history = [*started_node(), harmless, *payments(5, 7)]
    path, url = tmp_path / NAME, url_in(tmp_path)
    replayed = [*started_node(), harmless, harmless, *payments(5, 6)]
    compacted(path, base_of(replayed), payment(6, "payment 6"))
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    expected = build_database(tmp_path / "expected.sqlite3", history)
    assert_same_database(restored.path, expected)


def test_file_that_the_incumbent_began_with_a_snapshot(tmp_path: Path) -> None:
    """Its init wrote the database that it found; then the node crashed at its first change."""
    path, url = tmp_path / NAME, url_in(tmp_path)
    base = base_of(started_node())
    node = SeedNode.of(path, base)
    node.crashes_after_the_answer(payment(4, "never committed"))
    node.commits(*payments(4, 7))
    assert told_by(url) == told([base, *payments(4, 7)])
    append(url, [payment(7)])
    assert told_by(url) == told([base, *payments(4, 7), payment(7)])


def test_snapshots_of_the_incumbent_in_a_row(tmp_path: Path) -> None:
    """A compaction right after init: the same database twice, the first time a version too old."""
    path, url = tmp_path / NAME, url_in(tmp_path)
    base = base_of(started_node())
    assert base.snapshot is not None
    compacted(path, Change(2, base.snapshot, None), base)
    assert [change.version for change in told_by(url)] == [2, 3]
    append(url, [payment(4)])
    with open_reader(url) as backend:
        assert restore(backend, str(tmp_path / "restored.sqlite3")).version == 4


def test_recorded_node_that_was_killed_three_times(tmp_path: Path) -> None:
    """The calls of a real node, written by the rules of the community's plugin."""
    path, url = tmp_path / NAME, url_in(tmp_path)
    node = SeedNode(path)
    held: Change | None = None
    for line in captured.lines(captured.CRASH.with_suffix(".jsonl.xz")):
        if isinstance(line, Change):
            if held is not None:
                node.commits(held)
            held = line
        elif line.startswith("kill9"):
            assert held is not None
            node.crashes_after_the_answer(held)
            held = None
    assert held is not None
    node.commits(held)
    assert node.never_committed == 3
    assert told_by(url) == told(node.committed)
    with open_reader(url) as backend:
        restored = restore(backend, str(tmp_path / "restored.sqlite3"))
    real = captured.unpacked(captured.CRASH.with_suffix(".sqlite3.xz"), tmp_path / "real.sqlite3")
    assert_same_database(restored.path, real)
    events: list[Event] = []
    with place_at(url).open_writer(on_event=events.append):
        assert events
    assert told_by(url) == told(node.committed)


def test_statement_that_looks_like_a_bump_in_the_middle_makes_nothing_whole(
    tmp_path: Path,
) -> None:
    """A torn entry whose text holds what ends another one."""
    torn = transaction(4, f"INSERT INTO payments VALUES (90, '{bump(4).replace(chr(39), '')}')")
    node = SeedNode(tmp_path / NAME, started_node())
    node.crashes_in_the_write(torn, len(packed(torn)) - 30)
    node.commits(*payments(4, 6))
    assert told_by(url_in(tmp_path)) == told(node.committed)


def test_repair_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cln_backup.model.errors import StorageError
    from cln_backup.storage import fsio

    case = Case(tmp_path, _five_crashes)

    def failing(_built: str, _path: str, *, op: str) -> None:
        raise StorageError(f"Cannot {op}")

    with monkeypatch.context() as patch:
        patch.setattr(fsio, "replace", failing)
        with pytest.raises(StorageError):
            open_writer(case.url)
    assert case.path.read_bytes() == case.content
    names = {path.name for path in tmp_path.iterdir()} - {f"{NAME}.writer"}
    assert names <= {NAME, f"{NAME}.before-repair"}
    case.goes_on()


def test_first_change_of_all_was_stale(tmp_path: Path) -> None:
    """The community's plugin gives up there; the file itself can still be told apart."""
    file = SeedFile.create(tmp_path / NAME)
    file.append(transaction(1, "CREATE TABLE never (committed)"))
    file.append(first())
    file.append(rider(1))
    assert told_by(url_in(tmp_path)) == told([first(), rider(1)])


def test_huge_version_numbers(tmp_path: Path) -> None:
    """A node stops at 2^31 itself; up to there a version may begin with any byte."""
    for version in (0x00414243, 0x01010101, 2**31 - 3):
        path = tmp_path / str(version)
        base = Change(version, image("a database"), None)
        file = SeedFile.create(path)
        file.append(base)
        file.append(payment(version + 1, "never committed"))
        file = SeedFile(path)
        assert file.first_call(version + 1)
        file.append(payment(version + 1))
        assert told_by(f"file://{path}") == told([base, payment(version + 1)])
