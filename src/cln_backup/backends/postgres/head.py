"""The row of a backup in `heads`, by which the server decides whether a writer may write.

A writer's epoch is the number that it gave the row when it opened the backup. Its changes are
stored only while the row has that epoch, and names the record that the writer stored last. Neither
a clock nor a lease is involved: an older writer that comes back finds another epoch.

An answer may be lost. Then the row tells, by the seal of its last record. It is not read but
written for that, unchanged: so the look waits for an earlier statement that is still at work on
the row, and is answered only when everything before it is as durable as a change must be. A row
that is merely read after a crash may be of a change that no standby has.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cln_backup.backends.events import Event, Noticed
from cln_backup.backends.postgres.opening import head_row, line_of
from cln_backup.backends.postgres.schema import require_version
from cln_backup.backends.postgres.tables import LOCK, PIECE_BYTES
from cln_backup.backends.postgres.worth import WAITS
from cln_backup.model.errors import StorageError, WriterConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cln_backup.backends.events import OnEvent
    from cln_backup.backends.postgres.link import Link
    from cln_backup.backends.postgres.opening import HeadRow
    from cln_backup.backends.postgres.session import Session
    from cln_backup.backends.postgres.values import Value

_WRITING: Final = "writing"
"""The purpose of the lock of a writer on its epoch: a courtesy, so that others are told."""

_DEAD_WRITER_S: Final = 10.0
_CLAIM_TRIES: Final = 10
_LARGE_BYTES: Final = 4 * PIECE_BYTES

_SETTINGS: Final = (
    "current_setting('synchronous_commit') || ' ' || current_setting('synchronous_standby_names')"
)
_APPEND: Final = f"""
WITH moved AS (
    UPDATE cln_backup.heads SET segment = $5, end_bytes = $6, seal = $7, owner = $8
    WHERE backup = $1 AND epoch = $2 AND segment = $3 AND seal = $4 RETURNING 1)
INSERT INTO cln_backup.records (backup, part, at, data) SELECT $1, $5, $9, $10 FROM moved
RETURNING {_SETTINGS}
"""
_APPEND_TYPES: Final = (20, 20, 20, 17, 20, 20, 17, 25, 20, 17)
_RAISE: Final = f"""
UPDATE cln_backup.heads SET segment = $5, end_bytes = $6, seal = $7, owner = $8
WHERE backup = $1 AND epoch = $2 AND segment = $3 AND seal = $4
RETURNING {_SETTINGS}
"""
_INSERT: Final = "INSERT INTO cln_backup.records (backup, part, at, data) VALUES ($1, $2, $3, $4)"
_TOUCH: Final = """
UPDATE cln_backup.heads SET epoch = epoch WHERE backup = $1
RETURNING epoch, segment, end_bytes, seal
"""
_CLAIM: Final = """
UPDATE cln_backup.heads SET epoch = epoch + 1, writer = $3 WHERE backup = $1 AND epoch = $2
RETURNING 1
"""
_SWAP: Final = """
WITH raised AS (
    UPDATE cln_backup.heads SET generation = $3 + 1
    WHERE backup = $1 AND epoch = $2 AND generation = $3 RETURNING 1)
