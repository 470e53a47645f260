"""Figures over time of each node, and what happened to it, in one small SQLite database.

For a day there is one sample a minute, for 90 days one for each 15 minutes. Nothing depends on the
file: if it is damaged, it is removed, and the figures start again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from cln_backup.model.errors import StorageError
from cln_backup.model.health import Level
from cln_backup.storage import fsio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_log = logging.getLogger(__name__)

STORE_NAME: Final = "backup.figures"
DAY_S: Final = 86_400
FINE_S: Final = 60
COARSE_S: Final = 900
_SUFFIXES: Final = ("", "-wal", "-journal", "-shm")
_KEPT: Final = ((FINE_S, DAY_S // FINE_S), (COARSE_S, 90 * DAY_S // COARSE_S))
_MAX_SAMPLES: Final = 120_000
"""Of all nodes together: some 8 MiB. With more than 11 nodes each keeps fewer."""

_MAX_PAGES: Final = 4096
_PAGE_BYTES: Final = 4096
_WAL_BYTES: Final = 1 << 20
_MAX_EVENTS: Final = 200
_ALL_EVENTS: Final = 6000
_MAX_TEXT: Final = 500
_LEVELS: Final = (Level.GOOD, Level.WARNING, Level.BAD)
_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE node (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE sample (
    node INTEGER NOT NULL, step_s INTEGER NOT NULL, at INTEGER NOT NULL, count INTEGER NOT NULL,
    version INTEGER, changes INTEGER, size_bytes INTEGER,
    p50_us REAL, p99_us REAL, lag_s REAL, level INTEGER,
    PRIMARY KEY (node, step_s, at)
) WITHOUT ROWID;
CREATE TABLE event (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL, at REAL NOT NULL,
    kind TEXT NOT NULL, level INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX event_of ON event (node, id);
"""
_ADD: Final = """
INSERT INTO sample VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
ON CONFLICT DO UPDATE SET
    count = count + 1, version = coalesce(excluded.version, version),
    changes = coalesce(excluded.changes, changes),
    size_bytes = coalesce(excluded.size_bytes, size_bytes),
    p50_us = coalesce(p50_us + (excluded.p50_us - p50_us) / (count + 1), excluded.p50_us, p50_us),
    p99_us = coalesce(max(p99_us, excluded.p99_us), excluded.p99_us, p99_us),
    lag_s = coalesce(max(lag_s, excluded.lag_s), excluded.lag_s, lag_s),
    level = coalesce(max(level, excluded.level), excluded.level, level)
"""
_POINTS: Final = """
SELECT at / ?5 * ?5, max(version), max(changes), max(size_bytes), avg(p50_us), max(p99_us),
    max(lag_s), max(level)
FROM sample WHERE node = (SELECT id FROM node WHERE name = ?1) AND step_s = ?2
    AND at >= ?3 AND at <= ?4
GROUP BY 1 ORDER BY 1
"""
_PRUNE: Final = """
DELETE FROM sample WHERE node = ?1 AND step_s = ?2 AND at <= (
    SELECT at FROM sample WHERE node = ?1 AND step_s = ?2 ORDER BY at DESC LIMIT 1 OFFSET ?3
)
"""
_EVENTS: Final = """
SELECT at, kind, level, text FROM event
WHERE node = (SELECT id FROM node WHERE name = ?1) AND (?2 IS NULL OR kind = ?2)
ORDER BY id DESC LIMIT ?3
"""
_PRUNE_EVENTS: Final = """
DELETE FROM event WHERE node = ?1 AND id <= (
    SELECT id FROM event WHERE node = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2
)
"""
_FORGET: Final = """
DELETE FROM sample WHERE node = :node;
DELETE FROM event WHERE node = :node;
DELETE FROM node WHERE id = :node;
"""


class Sample(NamedTuple):
    """A node's figures at a time, or of a span that starts then.

    Attributes:
        at: seconds since 1970.
        version: data version of the backup; of a span the highest, as all but `p50_us`.
        changes: how many the backup has.
        size_bytes: of the backup.
        p50_us: the median of the answer times, in microseconds; of a span the mean.
        p99_us: their 99th percentile.
        lag_s: age of the oldest change that is not proven, in seconds.
        level: the worst of the findings; `None` if it was unknown.
    """

    at: float
    version: int | None = None
    changes: int | None = None
    size_bytes: int | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    lag_s: float | None = None
    level: Level | None = None


class Event(NamedTuple):
    """Something that happened to a node.

    Attributes:
        at: seconds since 1970.
        kind: such as `verdict`, `alarm`, `compaction`, `drill`, `proof`, `notice`, `release`.
        level: how bad it is.
        text: one sentence.
    """

    at: float
    kind: str
    level: Level
    text: str


