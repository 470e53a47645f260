"""Maintenance beside a writer: `python -m cln_backup.backends.postgres.upkeep`.

A child process at the lowest priority, with a connection of its own: removes the rows of replaced
generations, few in each transaction, so that no lock is held for long. It needs no key. Idempotent:
the next run finishes interrupted work.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from cln_backup.backends.dir.upkeep import expired
from cln_backup.backends.events import ignore
from cln_backup.backends.postgres.link import Link
from cln_backup.backends.postgres.opening import read_head
from cln_backup.backends.postgres.stock import READING
from cln_backup.backends.postgres.tables import LOCK, TableObjects, part_of_segment
from cln_backup.backends.postgres.url import parse_postgres_url
from cln_backup.process.channel import Message

if TYPE_CHECKING:
    from cln_backup.backends.postgres.session import Session
    from cln_backup.process.parent import Parent

_DEADLINE_S: Final = 60
_WAITS_S: Final = 60.0
_PAUSE_S: Final = 0.5
"""A reader that follows the backup leaves a replaced generation within seconds."""


class Start(Message):
    """The request: the URL of the backup."""

    url: str


def remove_expired(objects: TableObjects, keep: int, keep_days: int) -> bool:
    """Removes what no kept generation needs, up to the oldest one that is being read.

    Returns whether one is being read. Raises `StorageError`.
    """
    for name in expired(objects, keep, keep_days):
        if name.startswith("base-") and _is_read(objects, int(name.split("-")[1])):
            return True
        segment = part_of_segment(name)
        part = objects.part_of(name) if segment is None else segment
        if part is not None:
            objects.remove_parts(part, part)
        if segment is None:
            objects.delete(name, op="remove expired object")
    return False


def _is_read(objects: TableObjects, generation: int) -> bool:
    values = str(objects.backup), READING, str(generation)

    def attempt(session: Session, until: float) -> bool:
        if not session.run(f"SELECT pg_try_advisory_lock({LOCK})", values, until=until)[0][0]:
            return True
        session.run(f"SELECT pg_advisory_unlock({LOCK})", values, until=until)
        return False

    return objects.link.until(attempt)


def _run(start: Start, parent: Parent[Message]) -> None:
    at = parse_postgres_url(start.url)
    at = at._replace(deadline_s=min(at.deadline_s, _DEADLINE_S))
    until = time.monotonic() + _WAITS_S
    with contextlib.closing(Link(at, ignore)) as link:
        objects = TableObjects(link, read_head(link).backup)
        while remove_expired(objects, at.keep, at.keep_days):
            if not parent.lives() or time.monotonic() > until:
                return
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    from cln_backup.process.parent import serve

    serve(_run, Start)
