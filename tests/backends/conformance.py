"""The requirements of every backend: `test_conformance.py` runs each test for every scheme.

The state machine holds a list of changes as its oracle and asks the backend for the same list after
every step. A new backend is added to `PLACES` and to nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cln_backup.backends import create_backend, open_reader, open_writer, place_at, url_of
from cln_backup.model.change import Change, Head, Kind
from cln_backup.model.errors import (
    AlreadyExists,
    BackupError,
    BadChange,
    Discontinuity,
    WriterConflict,
)
from tests import postgres_cluster, programs
from tests.histories import (
    OFF,
    ON,
    SnapshotBytes,
    Told,
    bump,
    image,
    prepared,
    rider,
    take_over,
    told,
    transaction,
)
from tests.objects.engine import engine
from tests.socket.serving import ServerHere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cln_backup.backends.contract import Backend, Reader, Writer
    from cln_backup.backends.events import Event
    from cln_backup.backends.ticket import Ticket


def _file(directory: Path) -> str:
    return f"file://{directory}/node.bkp"


def _dir(directory: Path) -> str:
    return f"dir://{directory}/node"


def _key_beside(directory: Path) -> Path:
    key = directory.parent / f"{directory.name}.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(bytes(range(32)))
    return key


def _dir_encrypted(directory: Path) -> str:
    return f"dir://{directory}/node?key-file={_key_beside(directory)}"


@functools.cache
def server() -> ServerHere:
    return ServerHere()


def _socket(directory: Path) -> str:
    return server().add(_file(directory))


def _socket_dir(directory: Path) -> str:
    return server().add(_dir(directory))


def _socket_sealed(directory: Path) -> str:
    _, _, key_file = _dir_encrypted(directory).partition("?")
    return f"{server().add(_objects(directory))}&{key_file}"


def _postgres(directory: Path) -> str:
    return postgres_cluster.shared().url(postgres_cluster.node_of(directory))


def _postgres_encrypted(directory: Path) -> str:
    return f"{_postgres(directory)}&key-file={_key_beside(directory)}"


def _s3(directory: Path) -> str:
    return engine().url(f"{os.getpid()}{directory}/node".replace("_", "-"))


def _s3_encrypted(directory: Path) -> str:
    _, _, key_file = _dir_encrypted(directory).partition("?")
    return f"{_s3(directory)}&{key_file}"


def _objects(directory: Path) -> str:
    return f"objects://{directory}/objects"


def _objects_encrypted(directory: Path) -> str:
    _, _, key_file = _dir_encrypted(directory).partition("?")
    return f"{_objects(directory)}?{key_file}"


PLACES: dict[str, Callable[[Path], str]] = {
    "file": _file,
    "dir": _dir,
    "dir-encrypted": _dir_encrypted,
    "postgresql": _postgres,
    "postgresql-encrypted": _postgres_encrypted,
    "socket": _socket,
    "socket-dir": _socket_dir,
    "socket-sealed": _socket_sealed,
    "objects": _objects,
    "objects-encrypted": _objects_encrypted,
    "s3": _s3,
    "s3-encrypted": _s3_encrypted,
}
"""For each scheme, a function that makes an unused URL of it in an empty directory."""

COMPACTED_ELSEWHERE = {"socket", "socket-dir"}
"""Schemes whose storage compacts by itself; it also takes an empty backup as a new one."""


@contextlib.contextmanager
def writer_elsewhere(url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that opens the backup for writing, and what it says when it has tried.

    It holds the backup until the block ends.
    """
    with programs.start(
        "tests.backends.elsewhere",
        url,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process, process.stdout.readline().rstrip()
        finally:
            if process.poll() is None:
                process.stdin.close()


def _url_with_key(kept: str, url: str) -> str:
    """The URL of an earlier history, with what unlocks it; a database names it as a URL."""
    _, question_mark, query = url.partition("?")
    return kept if "?" in kept else url_of(kept) + question_mark + query


class Entry(NamedTuple):
    """One change of the oracle."""

    change: Change
    foreign_keys: bool

    @property
    def kind(self) -> Kind:
        return self.change.kind


class Oracle:
    """A backup as the contract has it, in a list."""

    def __init__(self, base: Change | None) -> None:
        self.entries: list[Entry] = []
        self.droppable = False
        if base is not None:
            self.add(base)

    @property
    def version(self) -> int:
        return self.entries[-1].change.version if self.entries else 0

    @property
    def prev_version(self) -> int:
        if not self.droppable or len(self.entries) < 2:
            return 0
        return self.entries[-2].change.version

    @property
    def head(self) -> Head | None:
        if not self.entries:
            return None
        last = self.entries[-1]
        return Head(last.change.version, last.kind, last.foreign_keys)

    def told(self, start: int = 0, *, head: bool = True) -> list[Told]:
        upto = len(self.entries) if head else max(0, len(self.entries) - 1)
        return told(e.change for e in self.entries[:upto] if e.change.version >= start)

    def add(self, change: Change) -> None:
        foreign_keys = not self.entries or self.entries[-1].foreign_keys
        if change.kind is Kind.SNAPSHOT:
            foreign_keys = True
        elif change.kind is Kind.RIDER:
            assert change.transaction is not None
            foreign_keys = change.transaction[-1] == ON
        self.entries.append(Entry(change, foreign_keys))
        self.droppable = True

    def rewind(self) -> None:
        self.entries.pop()
        self.droppable = False

    def fold(self, base: Change | None, length: int) -> None:
        """Replaces everything before the head, when there were `length` changes, by `base`."""
        kept = self.entries[length - 1 :]
        folded: list[Entry] = []
        if base is not None:
            folded.append(Entry(base, foreign_keys=True))
            if not self.entries[length - 2].foreign_keys:
                folded.append(Entry(rider(base.version, OFF), foreign_keys=False))
        self.entries = folded + kept


def _texts(count: int) -> list[list[str]]:
    """Some lists of up to three statements, which hold any characters but zeros and surrogates."""
    choices = random.Random(count)
    ranges = (range(1, 0x80), range(0x80, 0xD800), range(0xE000, 0x11_0000))

    def statement() -> str:
        length = choices.randint(1, 60)
        text = "".join(chr(choices.choice(choices.choice(ranges))) for _ in range(length))
        return f"UPDATE peers /* {text} */"

    return [[statement() for _ in range(choices.randint(0, 3))] for _ in range(count)]


# One choice each: what is drawn sign by sign takes longer than what is tested.
_STATEMENTS = st.sampled_from(_texts(200))
_SNAPSHOT = st.integers(0, 1_500).map(lambda length: image("sector" * length))
_READER_EVERY = 2
_WHOLE_EVERY = 4
"""Steps between two new readers, and between two whole histories; both come at the end, too."""

_PRAGMAS = st.sampled_from([(OFF,), (ON,), ("PRAGMA user_version = 5;", OFF)])


class Staging(NamedTuple):
    """A compaction that is under way."""

    reader: Reader
    ticket: Ticket
    base: Change | None
    length: int


class Conformance(RuleBasedStateMachine):
    """Any order of calls, in one process; the file system is the real one."""

    def __init__(self, new_url: Callable[[], str]) -> None:
        super().__init__()
        self.url = new_url()
        self.stages = self.url.partition(":")[0] not in COMPACTED_ELSEWHERE
        self.backend: Writer | None = None
        self.staging: Staging | None = None
        self.readers: list[tuple[Reader, list[Told]]] = []
        self.oracle = Oracle(None)
        self.steps = 0

    @initialize(base=st.none() | st.tuples(st.integers(0, 2**31), _SNAPSHOT))
    def create(self, base: tuple[int, SnapshotBytes] | None) -> None:
        change = None if base is None else Change(base[0], base[1], None)
        create_backend(self.url, change)
        self.oracle = Oracle(change)
        self.backend = open_writer(self.url)

    @property
    def writer(self) -> Writer:
        assert self.backend is not None
        return self.backend

    def _add(self, change: Change) -> None:
        self.writer.add_change(change)
        self.oracle.add(change)

    @rule(statements=_STATEMENTS)
    def add_transaction(self, statements: list[str]) -> None:
        self._add(transaction(self.oracle.version + 1, *statements))

    @rule(pragmas=_PRAGMAS)
    def add_rider(self, pragmas: tuple[str, ...]) -> None:
        self._add(rider(self.oracle.version, *pragmas))

    @rule(ahead=st.integers(0, 20), snapshot=_SNAPSHOT)
    def add_snapshot(self, ahead: int, snapshot: SnapshotBytes) -> None:
        self._add(Change(self.oracle.version + ahead, snapshot, None))

    @rule(away=st.integers(-3, 3).filter(bool), which=st.sampled_from(["transaction", "rider"]))
    def add_what_does_not_follow(self, away: int, which: str) -> None:
        if which == "transaction":
            change = transaction(max(1, self.oracle.version + 1 + away), "DELETE FROM peers")
        else:
            change = rider(self.oracle.version + away)
        if change.version == self.oracle.version + 1:
            return
        with pytest.raises(Discontinuity):
            self.writer.add_change(change)

    @precondition(lambda self: self.oracle.version > 0)
    @rule(snapshot=_SNAPSHOT)
    def add_older_snapshot(self, snapshot: SnapshotBytes) -> None:
        with pytest.raises(Discontinuity):
            self.writer.add_change(Change(self.oracle.version - 1, snapshot, None))

    @rule(text=st.sampled_from(["", "a\x00b", "\x00", "\ud800"]))
    def add_what_cannot_be_stored(self, text: str) -> None:
        version = self.oracle.version + 1
        with pytest.raises(BadChange):
            self.writer.add_change(Change(version, None, [text, bump(version)]))

    @rule(ending=st.sampled_from(["DELETE FROM peers", bump(3) + " OR 1", "another"]))
    def add_transaction_that_does_not_end_as_lightningds_do(self, ending: str) -> None:
        with pytest.raises(BadChange):
            self.writer.add_change(Change(self.oracle.version + 1, None, [ending]))

    @precondition(lambda self: self.staging is None)
    @rule()
    def rewind(self) -> None:
        if self.oracle.droppable:
            self.writer.rewind()
            self.oracle.rewind()
        with pytest.raises(Discontinuity):
            self.writer.rewind()

    @precondition(lambda self: self.stages and self.staging is None and self.writer.can_start_over)
    @rule(version=st.integers(0, 30), snapshot=_SNAPSHOT)
    def start_over(self, version: int, snapshot: SnapshotBytes) -> None:
        earlier = self.oracle.told()
        change = Change(version, snapshot, None)
        kept = self.writer.start_over(change)
        self.oracle = Oracle(change)
        with open_reader(_url_with_key(kept, self.url)) as reader:
            assert told(reader.stream_changes()) == earlier

    @precondition(lambda self: self.staging is None)
    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.backend = open_writer(self.url)

    @rule()
    def second_writer(self) -> None:
        with pytest.raises(WriterConflict, match=f"process {os.getpid()} "):
            open_writer(self.url)

    @precondition(lambda self: self.stages or self.oracle.entries)
    @rule()
    def create_again(self) -> None:
        with pytest.raises(AlreadyExists):
            create_backend(self.url, None)

    @rule()
    def open_reader(self) -> None:
        if len(self.readers) < 3:
            self.readers.append((open_reader(self.url), self.oracle.told()))

    @precondition(lambda self: self.readers)
    @rule()
    def close_reader(self) -> None:
        """A reader tells the backup as it was when opened.

        Where the head was dropped since, it may say so, or tell what came in the head's place:
        that is a true history as well.
        """
        reader, expected = self.readers.pop(0)
        with reader:
            try:
                found = told(reader.stream_changes())
            except BackupError:
                assert self.oracle.told()[: len(expected)] != expected
            else:
                now = self.oracle.told()
                assert found == expected or found == now[: len(found)] != expected[: len(found)]

    @rule(data=st.data())
    def stream_a_part(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.oracle.version + 2))
        for head in (True, False):
            expected = self.oracle.told(start, head=head)
            with open_reader(self.url) as reader:
                assert told(reader.stream_changes(start, head=head)) == expected

    @precondition(
        lambda self: self.stages and self.staging is None and len(self.oracle.entries) > 1
    )
    @rule(snapshot=_SNAPSHOT)
    def stage(self, snapshot: SnapshotBytes) -> None:
        entries = self.oracle.entries
        base = None
        if entries[-1].kind is not Kind.SNAPSHOT:
            base = Change(entries[-2].change.version, snapshot, None)
        reader = open_reader(self.url)
        ticket = prepared(reader, base, foreign_keys=entries[-2].foreign_keys)
        self.staging = Staging(reader, ticket, base, len(entries))

    @precondition(lambda self: self.staging is not None)
    @rule()
    def stage_more(self) -> None:
        assert self.staging is not None
        ticket = self.staging.reader.prepare_more(self.staging.ticket)
        self.staging = self.staging._replace(ticket=ticket)

    @precondition(lambda self: self.staging is not None)
    @rule()
    def replace(self) -> None:
        assert self.staging is not None
        take_over(self.writer, self.staging.ticket)
        self.oracle.fold(self.staging.base, self.staging.length)
        self._end_staging()

    @precondition(lambda self: self.staging is not None)
    @rule()
    def discard(self) -> None:
        self.writer.discard()
        self._end_staging()

    def _end_staging(self) -> None:
        assert self.staging is not None
        self.staging.reader.close()
        self.staging = None

    @invariant()
    def the_writer_stands_where_the_oracle_does(self) -> None:
        self.steps += 1
        if self.backend is not None:
            self._check(self.backend)

    @invariant()
    def a_new_reader_sees_the_same(self) -> None:
        if self.backend is not None and self.steps % _READER_EVERY == 0:
            self._check_new_reader(whole=self.steps % _WHOLE_EVERY == 0)

    def _check_new_reader(self, *, whole: bool) -> None:
        assert self.backend is not None
        events: list[Event] = []
        with place_at(self.url).open_reader(on_event=events.append) as reader:
            self._check(reader)
            if whole:
                self._check_history(reader)
            assert reader.size_bytes == self.backend.size_bytes
            assert events == []

    def _check(self, backend: Backend) -> None:
        assert backend.place.url == self.url
        assert backend.version == self.oracle.version
        assert backend.standing.prev_version == self.oracle.prev_version
        assert backend.standing.version_count == len(self.oracle.entries)
        assert backend.standing.head == self.oracle.head
        assert (backend.last_change.at is None) <= (not self.oracle.entries)

    def _check_history(self, backend: Reader) -> None:
        assert told(backend.stream_changes()) == self.oracle.told()
        assert told(backend.stream_changes(head=False)) == self.oracle.told(head=False)

    def teardown(self) -> None:
        if self.staging is not None:
            self._end_staging()
        for reader, _ in self.readers:
            reader.close()
        if self.backend is not None:
            self._check_new_reader(whole=True)
            self.backend.close()
