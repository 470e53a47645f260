"""The parts of one backup as rows: objects in pieces, and the segments of the log.

A part of a backup is a file of format 2. Its rows are consecutive ranges of its bytes, each with
the offset at which it starts: one row for a change, and one for about a mebibyte of a snapshot. So
a range is read by the index alone, and no value is large.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.store import Store, list_files, segment_name
from cln_backup.backends.postgres.session import Taken
from cln_backup.model.errors import AlreadyExists, StorageError
from cln_backup.storage import interruption
from cln_backup.storage.objects import Objects, ObjectStatus, require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.session import Session

_LOG: Final = re.compile(r"log-(\d{10})")
_PREPARED: Final = re.compile(r"building\.([a-z]+)-(\d+)")

LOCK: Final = "hashtextextended('cln_backup/' || $1::text || '/' || $2::text || '/' || $3::text, 0)"
"""The key of an advisory lock, from a backup's number, a purpose and a number."""

PIECE_BYTES: Final = 1 << 20
"""The most bytes of a row, but for a change that cannot be compressed."""

REMOVED_AT_ONCE: Final = 64

_ASYNC: Final = "set_config('synchronous_commit', 'off', true) IS NOT NULL"
"""Makes one statement's commit return before it is durable; a later one's makes it so."""

_ADD_OBJECT: Final = (
    "INSERT INTO cln_backup.objects (backup, purpose) VALUES ($1, $2) RETURNING object"
)
_ADD_PIECE: Final = f"""
INSERT INTO cln_backup.records (backup, part, at, data) SELECT $1, $2, $3, $4 WHERE {_ASYNC}
ON CONFLICT DO NOTHING
"""
_READ: Final = """
SELECT at, data FROM cln_backup.records WHERE backup = $1 AND part = $2 AND at < $4 AND at >=
    coalesce((SELECT max(at) FROM cln_backup.records WHERE backup = $1 AND part = $2 AND at <= $3),
    0) ORDER BY at
"""
_SIZE: Final = """
SELECT at + octet_length(data) FROM cln_backup.records WHERE backup = $1 AND part = $2
ORDER BY at DESC LIMIT 1
"""
_REMOVE: Final = f"""
DELETE FROM cln_backup.records WHERE {_ASYNC} AND (backup, part, at) IN (
    SELECT backup, part, at FROM cln_backup.records WHERE backup = $1 AND part >= $2 AND part <= $3
    LIMIT {REMOVED_AT_ONCE}) RETURNING 1
"""


