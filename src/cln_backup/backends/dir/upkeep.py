"""Prepares and clears up beside a writer: `python -m cln_backup.backends.dir.upkeep`.

A process of its own at the lowest priority. It needs no key: the names say all that it must know.
Idempotent: the next one finishes what is left. When the writer, its parent, has died, it prepares
nothing more: the directory may be another writer's by then, or be removed as unfinished.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from cln_backup.backends.dir.store import SPARE, SPARE_BYTES, list_files
from cln_backup.process.channel import Message
from cln_backup.process.parent import Parent, serve
from cln_backup.storage import fsio, giving_back

if TYPE_CHECKING:
    from collections.abc import Callable

_DAY_S = 86_400
_FEW_FILES = 8
_FEW_BYTES = 4 << 20


class Start(Message):
    """What to look after: `writer` is the process id of the one that appends."""

    path: str
    keep: int
    keep_days: int
    writer: int


def make_spare(path: str, writer: int, writer_lives: Callable[[], bool]) -> None:
    """Prepares the file of zeros that becomes the next segment; durable when it returns.

    Without the writer that this process works for, nothing is done.
    """
    spare = os.path.join(path, SPARE)
    for name in fsio.list_directory(path, op="list backup"):
        if not writer_lives():
            return
        if name.startswith(f"{SPARE}.") and name != f"{SPARE}.first-{writer}":
            fsio.remove(os.path.join(path, name), op="remove unfinished spare")
    if os.path.exists(spare):
        return
    # A name of its own for each process: nobody writes into a file that became a segment.
    built = f"{spare}.new-{os.getpid()}"
    fd = fsio.create(built, op="create spare")
    try:
        fsio.preallocate(fd, SPARE_BYTES, op="preallocate spare")
        if writer_lives():
            fsio.replace(built, spare, op="publish spare")
        else:
            fsio.remove(built, op="remove unfinished spare")
    except BaseException:
        fsio.remove(built, op="remove unfinished spare")
        raise
    finally:
        os.close(fd)


def expired(path: str, keep: int, keep_days: int) -> list[str]:
    """The files that no generation needs which is to be kept, in the order to remove them in.

    A generation is kept while it is among the `keep` newest besides the current one, or the next
    one took its place less than `keep_days` ago.
    """
    listing = list_files(path)
    bases = listing.bases
    now = time.time()
    first_kept = max(0, len(bases) - 1 - keep)
    for index in range(first_kept):
        successor = os.path.join(path, "base-{:010}-{:010}".format(*bases[index + 1]))
        with contextlib.suppress(FileNotFoundError):  # a process beside may be removing it
            if now - os.stat(successor).st_mtime < keep_days * _DAY_S:
                first_kept = index
                break
    if not bases:
        return []
    needed_from = bases[first_kept][1]
    names = ["base-{:010}-{:010}".format(*base) for base in bases[:first_kept]]
    names += [f"log-{number:010}" for number in listing.segments if number < needed_from]
    names += [
        "snapshot-{:010}-{:010}".format(*snapshot)
        for snapshot in listing.snapshots
        if snapshot[0] < needed_from
    ]
    return [os.path.join(path, name) for name in names]


def removal_takes_long(path: str, keep: int, keep_days: int) -> bool:
    """Whether `remove_expired` may take longer than an append."""
    gone = expired(path, keep, keep_days)
    return len(gone) > _FEW_FILES or any(os.path.getsize(name) > _FEW_BYTES for name in gone)


def remove_expired(path: str, keep: int, keep_days: int) -> None:
    """Removes what has expired, but nothing from the oldest generation on that is being read.

    A reader holds a shared lock on its base; where the file system knows no locks, nothing is
    removed. The room of a large file is given back in pieces.
    """
    for name in expired(path, keep, keep_days):
        # NFS gives an exclusive lock only on what is open for writing.
        fd = fsio.open_existing(name, writable=True, op="open expired file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fsio.remove(name, op="remove expired file")
        except OSError:
            return
        finally:
            giving_back.close_reader(fd)


def _run(start: Start, parent: Parent[Message]) -> None:
    make_spare(start.path, start.writer, parent.lives)
    remove_expired(start.path, start.keep, start.keep_days)


if __name__ == "__main__":
    serve(_run, Start)