class Figures:
    """The database; any thread may use it.

    No method raises an error: figures that cannot be stored or read are missing, and a warning is
    logged once. The file has mode 0600 and at most 16 MiB. A loss of power may cost the last
    minutes.
    """

    def __init__(self, path: str) -> None:
        """Opens the file at `path`; makes it if it is missing, damaged or of another format."""
        self._path = path
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._has_failed = self._closed = False
        self._open()

    def _open(self) -> None:
        try:
            self._connection = _connect(self._path)
        except (apsw.Error, _OtherFormat, StorageError) as error:
            if isinstance(error, apsw.NotADBError | apsw.CorruptError | _OtherFormat):
                self._start_again()
            else:
                self._say(error)

    def _start_again(self) -> None:
        try:
            for suffix in _SUFFIXES:
                fsio.remove(self._path + suffix, op="remove figures")
            self._connection = _connect(self._path)
        except (apsw.Error, _OtherFormat, StorageError) as error:
            self._say(error)

    def _say(self, error: Exception) -> None:
        if not self._has_failed:
            _log.warning(
                "Cannot keep figures over time in %s: %s. The backup is not affected.",
                self._path,
                str(error).rstrip("."),
            )
        self._has_failed = True

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._closed = True

    @contextlib.contextmanager
    def _used(self, *, opens: bool = False) -> Iterator[apsw.Connection | None]:
        """The connection, for one transaction; handles its errors.

        With `opens`, the file is opened if it could not be before: an earlier process had it.
        """
        with self._lock:
            if opens and self._connection is None and not self._closed:
                self._open()
            if self._connection is None:
                yield None
                return
            try:
                with self._connection:
                    yield self._connection
            except apsw.Error as error:
                self._say(error)
                if isinstance(error, apsw.CorruptError | apsw.NotADBError):
                    self._connection.close(True)
                    self._connection = None
                    self._start_again()

    def add(self, samples: Iterable[tuple[str, Sample]]) -> None:
        """Stores a sample of each of some nodes, by name; best about once a minute.

        Samples of one minute are merged, also if the clock was set back meanwhile.
        """
        with self._used(opens=True) as connection:
            if connection is None:
                return
            numbers: dict[str, int] = {}
            for node, sample in samples:
                if node not in numbers:
                    numbers[node] = _number(connection, node)
                _add(connection, numbers[node], sample)
            _prune(connection, numbers.values())

    def note(self, node: str, events: Iterable[Event]) -> None:
        """Stores what happened to a node; the last 200 events of each are kept."""
        with self._used() as connection:
            if connection is not None:
                number = _number(connection, node)
                for event in events:
                    _note(connection, number, event)

    def keep_only(self, nodes: Collection[str]) -> None:
        """Removes the figures of all other nodes."""
        with self._used() as connection:
            if connection is not None:
                for number, name in connection.execute("SELECT id, name FROM node").fetchall():
                    if name not in nodes:
                        connection.execute(_FORGET, {"node": number})

    def points(self, node: str, since: float, until: float, most: int = 240) -> list[Sample]:
        """A node's samples from one time to another, as at most about `most` equal spans.

        A span without a sample is left out: the node did not run, or its state was unknown.
        """
        span_s = max(1, int(until - since))
        step_s = FINE_S if span_s <= DAY_S else COARSE_S
        width_s = max(1, -(-span_s // (most * step_s))) * step_s
        rows = self._rows(_POINTS, (node, step_s, int(since), int(until), width_s))
        return [Sample._make((*row[:7], _level(row[7]))) for row in rows]

    def events(self, node: str, most: int = 50, kind: str | None = None) -> list[Event]:
        """The last events of a node, of one kind or of all, the latest first."""
        rows = self._rows(_EVENTS, (node, kind, most))
        return [Event(at, kind, _LEVELS[level], text) for at, kind, level, text in rows]

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        with self._used() as connection:
            if connection is not None:
                rows = connection.execute(query, values).fetchall()
        return rows


class _OtherFormat(Exception):
    """The file was made by another release."""


def _connect(path: str) -> apsw.Connection:
    """Opens the database, and makes it if there is none.

    Raises `apsw.Error`, `StorageError`, `_OtherFormat`.
    """
    is_new = fsio.kind_at(path, op="look for figures") is None
    if is_new:
        os.close(fsio.create(path, op="create figures"))
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    connection = apsw.Connection(path, flags=flags)
    try:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # first: then a WAL needs no shared memory file
            f"page_size = {_PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"max_page_count = {_MAX_PAGES}",
            f"journal_size_limit = {_WAL_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        if is_new:
            with connection:
                connection.execute(f"{_SCHEMA}; PRAGMA user_version = {_FORMAT}").fetchall()
        elif connection.execute("PRAGMA user_version").fetchall() != [(_FORMAT,)]:
            raise _OtherFormat(f"{path} was made by another release")
        elif connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
            raise _OtherFormat(f"{path} is damaged")
    except BaseException:
        connection.close(True)
        raise
    return connection


def _number(connection: apsw.Connection, node: str) -> int:
    connection.execute("INSERT OR IGNORE INTO node (name) VALUES (?)", (node,))
    found = connection.execute("SELECT id FROM node WHERE name = ?", (node,)).fetchall()[0][0]
    assert isinstance(found, int)
    return found


def _level(number: int | None) -> Level | None:
    return None if number is None else _LEVELS[number]


def _nodes(connection: apsw.Connection) -> int:
    found = connection.execute("SELECT count(*) FROM node").fetchall()[0][0]
    assert isinstance(found, int)
    return found


def _add(connection: apsw.Connection, node: int, sample: Sample) -> None:
    level = None if sample.level is None else _LEVELS.index(sample.level)
    for step_s, _ in _KEPT:
        at = int(sample.at // step_s * step_s)
        connection.execute(_ADD, (node, step_s, at, *sample[1:-1], level))


def _prune(connection: apsw.Connection, nodes: Iterable[int]) -> None:
    """Keeps the latest samples: by their number, since the clock may have been wrong."""
    share = _MAX_SAMPLES // _nodes(connection)
    whole = sum(most for _, most in _KEPT)
    for node in nodes:
        for step_s, most in _KEPT:
            connection.execute(_PRUNE, (node, step_s, min(most, most * share // whole)))


def _note(connection: apsw.Connection, node: int, event: Event) -> None:
    level, text = _LEVELS.index(event.level), event.text[:_MAX_TEXT]
    connection.execute(
        "INSERT INTO event (node, at, kind, level, text) VALUES (?, ?, ?, ?, ?)",
        (node, event.at, event.kind, level, text),
    )
    connection.execute(_PRUNE_EVENTS, (node, min(_MAX_EVENTS, _ALL_EVENTS // _nodes(connection))))