UPDATE cln_backup.objects SET name = $5 FROM raised
WHERE object = $4 AND name IS NULL RETURNING 1
"""


class Place(NamedTuple):
    """The last record, as the row names it."""

    segment: int
    end_bytes: int
    seal: bytes


class HeadWriter:
    """The right to write to one backup.

    Attributes:
        row: as it was when the right was taken.
        at: the last record.
    """

    def __init__(self, link: Link, on_event: OnEvent, *, discreet: bool) -> None:
        """`discreet` records neither host nor program, for an encrypted backup."""
        self._link = link
        self._on_event = on_event
        self._discreet = discreet
        self._locked: tuple[int, int] | None = None
        self.row: HeadRow | None = None
        self.at = Place(0, 0, b"")
        self._standbys: str | None = None

    def claim(self, *, forced: bool) -> HeadRow:
        """Takes the right to write; older writers cannot store anything more when it returns.

        Raises:
            WriterConflict: a living process has it; not if `forced`.
            NotFound, StorageError.
        """
        writer = self._writer(line_of(self._link))
        gives_up_at = time.monotonic() + _DEAD_WRITER_S
        for _ in range(_CLAIM_TRIES):
            claimed = self._link.until(
                lambda session, until: self._try(session, until, writer, gives_up_at, forced=forced)
            )
            if claimed is not None:
                self.row = claimed
                self.at = Place(claimed.segment, claimed.end_bytes, claimed.seal)
                return claimed
        raise WriterConflict(
            f"Other processes keep opening {self._link.at.path} to write; this process wrote "
            "nothing. Two nodes must never share a backup: find them."
        )

    def _try(
        self, session: Session, until: float, writer: str, gives_up_at: float, *, forced: bool
    ) -> HeadRow | None:
        require_version(session, until)
        row = head_row(session, self._link, until)
        if row.writer == writer:  # an earlier attempt, whose answer was lost
            self._lock(session, row.backup, row.epoch, until)
            self._locked = row.backup, row.epoch
            return row
        held = self._lock(session, row.backup, row.epoch, until)
        while not held and not forced:
            if _lives(row.writer) or time.monotonic() > gives_up_at:
                raise _conflict(self._link.at.path, row.writer)
            time.sleep(0.02)  # the server has not noticed its end yet
            held = self._lock(session, row.backup, row.epoch, until)
        self._lock(session, row.backup, row.epoch + 1, until)
        waiting = self._link.watch(session, until)
        values = row.backup, row.epoch, writer
        claimed = session.run(_CLAIM, values, until=until, waiting=waiting)
        if held:
            self._unlock(session, row.backup, row.epoch, until)
        if not claimed:
            self._unlock(session, row.backup, row.epoch + 1, until)
            return None
        self._locked = row.backup, row.epoch + 1
        now = head_row(session, self._link, until)
        return now if now.epoch == row.epoch + 1 and now.backup == row.backup else None

    def begins(self, session: Session) -> None:
        """Prepares a new connection."""
        session.prepare("append", _APPEND, _APPEND_TYPES)
        if self._locked is not None:
            # The server may not have noticed yet that the connection before is gone, and hold its
            # lock. Nothing depends on it: the epoch fences.
            self._lock(session, *self._locked, self._link.until_s())

    def _lock(self, session: Session, backup: int, epoch: int, until: float) -> bool:
        values = str(backup), _WRITING, str(epoch)
        found = session.run(f"SELECT pg_try_advisory_lock({LOCK})", values, until=until)
        return found[0][0] == 1

    def _unlock(self, session: Session, backup: int, epoch: int, until: float) -> None:
        values = str(backup), _WRITING, str(epoch)
        session.run(f"SELECT pg_advisory_unlock({LOCK})", values, until=until)

    def append(self, part: int, at: int, data: bytes, seal: bytes, owner: str) -> None:
        """Stores the bytes of a record after the last one, and names it the last one.

        Both or nothing, and as durable as the server's settings say when it returns.

        Raises:
            WriterConflict: another writer has taken over; nothing was stored.
            StorageError: it may be stored or not.
        """
        row, before = self.row, self.at
        assert row is not None
        after = Place(part, at + len(data), seal)
        values = (row.backup, row.epoch, before.segment, before.seal, *after, owner)
        is_unknown = False

        def attempt(session: Session, until: float) -> None:
            nonlocal is_unknown
            if is_unknown and self._has_landed(session, until, before, after):
                return
            is_unknown = True
            waiting = self._link.watch(session, until)
            if len(data) > _LARGE_BYTES:
                found = _append_large(session, until, values, at, data, waiting)
            else:
                found = session.run_prepared(
                    "append", (*values, at, data), until=until, waiting=waiting
                )
            if found:
                self._note_settings(str(found[0][0]))
            elif not self._has_landed(session, until, before, after):
                raise WriterConflict(
                    f"The database did not store a change in {self._link.at.path}, although its "
                    "head is as this process left it. Nothing was stored. Look for rules, triggers "
                    "or row security on the tables in the schema cln_backup, and remove them."
                )

        self._link.until(attempt)
        self.at = after

    def _has_landed(self, session: Session, until: float, before: Place, after: Place) -> bool:
        """Whether the head is the new record, and not the one before. Raises for any other."""
        row = self.row
        assert row is not None
        found = session.run(
            _TOUCH, (row.backup,), until=until, waiting=self._link.watch(session, until)
        )
        path = self._link.at.path
        if found:
            epoch, *place = found[0]
            assert isinstance(epoch, int)
            if epoch > row.epoch:
                raise WriterConflict(
                    f"Another process has taken over {path}; this one has lost the right to write, "
                    "and stores nothing more. Two nodes must never share a backup, and a node must "
                    "never run twice: find the other one. If this machine was set back to an older "
                    "state, such as a checkpoint of a virtual machine, do not start the node from "
                    "it: restore the newest state of its database with `backup-cli restore`."
                )
            if epoch == row.epoch and Place(*place) == after:  # type: ignore[arg-type]
                return True
            if epoch == row.epoch and Place(*place) == before:  # type: ignore[arg-type]
                return False
        raise StorageError(
            f"The database lost changes of {path} that it had answered: it is back in an older "
            "state. Perhaps a standby was promoted that did not have them, or an older copy was "
            "restored. Nothing more was stored. Do not start the node from an older state. If the "
            "server that answered still exists, make it the primary again; otherwise make a new "
            "backup with `backup-cli init`: the node's own database has everything."
        )

    def require_unchanged(self, session: Session, until: float) -> None:
        """Makes sure that no other writer has taken over. Raises as `append`."""
        self._has_landed(session, until, self.at, self.at)

    def adopt(self) -> HeadRow:
        """Continues with the backup that has the name now, which this writer has put there."""
        self.release()

        def attempt(session: Session, until: float) -> HeadRow:
            row = head_row(session, self._link, until)
            self._lock(session, row.backup, row.epoch, until)
            self._locked = row.backup, row.epoch
            return row

        self.row = row = self._link.until(attempt)
        self.at = Place(row.segment, row.end_bytes, row.seal)
        return row

    def _note_settings(self, settings: str) -> None:
        commit, _, now = settings.partition(" ")
        if commit not in WAITS:
            raise StorageError(
                f"The database answered a change of {self._link.at.path} before it was durable: "
                f"synchronous_commit is {commit}, although this connection switched it on. The "
                "change may be stored or not. If a connection pooler such as PgBouncer is in "
                "between, connect to the server itself, or set pool_mode = session."
            )
        before, self._standbys = self._standbys, now
        if before is not None and before != now:
            what = (
                f"by synchronous standbys: {now}" if now else "by no synchronous standby any more"
            )
            text = f"The server's settings were changed: changes are now confirmed {what}."
            self._on_event(Event(Noticed.FOUND, text))

    def swap(self, generation: int, prepared: int, name: str) -> bool:
        """Publishes a base as the newest generation, after `generation`; returns whether it did.

        Raises `WriterConflict`, `StorageError`.
        """
        row = self.row
        assert row is not None

        def attempt(session: Session, until: float) -> bool:
            values = row.backup, row.epoch, generation, prepared, name
            if session.run(_SWAP, values, until=until, waiting=self._link.watch(session, until)):
                return True
            self._has_landed(session, until, self.at, self.at)
            now = session.run(
                "SELECT 1 FROM cln_backup.objects WHERE object = $1 AND name = $2",
                (prepared, name),
                until=until,
            )
            return bool(now)

        return self._link.until(attempt)

    def release(self) -> None:
        """Gives the right to write back, as far as the server can be told."""
        session = self._link.session
        if self._locked is not None and session is not None and not session.is_broken:
            with suppress(StorageError, OSError):
                session.run("SELECT pg_advisory_unlock_all()", until=time.monotonic() + 2.0)
        self._locked = None

    def _writer(self, line: str) -> str:
        """The row's note about this process; no other one says the same. `line` as `line_of`."""
        fields: dict[str, object] = {
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": _machine(),
            "token": os.urandom(8).hex(),
            "line": line,
        }
        if not self._discreet:
            fields["program"] = os.path.basename(sys.argv[0])
            fields["host"] = os.uname().nodename
        return json.dumps(fields)


