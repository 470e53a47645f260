"""A disk that gives back other bytes than it was given.

Format 1 has no checksum. It cannot detect one class of damage: a byte within the text
of a statement, or within the pages of a snapshot, that makes other text or other pages, equally
good. Such a database may hold another value; it is never at another version, and no change is
missing. All else is refused, or makes no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from cln_backup.backends import open_reader, open_writer, place_at
from cln_backup.model.errors import BackupError, Damaged, NotFound, ReplayFailed
from cln_backup.operations.restore import restore
from simulator.content import differences
from tests.disasters.places import NAME, make, url_in
from tests.histories import (
    append,
    assert_same_database,
    build_database,
    payment,
    payments,
    rider,
    snapshot_of,
    started_node,
    told,
    told_by,
)
from tests.seed_file import SeedNode, packed
from tests.soak import SOAK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cln_backup.backends.events import Event
    from cln_backup.model.change import Change
    from tests.histories import Told

PARTS = 4
_EACH = (*(1 << bit for bit in range(8)), 0xFF)
HISTORIES: dict[str, list[Change]] = {
    "ends with a transaction": [*started_node(), *payments(4, 6)],
    "ends with a rider": [*started_node(), payment(4), rider(4)],
    "one change": started_node()[:1],
    "two changes": started_node()[:2],
}


class Place(NamedTuple):
    """One byte of a file, and what it belongs to."""

    offset: int
    entry: int | None
    in_payload: bool


def _places(history: Sequence[Change]) -> Iterator[Place]:
    for offset in range(512):
        yield Place(offset, None, in_payload=False)
    start = 512
    for number, change in enumerate(history):
        length = len(packed(change))
        for offset in range(length):
            yield Place(start + offset, number, in_payload=offset >= 9)
        start += length


def _masks(place: Place, last: int) -> Sequence[int]:
    """The changes of a byte: each bit and all, or one of these if its neighbours are alike.

    Every third byte of a text or of the unused header represents those around it. With all, as in
    `make soak`, each has three, and those of the last entry nine.
    """
    is_alike = place.in_payload or (place.entry is None and place.offset >= 36)
    if is_alike and not SOAK:
        number, rest = divmod(place.offset, 3)
        return () if rest else (_EACH[number % len(_EACH)],)
    return _EACH if place.offset < 36 or place.entry == last else (0x01, 0x20, 0xFF)


class Rot:
    """A backup, its database, and the result for both when one byte is changed."""

    def __init__(self, directory: Path, history: Sequence[Change]) -> None:
        self.history = history
        self.undetected = 0
        self.refused = 0
        self.claimed: set[int] = set()
        make(directory, history)
        self._directory = directory
        self._url = url_in(directory)
        self._path = directory / NAME
        self._whole = self._path.read_bytes()
        self._expected = build_database(directory / "expected.sqlite3", history)
        self._told = told(history)

    def judge(self, place: Place, mask: int) -> None:
        rotten = bytearray(self._whole)
        rotten[place.offset] ^= mask
        self._path.write_bytes(rotten)
        try:
            seen = told_by(self._url)
        except Damaged as damaged:
            self.refused += 1
            self.claimed.add(damaged.good_version)
            assert self._path.read_bytes() == bytes(rotten), "changed although it was refused"
            with pytest.raises(Damaged):
                open_writer(self._url)
            assert self._path.read_bytes() == bytes(rotten), "changed although it was refused"
            return
        self._check_nothing_is_missing(seen, place)
        open_writer(self._url).close()
        self._check_nothing_is_missing(told_by(self._url), place)
        if seen != self._told:
            self._check_restored(place)

    def _check_nothing_is_missing(self, seen: Sequence[Told], place: Place) -> None:
        wanted = [(change.version, change.kind) for change in self._told]
        assert [(change.version, change.kind) for change in seen] == wanted
        different = [number for number, pair in enumerate(zip(seen, self._told, strict=True))
                     if pair[0] != pair[1]]  # fmt: skip
        assert different in ([], [place.entry])

    def _check_restored(self, place: Place) -> None:
        target = self._directory / "restored.sqlite3"
        try:
            with open_reader(self._url) as backend:
                restored = restore(backend, str(target))
        except ReplayFailed:
            self.refused += 1
            assert not target.exists()
            return
        assert restored.version == self.history[-1].version
        if differences(target, self._expected):
            assert place.in_payload
            self.undetected += 1
        target.unlink()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", HISTORIES)
def test_any_byte_of_a_backup_is_another(name: str, part: int, memory_path: Path) -> None:
    history = HISTORIES[name]
    rot = Rot(memory_path, history)
    for place in list(_places(history))[part::PARTS]:
        for mask in _masks(place, len(history) - 1):
            rot.judge(place, mask)
    assert rot.refused > rot.undetected


@pytest.mark.parametrize("part", range(PARTS))
def test_any_byte_around_a_snapshot_is_another(part: int, memory_path: Path) -> None:
    base = snapshot_of(started_node(), memory_path / "base.sqlite3")
    assert base.snapshot is not None
    history = [base, *payments(4, 6)]
    rot = Rot(memory_path, history)
    end = 512 + 9 + base.snapshot.size_bytes
    for place in list(_places(history))[part::PARTS]:
        in_pages = 512 + 9 + 100 < place.offset < end
        if in_pages and place.offset % 211 > PARTS:
            continue
        for mask in (0xFF,) if in_pages else _masks(place, 2):
            rot.judge(place, mask)


def test_what_is_said_to_be_good_was_there(memory_path: Path) -> None:
    """`Damaged.good_version` is what an operator goes by."""
    rot = Rot(memory_path, HISTORIES["ends with a transaction"])
    for place in _places(rot.history):
        if not place.in_payload:
            for mask in (0x01, 0x40):
                rot.judge(place, mask)
    assert rot.claimed <= set(range(rot.history[-1].version + 1))


def _boundaries(history: Sequence[Change]) -> list[int]:
    found = [512]
    for change in history:
        found.append(found[-1] + len(packed(change)))
    return found


@pytest.mark.parametrize("name", HISTORIES)
def test_file_is_cut_off_at_any_byte(name: str, memory_path: Path) -> None:
    """Within its last change, that may have been a power cut before the answer; else never.

    At any byte of the last change, and before it at every third; `make soak`: at any.
    """
    history = HISTORIES[name]
    make(memory_path, history)
    path, url = memory_path / NAME, url_in(memory_path)
    whole = path.read_bytes()
    *_, last, end = _boundaries(history)
    for length in range(end):
        if length < last and length % 3 and not SOAK:
            continue
        path.write_bytes(whole[:length])
        if length < last:
            for writable in (False, True):
                with pytest.raises(Damaged):
                    (open_writer if writable else open_reader)(url)
            assert path.read_bytes() == whole[:length]
            continue
        assert told_by(url) == told(history[:-1])
        events: list[Event] = []
        with place_at(url).open_writer(on_event=events.append):
            assert events or length == last
        append(url, [history[-1]])
        assert told_by(url) == told(history)


@pytest.mark.parametrize("name", HISTORIES)
def test_last_change_that_is_missing_as_a_whole_is_not_passed_over_in_silence(
    name: str, memory_path: Path
) -> None:
    """The header promises it. It may never have been answered, and the operator is told."""
    history = HISTORIES[name]
    make(memory_path, history)
    path = memory_path / NAME
    path.write_bytes(path.read_bytes()[: _boundaries(history)[-2]])
    place = place_at(url_in(memory_path))
    for opened in (place.open_reader, place.open_writer):
        events: list[Event] = []
        with opened(on_event=events.append):
            assert events


def test_file_is_cut_off_after_a_rewind(memory_path: Path) -> None:
    """Nothing is in doubt then: all that the header says was there."""
    history = [*started_node(), *payments(4, 7)]
    make(memory_path, history)
    path, url = memory_path / NAME, url_in(memory_path)
    with open_writer(url) as backend:
        backend.rewind()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            open_writer(url)


def test_last_two_changes_are_cut_off(memory_path: Path) -> None:
    history = [*started_node(), *payments(4, 7)]
    make(memory_path, history)
    path = memory_path / NAME
    content = path.read_bytes()
    for boundary in _boundaries(history)[:-2]:
        path.write_bytes(content[:boundary])
        with pytest.raises(Damaged):
            open_writer(url_in(memory_path))


_GARBAGE: dict[str, Callable[[int], bytes]] = {
    "zeros": bytes,
    "ones": lambda length: b"\xff" * length,
    "text": lambda length: (b"the end of another file " * length)[:length],
    "noise": lambda length: bytes(n * n * 37 % 251 for n in range(length)),
    "a transaction's start": lambda length: packed(payment(6, "x" * 700))[:length],
    "a header": lambda length: (b"\0\0\0\1" + bytes(60) + b"\0\0\2\0") * (length // 68 + 1),
}


@pytest.mark.parametrize("name", _GARBAGE)
def test_garbage_behind_the_end(name: str, memory_path: Path) -> None:
    history = [*started_node(), *payments(4, 6)]
    make(memory_path, history)
    path, url = memory_path / NAME, url_in(memory_path)
    whole = path.read_bytes()
    for length in [*range(1, 40), 511, 512, 513, 600]:
        path.write_bytes(whole + _GARBAGE[name](length))
        assert told_by(url) == told(history)
        events: list[Event] = []
        with place_at(url).open_writer(on_event=events.append):
            assert events
        assert path.read_bytes()[512:] == whole[512:]
        (kept,) = memory_path.glob("*.torn-after-5*")
        assert kept.read_bytes() == _GARBAGE[name](length)
        kept.unlink()
        append(url, [payment(6)])
        assert told_by(url) == told([*history, payment(6)])


@pytest.mark.parametrize("length", [0, 1, 35, 36, 511])
def test_file_without_a_whole_header(length: int, memory_path: Path) -> None:
    path = memory_path / NAME
    path.write_bytes((b"\0\0\0\1" + bytes(508))[:length])
    for writable in (False, True):
        with pytest.raises(Damaged):
            (open_writer if writable else open_reader)(url_in(memory_path))
    assert path.stat().st_size == length


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"SQLite format 3\0" * 64, NotFound),  # a database, and said to be one
        (bytes(1024), Damaged),
        (b"\0\0\0\2" * 200, Damaged),
    ],
)
def test_another_file(content: bytes, error: type[BackupError], memory_path: Path) -> None:
    path = memory_path / NAME
    path.write_bytes(content)
    for writable in (False, True):
        with pytest.raises(error):
            (open_writer if writable else open_reader)(url_in(memory_path))
    assert path.read_bytes() == content


def test_lengths_that_lie_cost_no_memory(memory_path: Path) -> None:
    """Four gigabytes are announced in a file of a few hundred bytes."""
    make(memory_path, started_node())
    path = memory_path / NAME
    content = bytearray(path.read_bytes())
    content[512:516] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        open_writer(url_in(memory_path))


def test_rotten_rider_does_not_make_the_tables_stale(memory_path: Path) -> None:
    """The second call of every new node is a rider on the first, which makes all tables.

    A rider that is none any more looks like a second transaction of the same version.
    """
    make(memory_path, started_node())
    path = memory_path / NAME
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PRAGMA foreign_keys = OFF;", b"QRAGMA foreign_keys = OFF;"))
    try:
        open_writer(url_in(memory_path)).close()
    except Damaged:
        return
    assert [change.version for change in told_by(url_in(memory_path))] == [1, 1, 2, 2, 3]


def test_rotten_length_in_a_file_of_the_seed(memory_path: Path) -> None:
    """The search for torn transactions of the community's plugin must not find one here."""
    node = SeedNode(memory_path / NAME, started_node())
    node.commits(*payments(4, 6))
    node.crashes_after_the_answer(payment(6, "never committed"))
    node.commits(*payments(6, 9))
    path, url = memory_path / NAME, url_in(memory_path)
    whole = path.read_bytes()
    expected = build_database(memory_path / "expected.sqlite3", node.committed)
    start = 512
    for number, change in enumerate(node.committed[:-4]):
        for byte in range(4):
            for bit in range(8):
                rotten = bytearray(whole)
                rotten[start + byte] ^= 1 << bit
                path.write_bytes(rotten)
                try:
                    with open_reader(url) as backend:
                        target = memory_path / f"restored-{number}-{byte}-{bit}"
                        restored = restore(backend, str(target))
                except (Damaged, ReplayFailed):
                    continue
                assert_same_database(restored.path, expected)
        start += len(packed(change))
