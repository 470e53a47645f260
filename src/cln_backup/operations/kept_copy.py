"""A copy of a node's database as found, kept in a directory of its own before it is changed."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from cln_backup.model.errors import StorageError
from cln_backup.node.rollforward_marker import Marker, write_marker
from cln_backup.storage import directories, fsio

if TYPE_CHECKING:
    from collections.abc import Iterator

JOURNALS: Final = ("-journal", "-wal")
"""Files that SQLite applies to a database when it opens it."""

_OP: Final = "keep a copy of the database"


def has_journal(database: str) -> bool:
    """Whether a crash left a journal, so that merely opening the database may change it."""
    return any(os.path.exists(database + journal) for journal in JOURNALS)


def keep(directory: str, marker: Marker, version: int) -> Marker:
    """Copies the database with its journal, and notes it in the marker; all durable on return.

    The copy is in `DATABASE.before-rollforward-VERSION`, with a number appended if that exists. A
    copy that an earlier process did not finish is made again.

    Raises:
        StorageError, Interrupted: the unfinished copy was removed; the database is untouched.
    """
    database = os.path.realpath(marker.database)
    place = marker.keeping or _free_name(f"{database}.before-rollforward-{version}")
    marker = Marker(marker.database, marker.pid_file, keeping=place)
    write_marker(directory, marker)
    try:
        directories.make(place, op=_OP)
        for source in _files(database):
            name = os.path.join(place, os.path.basename(source))
            fsio.remove(name, op=_OP)
            fsio.copy(source, name, op=_OP)
        fsio.sync_directory(place, op=_OP)
    except BaseException:
        with contextlib.suppress(StorageError):
            remove(place, database)
        raise
    marker = Marker(marker.database, marker.pid_file, kept=place)
    write_marker(directory, marker)
    return marker


def is_superfluous(place: str, database: str) -> bool:
    """Whether the database still is as it was found, without a journal. Raises `StorageError`."""
    kept = os.path.join(place, os.path.basename(database))
    return not has_journal(kept) and _same_contents(kept, database)


def _same_contents(path: str, other: str) -> bool:
    with contextlib.ExitStack() as opened:
        fds = []
        for name in (path, other):
            fds.append(fsio.open_existing(name, writable=False, op=_OP))
            opened.callback(os.close, fds[-1])
        sizes = [fsio.size_bytes(fd) for fd in fds]
        if sizes[0] != sizes[1]:
            return False
        pairs = zip(*(fsio.chunks_at(fd, sizes[0], 0, op=_OP) for fd in fds), strict=False)
        return all(ours == theirs for ours, theirs in pairs)


def remove(place: str, database: str) -> None:
    """Removes the copy, if it exists. Raises `StorageError`."""
    if not os.path.isdir(place):
        return
    name = os.path.join(place, os.path.basename(database))
    for path in (name, *(name + journal for journal in JOURNALS)):
        fsio.remove(path, op=_OP)
    directories.remove_empty(place, op=_OP)


def remove_earlier(place: str, database: str) -> None:
    """Removes the copies of earlier roll forwards: the node has run well since, up to this one."""
    name = re.compile(re.escape(os.path.basename(database)) + r"\.before-rollforward-\d+(-\d+)?")
    directory, newest = os.path.split(place)
    with contextlib.suppress(StorageError):
        for found in directories.names(directory, op=_OP):
            if found != newest and name.fullmatch(found):
                remove(os.path.join(directory, found), database)


def _files(database: str) -> Iterator[str]:
    yield database
    for journal in JOURNALS:
        if os.path.exists(database + journal):
            yield database + journal


def _free_name(name: str) -> str:
    number, free = 1, name
    while os.path.lexists(free):
        number += 1
        free = f"{name}-{number}"
    return free