def _append_large(
    session: Session,
    until: float,
    values: Sequence[Value],
    at: int,
    data: bytes,
    waiting: Callable[[], None],
) -> list[list[Value]]:
    """As one transaction: the head first, so that two writers do not both send the data."""
    try:
        session.run("BEGIN", until=until)
        found = session.run(_RAISE, values, until=until)
        if not found:
            session.run("ROLLBACK", until=until)
            return found
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            session.run(_INSERT, (values[0], values[4], at + start, piece), until=until)
        session.run("COMMIT", until=until, waiting=waiting)
    except BaseException:
        session.close()  # the transaction is not ended
        raise
    return found


def _machine() -> str:
    """A name of this machine that says nothing about it."""
    return hashlib.sha256(f"cln-backup {os.uname().nodename}".encode()).hexdigest()[:16]


def read_writer(writer: str) -> dict[str, object]:
    """The fields of a row's note about its last writer; none if it is not valid."""
    with suppress(ValueError):
        found = json.loads(writer)
        if isinstance(found, dict):
            return found
    return {}


def _lives(writer: str) -> bool:
    """Whether the last writer may be alive: it is on another machine, or its process exists."""
    found = read_writer(writer)
    pid = found.get("pid")
    if found.get("machine") != _machine() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _conflict(path: str, writer: str) -> WriterConflict:
    found = read_writer(writer)
    pid = found.get("pid")
    who = "another process"
    if pid is not None:
        host = found.get("host")
        what = f"{found.get('program')} on {host}, " if host else ""
        who = f"process {pid} ({what}since {found.get('since')})"
    here = found.get("machine") == _machine() and isinstance(pid, int)
    return WriterConflict(
        f"{path} is being written by {who}; this process wrote nothing. If a running node uses "
        "this backup, use its commands (lightning-cli backup-compact, backup-status). Two nodes "
        "must never share a backup.",
        holder=pid if here and isinstance(pid, int) else None,
    )