class TableObjects(Objects):
    """The objects of one backup; its segments of the log can be read as objects, too."""

    def __init__(self, link: Link, backup: int) -> None:
        self.link = link
        self.backup = backup
        self.where_it_is = link.at.path

    def where(self, name: str) -> str:
        """See `Objects.where`."""
        return f"{self.where_it_is}/{name}"

    def prepare(self, purpose: str, content: Iterable[bytes]) -> str:
        """See `Objects.prepare`. Each piece is a transaction of its own."""
        [[number]] = self.link.rows(_ADD_OBJECT, self.backup, purpose)
        assert isinstance(number, int)
        name = f"building.{purpose}-{number}"
        try:
            end = 0
            for piece in _pieces(content):
                interruption.check()
                self.link.rows(_ADD_PIECE, self.backup, -number, end, piece)
                end += len(piece)
            # Waits until it is durable, and so is what came before it.
            sized = "UPDATE cln_backup.objects SET size_bytes = $2 WHERE object = $1 RETURNING 1"
            if not self.link.rows(sized, number, end):
                raise _gone(self.where(name))
        except BaseException:
            self.discard(name)
            raise
        return name

    def publish(self, prepared: str, name: str, *, op: str, withdraws: bool = True) -> None:  # noqa: ARG002
        """See `Objects.publish`."""
        number = _number_of(prepared)
        require_name(name)

        def attempt(session: Session, until: float) -> None:
            found = session.run(
                "UPDATE cln_backup.objects SET name = $2 "
                "WHERE object = $1 AND coalesce(name, $2) = $2 RETURNING 1",
                (number, name),
                until=until,
            )
            if not found:
                raise _gone(self.where(prepared))

        try:
            self.link.until(attempt)
        except Taken:
            raise AlreadyExists(f"{self.where(name)} exists; it was not changed.") from None

    def prepared(self, purpose: str = "") -> Sequence[str]:
        """See `Objects.prepared`."""
        rows = self.link.rows(
            "SELECT purpose, object FROM cln_backup.objects WHERE backup = $1 AND name IS NULL "
            "AND starts_with(purpose, $2) ORDER BY object",
            *(self.backup, purpose),
        )
        return [f"building.{found!s}-{_int(number)}" for found, number in rows]

    def get(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """See `Objects.get`."""
        interruption.check()
        part = self.part(name)
        rows = self.link.rows(_READ, self.backup, part, offset_bytes, offset_bytes + length_bytes)
        found, end = bytearray(), None
        for at, data in rows:
            assert isinstance(at, int)
            assert isinstance(data, bytes)
            if end is None:
                if at > offset_bytes:
                    break
                found += data[offset_bytes - at :]
            elif at == end:
                found += data
            else:
                break  # a row is missing; the reader finds the rest too short
            end = at + len(data)
        return bytes(found[:length_bytes])

    def part(self, name: str) -> int:
        """The number of a part in `records`. Raises `StorageError` if it does not exist."""
        segment = part_of_segment(name)
        if segment is not None:
            return segment
        if _PREPARED.fullmatch(name) is not None:
            return -_number_of(name)
        part = self.part_of(name)
        if part is None:
            raise StorageError(
                f"{self.where(name)} is missing: a compaction folded it while it was read, or it "
                "was removed. Try again."
            )
        return part

    def part_of(self, name: str) -> int | None:
        """The number in `records` of a published object; `None` if it does not exist."""
        rows = self.link.rows(
            "SELECT object FROM cln_backup.objects WHERE backup = $1 AND name = $2",
            *(self.backup, require_name(name)),
        )
        return -_int(rows[0][0]) if rows else None

    def status(self, name: str) -> ObjectStatus | None:
        """See `Objects.status`."""
        segment = part_of_segment(name)
        if segment is not None:
            rows = self.link.rows(_SIZE, self.backup, segment)
            return ObjectStatus(_int(rows[0][0]), time.time()) if rows else None
        prepared = _PREPARED.fullmatch(name)
        which, value = ("object", int(prepared[2])) if prepared else ("name", name)
        rows = self.link.rows(
            f"SELECT size_bytes, stored_at FROM cln_backup.objects WHERE backup = $1 "
            f"AND {which} = $2",
            *(self.backup, value),
        )
        if not rows:
            return None
        assert isinstance(rows[0][1], float)
        return ObjectStatus(_int(rows[0][0]), rows[0][1])

    def list(self, prefix: str = "") -> Sequence[str]:
        """See `Objects.list`. Of the log, from the oldest segment that has rows."""
        rows = self.link.rows(
            "SELECT name FROM cln_backup.objects WHERE backup = $1 AND starts_with(name, $2)",
            *(self.backup, prefix),
        )
        names = [str(row[0]) for row in rows]
        if "log-".startswith(prefix) or prefix.startswith("log-"):
            [[first, last]] = self.link.rows(
                "SELECT min(part), max(part) FROM cln_backup.records "
                "WHERE backup = $1 AND part > 0",
                self.backup,
            )
            if first is not None:
                numbers = range(_int(first), _int(last) + 1)
                logs = map(segment_name, numbers)
                names += [name for name in logs if name.startswith(prefix)]
        return sorted(names)

    def delete(self, name: str, *, op: str) -> None:
        """See `Objects.delete`."""
        del op
        rows = self.link.rows(
            "DELETE FROM cln_backup.objects WHERE backup = $1 AND name = $2 RETURNING object",
            *(self.backup, require_name(name)),
        )
        for row in rows:
            self.remove_parts(-_int(row[0]), -_int(row[0]))

    def discard(self, prepared: str, *, in_steps: bool = False) -> None:
        """See `Objects.discard`."""
        del in_steps
        number = _number_of(prepared)
        rows = self.link.rows(
            "DELETE FROM cln_backup.objects WHERE object = $1 AND name IS NULL RETURNING 1", number
        )
        if rows:
            self.remove_parts(-number, -number)

    def space_bytes(self) -> int:
        """The size of all parts: the log, published objects, and unfinished ones."""
        rows = self.link.rows(
            "SELECT coalesce(sum(size_bytes), 0)::int8 FROM cln_backup.objects WHERE backup = $1",
            self.backup,
        )
        logs = self.list("log-")
        store = TableStore(self, b"", None)
        last = part_of_segment(logs[-1]) or 0 if logs else 0
        first = part_of_segment(logs[0]) or 1 if logs else 1
        return _int(rows[0][0]) + store.log_bytes(first, last)

    @contextlib.contextmanager
    def locked(self, purpose: str) -> Iterator[None]:
        """Inside, no other process is inside for the same purpose; it waits."""
        values = str(self.backup), purpose, ""

        def lock(session: Session, until: float) -> None:
            session.run(f"SELECT pg_advisory_lock({LOCK})", values, until=until)

        def unlock(session: Session, until: float) -> None:
            session.run("SELECT pg_advisory_unlock_all()", until=until)

        self.link.until(lock)
        try:
            yield
        finally:
            self.link.until(unlock)

    def remove_parts(self, first: int, last: int) -> None:
        """Removes the rows of some parts, a few in each transaction."""
        while len(self.remove_some(first, last)) == REMOVED_AT_ONCE:
            pass

    def remove_some(self, first: int, last: int) -> Sequence[Sequence[object]]:
        """Removes a few rows of some parts; returns one row for each."""
        return self.link.rows(_REMOVE, self.backup, first, last)


class TableStore(Store):
    """As of a `dir:` backup; every header has a salt, so no two writers make equal records."""

    salted = True

    @property
    def path(self) -> str:
        """The database and the name of the backup, for messages."""
        assert isinstance(self.objects, TableObjects)
        return self.objects.where_it_is

    def log_bytes(self, first: int, last: int) -> int:
        """The size of some segments of the log."""
        objects = self.objects
        assert isinstance(objects, TableObjects)
        rows = objects.link.rows(
            "SELECT coalesce(sum((SELECT at + octet_length(data) FROM cln_backup.records "
            "WHERE backup = $1 AND part = number ORDER BY at DESC LIMIT 1)), 0)::int8 "
            "FROM generate_series($2::int8, $3::int8) AS number",
            *(objects.backup, first, last),
        )
        return _int(rows[0][0])

    def history_bytes(self, gone: Sequence[str]) -> int:
        """The size of all parts of the history, without those in `gone`."""
        objects = self.objects
        listing = list_files(objects)
        kept = [number for number in listing.segments if segment_name(number) not in gone]
        total = self.log_bytes(kept[0], kept[-1]) if kept else 0
        for name in objects.list():
            if name.startswith(("base-", "snapshot-")) and name not in gone:
                total += self.object_bytes(name)
        return total


def _pieces(content: Iterable[bytes]) -> Iterator[bytes]:
    """The content in pieces of `PIECE_BYTES`; the last one may be smaller."""
    held = bytearray()
    for chunk in content:
        held += chunk
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


def part_of_segment(name: str) -> int | None:
    """The number in `records` of a segment of the log; `None` for any other object."""
    segment = _LOG.fullmatch(name)
    return None if segment is None else int(segment[1])


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _number_of(prepared: str) -> int:
    found = _PREPARED.fullmatch(prepared)
    if found is None:
        raise ValueError(f"invalid name of a prepared object: {prepared!r}")
    return int(found[2])


def _gone(where: str) -> StorageError:
    return StorageError(
        f"{where} was removed by another process before it was published; the backup is unchanged."
    )
