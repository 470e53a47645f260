"""Compares the node's database with the backup at the same version, before the first answer.

The version proves little: where the last change was answered and never committed, and one other
transaction was committed unseen, both are at one version with different contents. The kept replica
of the follower is at hand; where it is missing or lags, the follower compares later. The replica's
disk may have damaged it, so a difference counts only if a fresh replay of the backup has it too.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw
import msgspec

from cln_backup.model import statements
from cln_backup.model.errors import (
    BackupError,
    Discontinuity,
    ReplayFailed,
    StorageError,
    WriterConflict,
)
from cln_backup.operations.proven import opened_when_free
from cln_backup.plugin.faults import fault
from cln_backup.plugin.start.aside import anew, aside
from cln_backup.plugin.start.messages import Look
from cln_backup.replay.content import CHANNEL_TABLES, compare, in_words
from cln_backup.replay.kept import KeptReplica
from cln_backup.replay.kept_directory import remove_replica
from cln_backup.storage import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from cln_backup.backends.contract import Reader
    from cln_backup.backends.place import Place
    from cln_backup.model.continuity import Facts
    from cln_backup.plugin.start.facts import Node

COMPARE_S: Final = 2.0
"""The limit for everything together, unless there is a difference."""

CONFIRM_S: Final = 45.0
"""The limit for the fresh replay after a difference."""

_SPARE_S: Final = 0.2
"""The part of the time in which what was found is told."""

_OP: Final = "verify"
_OPEN_S: Final = 1.0
_WAIT_S: Final = 1.0
_FEW_CHANGES: Final = 2_000
_NAMED: Final = 6
"""How many differences a message lists."""

_TOLD_LATER: Final = "The database is compared with its backup later, beside the running node"


class Compared(NamedTuple):
    """The result of a comparison.

    Attributes:
        differences: where database and backup differ, for a message; empty if nowhere, as far as
            they were compared.
        alarm: why the backup does not lead to its own version, for a message; empty if it does, or
            if that is unknown.
    """

    differences: str = ""
    alarm: str = ""


class Say(NamedTuple):
    """How to tell the operator: in the log, or as a warning there."""

    log: Callable[[str], None]
    warn: Callable[[str], None]


class _Found(NamedTuple):
    """The result of one process.

    Attributes:
        differences, alarm: as in `Compared`.
        foreign: differences in tables of other programs, in words.
        later: why nothing was found out; empty if something was.
        is_fresh: whether the whole backup was replayed for it.
        touched: the tables that the last changes touch.
    """

    differences: str = ""
    alarm: str = ""
    foreign: str = ""
    later: str = ""
    is_fresh: bool = False
    touched: tuple[str, ...] = ()


class _Asked(NamedTuple):
    """The database, at its version, and the backup, at its own."""

    place: Place
    directory: str
    database: str
    version: int
    backup_version: int

    @property
    def to(self) -> int | None:
        return None if self.version == self.backup_version else self.version


def compare_before_answer(
    node: Node, facts: Facts, place: Place, say: Say, bound_s: float | None
) -> Compared:
    """Compares what matters most within two seconds: channels, and what the head touched.

    A difference is compared once more with a fresh replay of the backup, for which the node
    waits at most `bound_s` (`None`: as long as is sensible). If there is no difference there, the
    replica is damaged, and is removed: the follower builds it again. If the fresh replay cannot be
    made, the difference counts.

    Nothing is changed, except that the replica catches up. Errors other than a difference are
    logged: the node's start does not depend on the replica.
    """
    directory = node.state.replica_dir
    if facts.backup_version == 0 or directory is None or not os.path.isdir(directory):
        return Compared()
    asked = _Asked(place, directory, node.database, facts.database_version, facts.backup_version)
    try:
        return _decided(asked, say, bound_s)
    except Exception as error:  # noqa: BLE001 - nothing of this may stop a healthy node
        say.log(f"{_TOLD_LATER}: {fault(error)}")
        return Compared()


def _decided(asked: _Asked, say: Say, bound_s: float | None) -> Compared:
    found = _aside(_with_kept_replica, asked, (), COMPARE_S)
    is_wrong = bool(found.differences or found.alarm)
    if found.later and not is_wrong:
        say.log(f"{_TOLD_LATER}: {found.later}")
    if found.foreign:
        say.warn(
            "The database has tables of another program, or lost such: "
            f"{found.foreign}. They do not belong to lightningd, so the node starts."
        )
    if is_wrong and not found.is_fresh:
        say.log("The follower's replica differs from the database: the backup is replayed again")
        return _confirmed(
            asked, found, say, CONFIRM_S if bound_s is None else min(CONFIRM_S, bound_s)
        )
    return Compared(found.differences, found.alarm)


def _confirmed(asked: _Asked, first: _Found, say: Say, bound_s: float) -> Compared:
    """The result of a fresh replay; the first one, if there can be none."""
    fresh = _aside(_with_fresh_replay, asked, first.touched, bound_s)
    scratch.clear_beside([_beside(asked.database)])  # if it was killed
    if fresh.differences or (fresh.alarm and not first.differences):
        return Compared(fresh.differences, fresh.alarm)
    why = fresh.later or fresh.alarm
    if why:
        say.warn(f"A fresh replay of the backup was not possible: {why}")
        if not first.differences:
            return Compared(alarm=first.alarm)
        return Compared(
            f"{first.differences}, according to the replica in {asked.directory} alone: the backup "
            f"could not be replayed again ({why})"
        )
    say.warn(
        f"The follower's replica in {asked.directory} was damaged: it differed from the database, "
        "but a fresh replay of the backup does not. It is built again. Check its disk for errors."
    )
    with contextlib.suppress(BackupError):
        remove_replica(asked.directory)
    return Compared()


def _aside(
    look: Callable[[_Asked, tuple[str, ...], float], _Found],
    asked: _Asked,
    touched: tuple[str, ...],
    limit_s: float,
) -> _Found:
    """Looks in a process that is killed when the time is over, or whatever else happens."""
    until = time.monotonic() + limit_s
    is_fresh = look is _with_fresh_replay
    wanted = Look(asked.place.url, *asked[1:], touched, is_fresh, until - _SPARE_S)
    try:
        if asked.place.works_in_fork:
            result = aside(lambda: looked(asked.place, wanted), until)
        else:
            result = anew(wanted, until)
        return msgspec.json.decode(result, type=_Found)
    except BackupError as error:
        return _Found(later=str(error))
    except Exception as error:  # noqa: BLE001 - nothing of this may stop a healthy node
        return _Found(later=fault(error))


def looked(place: Place, wanted: Look) -> bytes:
    """The result of the process that looks, for the one that decides."""
    asked = _Asked(place, wanted.directory, wanted.database, wanted.version, wanted.backup_version)
    look = _with_fresh_replay if wanted.is_fresh else _with_kept_replica
    return msgspec.json.encode(_looked(look, asked, wanted.touched, wanted.until))


def _looked(
    look: Callable[[_Asked, tuple[str, ...], float], _Found],
    asked: _Asked,
    touched: tuple[str, ...],
    until: float,
) -> _Found:
    try:
        return look(asked, touched, until)
    except _Later as later:
        return _Found(later=str(later))
    except WriterConflict:
        return _Found(later="another process uses the replica")
    except BackupError as error:
        return _Found(later=str(error))
    except apsw.Error as error:
        return _Found(later=f"SQLite reports {type(error).__name__}")
    except Exception as error:  # noqa: BLE001 - nothing of this may stop a healthy node
        return _Found(later=fault(error))


class _Later(Exception):
    """The comparison is left to the follower."""


def _with_kept_replica(asked: _Asked, _touched: tuple[str, ...], until: float) -> _Found:
    with (
        contextlib.closing(opened_when_free(asked.directory, _WAIT_S)) as replica,
        asked.place.open_reader(timeout_s=_OPEN_S) as reader,
    ):
        touched = _touched_since(replica, reader)
        try:
            if not replica.catch_up(reader, to=asked.to, until=until):
                raise _Later("the replica lags")
        except ReplayFailed as error:
            return _Found(alarm=str(error), is_fresh=replica.is_new, touched=touched)
        if replica.version != asked.version:
            raise _Later(f"the replica is at version {replica.version}")
        found = _compared(replica, asked.database, touched, until)
        return found._replace(is_fresh=replica.is_new, touched=touched)


def _with_fresh_replay(asked: _Asked, touched: tuple[str, ...], until: float) -> _Found:
    """Replays the whole backup beside the database, and compares the same."""
    place = _beside(asked.database)
    scratch.require_room(place, op=_OP, needed_bytes=os.path.getsize(asked.database))
    with (
        scratch.directory(place, op=_OP) as directory,
        contextlib.closing(KeptReplica.open(os.path.join(directory, "replica"))) as replica,
        asked.place.open_reader(timeout_s=max(_OPEN_S, until - time.monotonic())) as reader,
    ):
        try:
            if not replica.catch_up(reader, to=asked.to, until=until):
                raise StorageError("It takes longer than the node can wait.")
        except ReplayFailed as error:
            return _Found(alarm=str(error))
        if replica.version != asked.version:
            raise StorageError(f"It leads to version {replica.version}.")
        found = _compared(replica, asked.database, touched, until)
        if found.later and not found.differences:
            raise StorageError(found.later)
        return found


def _compared(
    replica: KeptReplica, database: str, touched: tuple[str, ...], until: float
) -> _Found:
    own = apsw.Connection(database, flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(own):
        own.execute("BEGIN")
        tables = (*CHANNEL_TABLES, "version", *touched)
        result = compare(replica.connection, own, tables, until)
    parts = [f"{one.table} ({one.detail})" for one in result.differences if one.matters]
    rest = len(parts) - _NAMED
    return _Found(
        ", ".join(parts[:_NAMED]) + (f" and {rest} more" if rest > 0 else ""),
        foreign=in_words(one for one in result.differences if one.is_foreign),
        later=f"no time for {', '.join(result.left)}" if result.left else "",
    )


def _touched_since(replica: KeptReplica, reader: Reader) -> tuple[str, ...]:
    """The tables that the changes after the replica's position touch: usually the head alone.

    Raises `_Later` if the replica is so far away that it would take long.
    """
    if replica.position is None:
        raise _Later("the replica is new")
    found: list[str | None] = []
    try:
        for number, change in enumerate(reader.stream_changes(after=replica.position)):
            if change.transaction is None or number == _FEW_CHANGES:
                raise _Later("the replica lags")
            found += map(statements.table, change.transaction)
    except Discontinuity:
        raise _Later("the backup was compacted since the replica") from None
    return tuple(name for name in dict.fromkeys(found) if name is not None)


def _beside(database: str) -> str:
    return os.path.dirname(os.path.abspath(database))
